"""Waits until GET /readyz says 200, and says what is missing until then."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from orchestrator_cli.errors import CannotStart
from orchestrator_cli.screen import Step, say
from orchestrator_cli.supervisor import Supervisor

PATIENCE = 60.0
LAST_LINES = 12
OK = 200


def missing(client: httpx.Client) -> str | None:
    """None when ready, else what /readyz names under `missing`, or why it does not answer."""
    try:
        answer = client.get("/readyz")
    except httpx.HTTPError:
        return "the web"
    if answer.status_code == OK:
        return None
    try:
        named = answer.json().get("missing", [])
    except (ValueError, AttributeError):
        named = []
    return ", ".join(map(str, named)) or f"an answer other than {answer.status_code} from /readyz"


def wait(supervisor: Supervisor, url: str, current: Step, patience: float = PATIENCE) -> None:
    """Return when ready.

    Raises CannotStart, after showing the failing processes' last lines, when patience ends.
    """
    deadline = time.monotonic() + patience
    with httpx.Client(base_url=url, timeout=2, trust_env=False) as client:
        while (lacking := missing(client)) is not None:
            current.note(f"waiting for {lacking}")
            if supervisor.has_ended():
                raise CannotStart("the supervisor ended", next_step=f"see {supervisor.home.logs}")
            if time.monotonic() >= deadline:
                explain(supervisor)
                raise CannotStart(
                    f"not ready after {patience:.0f} s: waiting for {lacking}", next_step=f"see {supervisor.home.logs}"
                )
            time.sleep(0.1)
    current.note("")


def explain(supervisor: Supervisor) -> None:
    """Show the end of each failing process's log."""
    say()
    for log in map(supervisor.home.log, supervisor.failing()):
        say(f"  last lines of {log}:")
        for line in tail(log):
            say(f"    {line}")


def tail(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()[-LAST_LINES:]
    except OSError:
        return ["(no log)"]
