"""`orchestrator doctor`: looks at everything with its own eyes and says what is not well and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
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
    """Check the database, the broker, clocks, processes, queues and disk. Exit code 1 when something FAILs."""
    findings = look(load(os.environ), canary_seconds)
    failed = sum(finding.verdict == "FAIL" for finding in findings)
    rows = [asdict(finding) for finding in findings]
    show({"healthy": not failed, "findings": rows}, table(COLUMNS, rows, limit=None))
    if failed:
        raise CommandFailed(f"{failed} of {len(findings)} checks failed", problem={"code": "unhealthy"})


def look(chosen: Settings, canary_seconds: float) -> list[Finding]:
    from orchestrator_cli.doctor.findings import FAIL, Finding, look_all

    missing, servers = [], {}
    try:
        chosen = replace(chosen, broker_url=broker_url(chosen))
        chosen = replace(chosen, database_url=database_url(chosen))
    except CannotStart as error:
        missing = [Finding("database", FAIL, error.message, error.next_step)]
    else:
        servers = {"database": look_at_database, "broker": look_at_broker}
    from orchestrator_cli.doctor.machine import around

    os.environ.update({"DATABASE_URL": chosen.database_url, "BROKER_URL": chosen.broker_url})
    found = missing + look_all({**servers, **around(chosen)}, ANSWER_SECONDS)
    if servers and answers(found, "broker"):
        found += look_all({"queues": queues_within(canary_seconds)}, canary_seconds + ANSWER_SECONDS)
    return found


def look_at_database() -> list[Finding]:
    from orchestrator_cli.doctor import database

    return database.look_at_database()


def look_at_broker() -> list[Finding]:
    from orchestrator_cli.doctor import broker

    return broker.look_at_broker()


def queues_within(seconds: float) -> Callable[[], list[Finding]]:
    from orchestrator_cli.doctor import canaries

    return lambda: canaries.look_at_queues(seconds)


def answers(findings: list[Finding], check: str) -> bool:
    return any(finding.check == check and finding.verdict == "ok" for finding in findings)
