"""Callers who create tickets and set them going while something is killed, and what must be true afterwards."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import orjson

from tests.service.running import ASYNC, ENDED, Running, drive
from tests.service.waiting import eventually

CALLERS = 4
OUTCOMES = ["execution_completed", "execution_failed", "ticket_cancelled"]


class Load:
    """For the length of a block, each caller drives a robot of its own, again and again, and keeps what it was told."""

    def __init__(self, service: Running, robot: str) -> None:
        self.service = service
        self.robot = robot
        self.over = threading.Event()
        self.created: list[str] = []
        self.accepted: list[str] = []
        self.answered: dict[str, str] = {}
        self.pool = ThreadPoolExecutor(CALLERS)
        self.callers: list[Future[None]] = []

    def __enter__(self) -> Load:
        self.callers = [self.pool.submit(self.call, number) for number in range(CALLERS)]
        eventually(lambda: len(self.accepted) >= 2 * CALLERS, what="tickets are being set going")
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.pool.shutdown()
        for caller in self.callers:
            caller.result()

    def call(self, number: int) -> None:
        while not self.over.is_set():
            try:
                with self.service.client() as client:
                    self.one_ticket(client, f"{self.robot}-{number}", patient=number == 0)
            except (httpx.HTTPError, orjson.JSONDecodeError):
                self.over.wait(0.1)  # no answer: nothing was promised

    def one_ticket(self, client: httpx.Client, target: str, patient: bool) -> None:
        made = client.post("/ticket", json=drive(target, seconds=3))
        if made.status_code != 201:
            self.over.wait(0.1)
            return
        ticket_id = made.json()["id"]
        self.created.append(ticket_id)
        answer = client.post("/execute", json={"ticket_id": ticket_id}, headers=None if patient else ASYNC)
        if answer.status_code in (200, 202):
            self.accepted.append(ticket_id)
        if answer.status_code == 200:
            self.answered[ticket_id] = answer.json()["status"]
        self.over.wait(0.05)

    def told_after(self, moment: int) -> bool:
        """Whether every caller's present has moved on since so many had been accepted."""
        return len(self.accepted) >= moment + 2 * CALLERS

    def outcomes(self) -> list[dict[str, Any]]:
        """Every outcome that was recorded of an accepted execution."""
        question = "SELECT subject_id, to_state, reason FROM ledger WHERE subject_id = ANY(%s) AND topic = ANY(%s)"
        return self.service.rows(question, self.accepted, OUTCOMES)

    def assert_nothing_was_lost(self, *, excused: frozenset[str] = frozenset()) -> None:
        """Failures are only excused by these codes."""
        kept = self.service.rows("SELECT id FROM tickets WHERE id = ANY(%s)", self.created)
        assert len(kept) == len(self.created) == len(set(self.created))
        unfinished = "SELECT id, state FROM tickets WHERE id = ANY(%s) AND state <> ALL(%s)"
        eventually(
            lambda: not self.service.rows(unfinished, self.accepted, list(ENDED)), within=40, what="all have ended"
        )
        outcomes = self.outcomes()
        assert sorted(row["subject_id"] for row in outcomes) == sorted(self.accepted), "exactly one outcome each"
        failures = {row["subject_id"]: row["reason"] for row in outcomes if row["to_state"] != "completed"}
        assert set(failures.values()) <= excused, failures
        recorded = {row["subject_id"]: row["to_state"] for row in outcomes}
        assert self.answered == {ticket_id: recorded[ticket_id] for ticket_id in self.answered}
        twice = "SELECT ticket_id FROM sim_motions WHERE ticket_id = ANY(%s) GROUP BY ticket_id HAVING count(*) > 1"
        assert self.service.rows(twice, self.created) == []
        moved = self.service.rows("SELECT ticket_id FROM sim_motions WHERE ticket_id = ANY(%s)", self.accepted)
        assert {row["ticket_id"] for row in moved} >= set(self.accepted) - set(failures)
