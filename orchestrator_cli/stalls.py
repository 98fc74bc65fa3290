"""What keeps the engine from going on that its own state does not tell: parts that are gone, ticks nobody plans."""

from __future__ import annotations

from typing import Any

from orchestrator_cli.errors import ServiceUnreachable
from orchestrator_cli.service import Service
from orchestrator_cli.units import duration

LONGEST_OVERDUE_MS = 10_000
WITHOUT = {
    "beat": "nothing is planned",
    "system": "nothing is planned",
    "dispatcher": "runs are handed to no worker",
    "cpu": "runs are not carried out",
    "relay": "events are read from no stream, and outputs pushed to none",
    "broker": "no worker is told of a run, and no stream is read",
}
"""What of the engine stands still without it."""


def find_stalls(service: Service, status: dict[str, Any]) -> list[str]:
    """A line for each, the missing parts first; what it takes beside the engine's status is asked of the service."""
    lines = [f"{part} is missing: {WITHOUT[part]}" for part in missing_parts(service) if part in WITHOUT]
    overdue = status["scheduler"]["overdue_ms"]
    if overdue > LONGEST_OVERDUE_MS:
        lines.append(f"the next tick is {duration(overdue)} overdue: nobody plans it, or many are made up for")
    return lines


def missing_parts(service: Service) -> list[str]:
    """What /readyz waits for."""
    try:
        answer = service.get("/readyz")
    except ServiceUnreachable as error:
        answer = error.problem
    return [str(part) for part in answer.get("missing", [])]
