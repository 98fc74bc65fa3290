"""`orchestrator tickets`: create, carry out, look at, follow, cancel and repeat robot commands."""

from __future__ import annotations

import json
from typing import Any, NoReturn
from urllib.parse import quote

import click

from orchestrator_cli.errors import Unsuccessful, WrongUsage
from orchestrator_cli.operations import follow
from orchestrator_cli.output import facts, show, table
from orchestrator_cli.service import Service, asking

PRIORITIES = ("low", "normal", "high", "critical")
STATES = ("pending", "queued", "executing", "completed", "failed", "cancelled")
COLUMNS = ("id", "command", "target", "priority", "status", "created_at", "error")
LONGEST_RUN_SECONDS = 86_400 + 3600 + 30
"""The longest wait to start and the longest timeout of a ticket, and some patience: the service answers before."""


class Json(click.ParamType):
    """A JSON object on the command line."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            found = json.loads(value, parse_constant=refuse_constant)
        except (ValueError, RecursionError) as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail("must be a JSON object", param, ctx)
        return found


class Pair(click.ParamType):
    """name=value; a value that is no JSON is a text."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        name, separator, text = str(value).partition("=")
        if not separator or not name:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        try:
            return name, json.loads(text, parse_constant=refuse_constant)
        except (ValueError, RecursionError):
            return name, text


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


@click.group()
def tickets() -> None:
    """Robot commands."""


@tickets.command()
@click.argument("command")
@click.option("-p", "--param", "pairs", type=Pair(), multiple=True, help="One parameter, as speed=1.5; repeatable.")
@click.option("--params", type=Json(), help="All parameters as one JSON object; --param adds to it.")
@click.option("--target", help="The robot.")
@click.option("--priority", type=click.Choice(PRIORITIES))
@click.option("--timeout", "timeout_seconds", type=int, metavar="SECONDS", help="Longest execution.")
@click.option("--metadata", type=Json(), help="Whatever you want to keep with it.")
@click.option("--execute", "at_once", is_flag=True, help="Carry it out at once and wait for the outcome.")
@asking
def create(service: Service, *, pairs: tuple[tuple[str, Any], ...], at_once: bool, **given: Any) -> None:
    """Create a ticket, for example: tickets create drive -p speed=1.5 -p duration_seconds=2"""
    given["params"] = {**(given["params"] or {}), **dict(pairs)}
    ticket = service.post("/ticket", {name: value for name, value in given.items() if value is not None})
    if at_once:
        carry_out(service, {"ticket_id": ticket["id"]})
    else:
        show(ticket, facts(ticket))


@tickets.command()
@click.argument("ticket_id")
@click.option("--force", is_flag=True, help="Run a ticket again that has ended.")
@click.option("--expires-in", type=int, metavar="SECONDS", help="Longest wait to start.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Answer with the outcome, or at once.")
@asking
def execute(service: Service, ticket_id: str, force: bool, expires_in: int | None, wait: bool) -> None:
    """Carry a ticket out. Exit code 5 says that it was tried and failed."""
    body: dict[str, Any] = {"ticket_id": ticket_id, "force": force}
    if expires_in is not None:
        body["expires_in_seconds"] = expires_in
    if wait:
        carry_out(service, body)
    else:
        accepted = service.post("/execute", body, headers={"Prefer": "respond-async"})
        show(accepted, facts(accepted))


def carry_out(service: Service, body: dict[str, Any]) -> None:
    """Show the outcome. Raises Unsuccessful when it is not the one asked for."""
    outcome = service.post("/execute", body, answer_seconds=LONGEST_RUN_SECONDS)
    show(outcome, facts(outcome))
    if outcome["status"] != "completed":
        raise Unsuccessful(
            f"ticket {outcome['ticket_id']} ended as {outcome['status']}: {outcome.get('error') or outcome['message']}",
            problem={"code": outcome.get("error_code") or "unsuccessful"},
        )


@tickets.command("show")
@click.argument("ticket_id")
@asking
def show_ticket(service: Service, ticket_id: str) -> None:
    """One ticket and its whole life."""
    ticket = service.get(path_of(ticket_id))
    show(ticket, facts(ticket))


def path_of(ticket_id: str) -> str:
    return f"/ticket/{quote(ticket_id, safe='')}"


@tickets.command("list")
@click.option("--status", type=click.Choice(STATES))
@click.option("--command")
@click.option("--priority", type=click.Choice(PRIORITIES))
@click.option("--target")
@click.option("--limit", type=int, default=20, show_default=True)
@click.option("--cursor", help="The next page, as the page before names it.")
@asking
def list_tickets(service: Service, **wanted: Any) -> None:
    """Tickets, newest first."""
    page = service.get("/tickets", **wanted)
    lines = table(COLUMNS, page["tickets"], nothing="no ticket")
    total = f"{len(page['tickets'])} of {page['total']}{' or more' if page['total_is_estimate'] else ''}"
    more = f"; the next page: --cursor {page['next_cursor']}" if page["next_cursor"] else ""
    show(page, [*lines, "", total + more])


@tickets.command()
@click.argument("ticket_id")
@asking
def cancel(service: Service, ticket_id: str) -> None:
    """Cancel a ticket that has not ended; a robot that moves under it is stopped."""
    ticket = service.post(f"{path_of(ticket_id)}/cancel")
    show(ticket, facts(ticket))


@tickets.command()
@click.argument("ticket_id", nargs=-1)
@click.option("--status", type=click.Choice(("failed", "cancelled", "completed")))
@click.option("--command")
@click.option("--priority", type=click.Choice(PRIORITIES))
@click.option("--target")
@click.option("--created-before", metavar="TIME", help="As 2026-11-21T12:00:00Z.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Follow it to its end.")
@asking
def replay(service: Service, ticket_id: tuple[str, ...], wait: bool, **chosen: Any) -> None:
    """Run tickets again that have ended: these, or all that the options name."""
    wanted = {name: value for name, value in chosen.items() if value is not None}
    if bool(ticket_id) == bool(wanted):
        raise WrongUsage("name tickets, or options that choose them, not both and not neither")
    body = {"ids": list(ticket_id)} if ticket_id else {"filter": wanted}
    follow(service, service.post("/tickets/replay", body), wait)


@tickets.command()
@click.argument("ticket_id", required=False)
@click.option("--command")
@click.option("--target")
@click.option("--topic", help="Only this kind of event, as completed.")
@click.option("--after", metavar="CURSOR", help="Begin after this event; without it, now.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
@asking
def watch(service: Service, count: int | None, **filters: Any) -> None:
    """Follow what happens, as a live table on a terminal, else a line each. Ctrl-C ends it with exit code 0."""
    from orchestrator_cli import watching

    watching.watch(service, {name: value for name, value in filters.items() if value is not None}, count)
