"""`orchestrator schedules`: what happens every so often, and when it last did."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from orchestrator_cli.output import facts, show, table
from orchestrator_cli.service import Service, asking

COLUMNS = ("name", "every_seconds", "paused", "running", "next_at", "last_started_at", "last_duration_ms", "last_error")


@click.group()
def schedules() -> None:
    """What happens every so often."""


@schedules.command("list")
@asking
def list_schedules(service: Service) -> None:
    """All of them, with when they ran and will run."""
    answer = service.get("/scheduler/jobs")
    show(answer, table(COLUMNS, answer["jobs"], nothing="no schedule was declared yet"))


@schedules.command()
@click.argument("name")
@asking
def pause(service: Service, name: str) -> None:
    """Keep one from running until it is resumed."""
    act(service, name, "pause")


@schedules.command()
@click.argument("name")
@asking
def resume(service: Service, name: str) -> None:
    """Let a paused one run again."""
    act(service, name, "resume")


@schedules.command()
@click.argument("name")
@asking
def run(service: Service, name: str) -> None:
    """Run one now, out of turn."""
    act(service, name, "run")


def act(service: Service, name: str, verb: str) -> None:
    answer: dict[str, Any] = service.post(f"/scheduler/jobs/{quote(name, safe='')}/{verb}")
    show(answer, facts(answer))
