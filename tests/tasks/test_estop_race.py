"""200 executions race an e-stop, on real connections: nothing begins after it. ESTOP_ROUNDS says how many races."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import func, select

from models.kernel.clients import Caller
from models.kernel.errors import Conflict
from models.kernel.session import statement
from models.tickets import estop, operations
from orchestrator_tasks import guardian, hints
from orchestrator_tasks.keeper import Keeper
from orchestrator_tasks.tickets import tasks
from orchestrator_tasks.tickets.tasks import perform
from tests.kernel.races import until
from tests.service.waiting import eventually
from tests.tasks.owed import change, rows

ROUNDS = int(os.environ.get("ESTOP_ROUNDS", "3"))
TICKETS, ROBOTS, CALLERS, WORKERS = 200, 25, 6, 16
READY = "SELECT id, subject_id FROM jobs WHERE fence IS NULL AND NOT waits ORDER BY random() LIMIT 1"


@pytest.fixture
def tickets(database: str, writer: Caller, set_to: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pending drives over all robots: many short ones, so that some is always about to begin, and a few long ones."""
    set_to(database_pool=CALLERS + WORKERS + 10, sim_time_scale=10)
    monkeypatch.setattr(hints, "send", lambda *_: None)
    monkeypatch.setattr(tasks, "keeper", Keeper())
    common = {"command": "drive", "priority": "normal", "timeout_seconds": 30, "metadata": {}}
    lasting = [{"speed": 1.0, "duration_seconds": 0.1 if n % 8 else 5} for n in range(TICKETS)]
    with statement() as connection:
        drafts = [{**common, "target": f"r{n % ROBOTS}", "params": params} for n, params in enumerate(lasting)]
        return [str(row["id"]) for row in operations.create_tickets(connection, drafts, writer)]


@contextlib.contextmanager
def guarding() -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=guardian.run, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        change("SELECT pg_notify('orchestrator_stops', '')")
        thread.join(20)


class Race:
    """Callers who execute tickets, workers who carry out what is owed, and what was answered."""

    def __init__(self, tickets: list[str], caller: Caller) -> None:
        self.left = list(tickets)
        self.caller = caller
        self.accepted: list[str] = []
        self.refused: dict[str, str] = {}
        self.over = threading.Event()

    def call(self) -> None:
        while self.left:
            with contextlib.suppress(IndexError):
                self.execute(self.left.pop())

    def execute(self, ticket_id: str) -> None:
        try:
            with statement() as connection:
                operations.accept_execution(
                    connection, ticket_id, expires_in_seconds=60, force=False, caller=self.caller
                )
        except Conflict as error:
            self.refused[ticket_id] = error.code
        else:
            self.accepted.append(ticket_id)

    def work(self) -> None:
        while not self.over.is_set():
            for job in rows(READY):
                perform(job["id"], job["subject_id"], None)

    def engage(self, at: int) -> datetime:
        """Engage once so many are accepted and some robot moves; the database's clock right after the commit."""
        until(lambda: len(self.accepted) >= at, f"{at} are accepted")
        until(lambda: rows("SELECT FROM sim_motions"), "a robot moves")
        with statement() as connection:
            assert estop.engage_estop(connection, "all", "smoke", self.caller)
            engaged_at: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        with statement() as connection:
            estop.sweep_tickets(connection, self.caller.name)
        return engaged_at

    def run(self, at: int) -> datetime:
        with ThreadPoolExecutor(CALLERS + WORKERS) as pool, guarding():
            try:
                working = [pool.submit(self.work) for _ in range(WORKERS)]
                calling = [pool.submit(self.call) for _ in range(CALLERS)]
                engaged_at = self.engage(at)
                for future in calling:
                    future.result(60)
                eventually(lambda: not rows("SELECT FROM jobs"), within=30, what="nothing is owed")
                owed = "SELECT FROM stop_orders WHERE done_at IS NULL"
                eventually(lambda: not rows(owed), within=30, what="every stop is taken")
            finally:
                self.over.set()
            for future in working:
                future.result(60)
        return engaged_at


@pytest.mark.parametrize("number", range(ROUNDS))
def test_no_motion_begins_after_an_estop_that_executions_race(tickets: list[str], writer: Caller, number: int) -> None:
    race = Race(tickets, writer)
    engaged_at = race.run(at=1 + number * 37 % 150)
    late = rows("SELECT * FROM sim_motions WHERE began_at > :at", at=engaged_at)
    assert late == []
    assert rows("SELECT FROM sim_motions WHERE ended_at IS NULL") == []
    states = {row["id"]: (row["state"], row["error_code"]) for row in rows("SELECT id, state, error_code FROM tickets")}
    assert {states[ticket_id] for ticket_id in race.accepted} <= {("completed", None), ("failed", "emergency_stop")}
    assert {states[ticket_id] for ticket_id in race.refused} <= {("pending", None)}
    assert set(race.refused.values()) <= {"emergency_stop"}
    assert len(race.accepted) + len(race.refused) == TICKETS
