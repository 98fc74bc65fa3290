"""`orchestrator dead-letters`: work that ended without doing what it was for, and waits for a word."""

from __future__ import annotations

import click

from orchestrator_cli.errors import WrongUsage
from orchestrator_cli.operations import follow
from orchestrator_cli.output import show, table
from orchestrator_cli.service import Service, asking

COLUMNS = ("id", "task", "subject_id", "code", "error", "died_at")


@click.group("dead-letters")
def dead_letters() -> None:
    """Work that ended without doing what it was for."""


@dead_letters.command("list")
@click.option("--task", help="Only of this task.")
@click.option("--code", help="Only those that died of this.")
@click.option("--cursor", help="The next page, as the page before names it.")
@asking
def list_letters(service: Service, task: str | None, code: str | None, cursor: str | None) -> None:
    """Those that wait, oldest first."""
    page = service.get("/dead-letters", task=task, code=code, cursor=cursor)
    lines = table(COLUMNS, page["dead_letters"], nothing="no dead letter waits")
    more = [f"more: --cursor {page['next_cursor']}"] if page.get("next_cursor") else []
    show(page, [*lines, *more])


@dead_letters.command()
@click.argument("letter", nargs=-1, type=click.IntRange(1, 2**63 - 1))
@click.option("--task", help="All of this task.")
@click.option("--code", help="All that died of this.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Follow a replay of many to its end.")
@asking
def replay(service: Service, letter: tuple[int, ...], task: str | None, code: str | None, wait: bool) -> None:
    """Do the work again: of these letters, or of all that --task and --code name."""
    wanted = {name: value for name, value in (("task", task), ("code", code)) if value is not None}
    if bool(letter) == bool(wanted):
        raise WrongUsage("name letters, or --task or --code, not both and not neither")
    if wanted:
        follow(service, service.post("/dead-letters/replay", {"filter": wanted}), wait)
        return
    answers = [service.post(f"/dead-letters/{number}/replay") for number in letter]
    show(answers, [f"replayed {number}" for number in letter])
