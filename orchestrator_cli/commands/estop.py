"""`orchestrator estop`: stop all robots or one, see what is stopped, release it."""

from __future__ import annotations

from typing import Any

import click

from orchestrator_cli.output import facts, show, table
from orchestrator_cli.service import Service, asking

ALL = "all"
COLUMNS = ("scope", "engaged_at", "engaged_by", "reason")
OWED = ("target", "ticket_id", "ordered_at", "tries", "error")

scope_option = click.option("--scope", default=ALL, show_default=True, metavar="all|TARGET", help="Which robots.")


@click.group()
def estop() -> None:
    """Stop all robots or one, see what is stopped, release it."""


@estop.command()
@asking
def status(service: Service) -> None:
    """Show what is stopped, by whom and why."""
    report(service.get("/estop"))


@estop.command()
@scope_option
@click.option("--reason", required=True, help="Why; it is told to everybody who is refused.")
@asking
def engage(service: Service, scope: str, reason: str) -> None:
    """Stop what moves, refuse what would move, until it is released."""
    report(service.post("/estop", {"scope": scope, "reason": reason}))


@estop.command()
@scope_option
@click.option("--reason", required=True, help="Why it is safe again.")
@click.option("--force", is_flag=True, help="Also while robots have not taken their stop and may be moving.")
@asking
def release(service: Service, scope: str, reason: str, force: bool) -> None:
    """Let robots move again. Nothing starts by itself."""
    report(service.ask("DELETE", "/estop", json={"scope": scope, "reason": reason, "force": force}))


def report(answer: dict[str, Any]) -> None:
    latches = answer.get("latches", [])
    owed = answer.get("owed_stops", [])
    others = {name: value for name, value in answer.items() if name not in ("latches", "owed_stops")}
    lines = [*facts(others), *table(COLUMNS, latches, nothing="nothing is stopped")]
    show(answer, [*lines, *(["may still be moving:", *table(OWED, owed)] if owed else [])])
