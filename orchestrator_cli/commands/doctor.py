"""`orchestrator doctor`: looks at everything with its own eyes and says what is not well and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from models.kernel.settings import Settings, load
from orchestrator_cli.addresses import broker_url, database_url
from orchestrator_cli.errors import CannotStart, CommandFailed
from orchestrator_cli.output import printing, show, table

if TYPE_CHECKING:
    from orchestrator_cli.doctor.findings import Finding

COLUMNS = ("check", "verdict", "found", "next_step")
ANSWER_SECONDS = 8.0
"""Longer than the five seconds that a connection to a silent database takes to give up."""


@click.command()
@click.option(
    "--canary-seconds",
    type=click.FloatRange(0.1, 60),
    default=5.0,
    show_default=True,
    help="Longest wait for a worker.",
)
@printing
def doctor(canary_seconds: float) -> None:
    """Check database, broker, clocks, processes, queues, engine and disk. Exit code 1 when something FAILs."""
    findings = look(load(os.environ), canary_seconds)
    failed = sum(finding.verdict == "FAIL" for finding in findings)
    rows = [asdict(finding) for finding in findings]
    show({"healthy": not failed, "findings": rows}, table(COLUMNS, rows, limit=None))
    if failed:
        raise CommandFailed(f"{failed} of {len(findings)} checks failed", problem={"code": "unhealthy"})


def look(chosen: Settings, canary_seconds: float) -> list[Finding]:
    """All findings. Whatever the threads need is imported before they start: two at once may see a module half made."""
    from orchestrator_cli.doctor.findings import look_all
    from orchestrator_cli.doctor.machine import around

    found = [*locate("broker", "BROKER_URL", broker_url), *locate("database", "DATABASE_URL", database_url)]
    absent = {finding.check for finding in found}
    from orchestrator_cli.doctor import broker, canaries, database, engine

    servers = {"database": database.look_at_database, "broker": broker.look_at_broker}
    present = {name: look for name, look in servers.items() if name not in absent}
    present["engine module"] = engine.look_at_module
    if "database" in present:
        present["engine"] = engine.look_at_engine
    found += look_all({**present, **around(chosen)}, ANSWER_SECONDS)
    if any(finding.check == "broker" and finding.verdict == "ok" for finding in found):
        queues = {"queues": lambda: canaries.look_at_queues(canary_seconds)}
        found += look_all(queues, canary_seconds + ANSWER_SECONDS)
    return found


def locate(check: str, variable: str, find: Callable[[], str]) -> list[Finding]:
    """Tell the rooms below where a server is; a finding when there is none."""
    from orchestrator_cli.doctor.findings import FAIL, Finding

    try:
        os.environ[variable] = find()
    except CannotStart as error:
        return [Finding(check, FAIL, error.message, error.next_step)]
    return []
