"""`make demo`: the journey of one robot command, asked of the running service step by step."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import httpx

from models.kernel.errors import OrchestratorError
from models.kernel.settings import load
from orchestrator_cli.addresses import local_url
from orchestrator_cli.errors import CannotStart
from orchestrator_cli.home import Home
from orchestrator_cli.screen import say

DRIVE = {
    "command": "drive",
    "params": {"speed": 1.5, "direction": 90, "duration_seconds": 2},
    "priority": "high",
}
HINT = "start it with `make up` in another terminal"
LIST_FIELDS = (
    "id",
    "command",
    "status",
    "priority",
    "created_at",
    "timestamp",
    "name",
    "type",
    "value",
    "tags",
    "data",
    "count",
    "mean_ms",
    "p95_ms",
)
REFUSED = 400
SHORT = 60


def main() -> None:
    try:
        journey()
    except CannotStart as error:
        sys.exit(f"demo: {error.line()}")
    except OrchestratorError as error:
        sys.exit(f"demo: {error.message}")


def journey() -> None:
    with connect() as client:
        show("Is the service well?", client, "GET", "/")
        ticket = show("Please drive for two seconds", client, "POST", "/ticket", DRIVE)
        ticket_id = ticket["id"]
        show("Do it now", client, "POST", "/execute", {"ticket_id": ticket_id})
        show("What became of it?", client, "GET", f"/ticket/{ticket_id}")
        show("All tickets", client, "GET", "/tickets")
        show("How is the service doing?", client, "GET", "/telemetry/metrics")
        show("What happened, in order?", client, "GET", "/telemetry/events")


def connect() -> httpx.Client:
    """A client with the operator's credential.

    Raises CannotStart when there is none, which is so before the first `make up`.
    """
    chosen = load(os.environ)
    home = Home.at(chosen.home)
    try:
        token = home.token.read_text().strip()
    except OSError:
        raise CannotStart(f"there is no admin token in {home.directory}", next_step=HINT) from None
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=local_url(chosen), headers=headers, timeout=30, trust_env=False)


def show(question: str, client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask, show what was asked and what came back; returns the answer's JSON.

    Raises CannotStart when nobody answers or the answer is a refusal.
    """
    say(f"\n{question}")
    say(f"  {method} {path}" + (f"  {json.dumps(body)}" if body else ""))
    started = time.monotonic()
    try:
        answer = client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise CannotStart(f"the service at {client.base_url} does not answer: {error}", next_step=HINT) from None
    say(f"  {answer.status_code} {answer.reason_phrase} after {(time.monotonic() - started) * 1000:.0f} ms")
    try:
        content = answer.json()
    except ValueError:
        raise CannotStart(f"{method} {path} answered something that is not JSON") from None
    for line in table(content):
        say(f"    {line}")
    if answer.status_code >= REFUSED:
        raise CannotStart(f"{method} {path} was refused")
    return content


def table(content: Any) -> list[str]:
    """A few aligned lines: a list of things as rows, anything else as its fields."""
    if isinstance(content, list):
        return rows(content)
    if not isinstance(content, dict):
        return [short(content)]
    lists = {name: value for name, value in content.items() if isinstance(value, list) and value}
    lines = pairs({name: value for name, value in content.items() if name not in lists})
    for name, items in lists.items():
        lines.append(f"{name}:")
        lines.extend(f"  {line}" for line in rows(items))
    return lines


def pairs(fields: dict[str, Any]) -> list[str]:
    width = max(map(len, fields), default=0)
    return [f"{name:<{width}}  {short(value)}" for name, value in fields.items()]


def rows(items: list[Any], most: int = 8) -> list[str]:
    if not all(isinstance(item, dict) for item in items):
        return [short(item) for item in items[:most]]
    names = {name: None for item in items[:most] for name in item}
    columns = [name for name in LIST_FIELDS if name in names] or list(names)[:5]
    cells = [columns, *([cell(item.get(name)) for name in columns] for item in items[:most])]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [*lines, f"... and {len(items) - most} more"] if len(items) > most else lines


def cell(value: Any) -> str:
    """One value in a row; an object as name=value pairs."""
    if isinstance(value, dict):
        return short(" ".join(f"{name}={short(inner)}" for name, inner in value.items() if name != "ticket_id"))
    return short(value)


def short(value: Any) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHORT else text[: SHORT - 3] + "..."


if __name__ == "__main__":
    main()
