"""Writes docs/states.md from the machines of the domains: `python -m orchestrator_cli.diagrams`."""

from __future__ import annotations

import importlib
import pkgutil

import models
from models.kernel.machine import Machine
from orchestrator_cli.migrate import ROOT

PAGE = ROOT / "docs" / "states.md"
HEAD = """# States

Written by `python -m orchestrator_cli.diagrams` from `models/<domain>/states.py`; a test fails when it is stale.
Whatever moves a subject along an edge is a `Transition` in the domain's `transitions.py`, and is told in the ledger.
"""


def domains() -> list[str]:
    """The domains: the packages of the models, without the kernel that they stand on."""
    return sorted(part.name for part in pkgutil.iter_modules(models.__path__) if part.ispkg and part.name != "kernel")


def machines(domain: str) -> list[Machine]:
    states = importlib.import_module(f"models.{domain}.states")
    return [value for value in vars(states).values() if isinstance(value, Machine)]


def page() -> str:
    parts = [HEAD]
    for domain in domains():
        for machine in machines(domain):
            ends = ", ".join(f"`{state}`" for state in sorted(machine.terminal))
            parts.append(f"## {domain}: {machine.kind}\n\nEnds in {ends}.\n\n```mermaid\n{machine.diagram()}\n```\n")
    return "\n".join(parts)


def main() -> None:
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
