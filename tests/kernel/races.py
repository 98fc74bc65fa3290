"""Races on two real connections, without sleeping: one holds its locks until the other is seen waiting for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sqlalchemy import Connection, text

from models.kernel import clock
from models.kernel.session import statement, transaction

DEADLINE_SECONDS = 20.0

Act = Callable[[Connection], Any]

WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")


def alone(act: Act) -> Any:
    with statement() as connection:
        return act(connection)


def until(true: Callable[[], object], what: str) -> None:
    """Ask until the answer is yes, at most DEADLINE_SECONDS long."""
    deadline = clock.monotonic() + DEADLINE_SECONDS
    while not true():
        assert clock.monotonic() < deadline, f"never happened: {what}"


def waits_or_ends(future: Future[Any]) -> None:
    until(lambda: future.done() or alone(lambda c: c.scalar(WAITING)), "the second waits for the first")


def meanwhile(first: Act, second: Act) -> tuple[Any, Any]:
    """`first` holds its locks, uncommitted, while `second` runs into them; then it commits. Answers what each got."""
    with ThreadPoolExecutor(1) as pool:
        with transaction() as connection:
            one = first(connection)
            other = pool.submit(alone, second)
            waits_or_ends(other)
        return one, other.result(DEADLINE_SECONDS)


def together(*acts: Act) -> list[Any]:
    """All acts at once, each on a connection of its own, let go at the same moment."""
    barrier = threading.Barrier(len(acts))

    def run(act: Act) -> Any:
        with statement() as connection:
            connection.execute(text("SELECT 1"))
            barrier.wait(DEADLINE_SECONDS)
            return act(connection)

    with ThreadPoolExecutor(len(acts)) as pool:
        return [future.result(60) for future in [pool.submit(run, act) for act in acts]]
