"""A stage on which the kernel is played in the test's own process, with everything recorded as in a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text

from models.kernel.clients import Caller
from models.kernel.hints import redis_url
from models.kernel.session import statement, transaction
from models.kernel.settings import settings
from models.tickets import operations
from models.tickets.operations import Attempt
from orchestrator_tasks import hints
from orchestrator_tasks.keeper import Keeper
from orchestrator_tasks.tickets import tasks
from tests.chaos.evidence import Evidence
from tests.chaos.history import History
from tests.chaos.recorder import INSTALL, read_evidence
from tests.tasks.conftest import leave_broker, use_broker
from tests.tasks.owed import rows

DRAFT = {"command": "scan", "params": {}, "priority": "normal", "timeout_seconds": 30, "metadata": {}, "target": "r1"}


class Stage:
    """Callers' acts on the kernel itself, each in the history, and the evidence that they leave."""

    def __init__(self, history: History) -> None:
        self.history = history

    def caller(self, correlation_id: str) -> Caller:
        return Caller("tester", "default", frozenset({"read", "write", "admin"}), correlation_id)

    def create(self, **draft: Any) -> str:
        call = self.history.begin("tester", "create", draft)
        with statement() as connection:
            made = operations.create_tickets(connection, [{**DRAFT, **draft}], self.caller(call.correlation_id))
        ticket_id = str(made[0]["id"])
        self.history.end(call, 201, {"id": ticket_id})
        return ticket_id

    def execute(self, ticket_id: str) -> str:
        call = self.history.begin("tester", "execute", {"ticket_id": ticket_id})
        caller = self.caller(call.correlation_id)
        with statement() as connection:
            operations.accept_execution(connection, ticket_id, expires_in_seconds=60, force=False, caller=caller)
        self.history.end(call, 202, {})
        return ticket_id

    def job(self, ticket_id: str) -> int:
        return int(rows("SELECT id FROM jobs WHERE subject_id = :id", id=ticket_id)[0]["id"])

    def take(self, ticket_id: str) -> Attempt:
        with statement() as connection:
            attempt = operations.take_ticket(connection, self.job(ticket_id), "worker:test")
        assert attempt is not None
        return attempt

    def evidence(self, **others: Any) -> Evidence:
        found = read_evidence(rows)
        live = [ticket for ticket in found["tickets"] if ticket["state"] in ("queued", "executing")]
        settled_after = None if live else 0.0
        return Evidence(calls=self.history.calls, now=time.time(), settled_after=settled_after, **found, **others)


@pytest.fixture
def stage(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(hints, "send", lambda *_: None)
    monkeypatch.setattr(tasks, "keeper", Keeper())
    with transaction() as connection:
        connection.execute(text(INSTALL))
    history = History(tmp_path / "history.jsonl")
    yield Stage(history)
    history.close()


@pytest.fixture
def valkey(broker: str) -> Iterator[redis.Redis]:
    """An empty broker, which Celery in this process uses."""
    use_broker(broker)
    with redis.Redis.from_url(redis_url(broker)) as client:
        client.flushall()
        yield client
        client.flushall()
    leave_broker()


@pytest.fixture
def scaled(environment: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how many simulated seconds are in a real one."""

    def change(scale: float) -> None:
        environment.setenv("ORCHESTRATOR_SIM_TIME_SCALE", str(scale))
        settings.cache_clear()

    return change
