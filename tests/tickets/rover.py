"""One simulated robot, `ROBOT`, and the words that the tests use of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, TextClause, text

from models.kernel.clock import monotonic, utcnow
from models.kernel.session import statement, transaction
from models.tickets import motions, robots
from orchestrator_tasks.tickets.drivers.base import (
    Command,
    Interrupt,
)

ROBOT = "rover"
FAST = 1000.0  # simulated seconds in a real one


def soon() -> datetime:
    return utcnow() + timedelta(seconds=60)


def begin(fence: int = 1, target: str = ROBOT, **changed: Any) -> motions.Motion:
    order: dict[str, Any] = {"speed": 1.0, "direction": 0, "seconds": 10, "time_scale": 1.0, "not_after": soon()}
    with transaction() as connection:
        return robots.begin_motion(connection, target, fence, f"ticket-{fence}", **order | changed)


def stop(fence: int, reason: str = "stop") -> motions.Robot | None:
    with transaction() as connection:
        return robots.stop_motion(connection, ROBOT, fence, reason)


def finish(fence: int) -> motions.Motion:
    with transaction() as connection:
        return robots.finish_motion(connection, ROBOT, fence)


def look() -> motions.Robot:
    with statement() as connection:
        return motions.get_robot(connection, ROBOT)


def all_motions() -> list[motions.Motion]:
    with statement() as connection:
        return motions.list_motions(connection, ROBOT)


def let_pass(seconds: float) -> None:
    """Let time pass for the robots: what has begun began that much earlier."""
    with transaction() as connection:
        for table, columns in {"sim_robots": ("started_at", "until"), "sim_motions": ("began_at", "until")}.items():
            shifts = ", ".join(f"{column} = {column} - make_interval(secs => :by)" for column in columns)
            still = "ended_at IS NULL" if table == "sim_motions" else "true"
            connection.execute(text(f"UPDATE {table} SET {shifts} WHERE {still}"), {"by": seconds})


def drive(fence: int = 1, seconds: float = 5, **changed: Any) -> Command:
    params = {"speed": 1.5, "duration_seconds": seconds}
    facts: dict[str, Any] = {"ticket_id": f"ticket-{fence}", "target": ROBOT, "fence": fence, "not_after": soon()}
    return Command(**{"name": "drive", "params": params} | facts | changed)


WAITING = text("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")


def poll(connection: Connection, question: TextClause, **facts: Any) -> None:
    """Ask the database until the answer is yes."""
    deadline = monotonic() + 10
    while monotonic() < deadline:
        if connection.execute(question, facts).scalar_one():
            return
    raise AssertionError(f"never: {question}")


class Meanwhile(Interrupt):
    """Nothing is waited for: what would happen during the wait happens, then its time has passed."""

    def __init__(self, *events: Callable[[], object]) -> None:
        super().__init__()
        self.events = list(events)
        self.waits: list[float] = []

    def wait(self, seconds: float) -> str | None:
        reason = super().wait(0)
        if reason is None and seconds > 0:
            self.waits.append(seconds)
            if self.events:
                self.events.pop(0)()
        return super().wait(0)
