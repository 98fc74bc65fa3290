"""Whoever accepts an execution sends its message while the queue is calm; nobody is overtaken, and few are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import Connection, text

from models.kernel import backlog
from models.kernel.backlog import Ready
from models.kernel.clients import Caller
from models.kernel.job_parts import FEW_MESSAGES
from models.kernel.session import statement, transaction
from models.tickets import operations
from models.tickets.transitions import QUEUE

pytestmark = pytest.mark.usefixtures("database")

SCAN = {"command": "scan", "params": {}, "priority": "normal", "timeout_seconds": 30, "metadata": {}, "target": "r"}
DRIVE = SCAN | {"command": "drive", "params": {"speed": 1, "duration_seconds": 5}}
STOP = SCAN | {"command": "stop"}


def accept(caller: Caller, draft: Mapping[str, Any] = SCAN, *, sends: bool = True) -> dict[str, Any] | None:
    """What there is to send of a new ticket that was set going."""
    with statement() as connection:
        ticket_id = operations.create_tickets(connection, [dict(draft)], caller)[0]["id"]
        row = operations.accept_execution(
            connection, ticket_id, expires_in_seconds=300, force=False, caller=caller, sends=sends
        )
    return row.get("sent")


def job_of(ticket_id: str) -> dict[str, Any]:
    with statement() as connection:
        query = text("SELECT *, dispatched_at IS NOT NULL AS is_sent FROM jobs WHERE subject_id = :id")
        return dict(connection.execute(query, {"id": ticket_id}).mappings().one())


def picked(connection: Connection) -> list[str]:
    return [job.subject_id for job in backlog.pick_jobs(connection, QUEUE, 100, 60.0)]


def test_what_is_to_be_sent_is_what_the_dispatcher_would_send(writer: Caller) -> None:
    sent = accept(writer, SCAN | {"priority": "high"})
    assert sent is not None
    job = job_of(sent["subject_id"])
    assert Ready(**sent) == Ready(
        job["id"], job["task"], job["subject_id"], QUEUE, job["priority"], writer.correlation_id
    )
    assert (job["is_sent"], job["dispatches"], job["priority"]) == (True, 1, 1)
    with statement() as connection:
        assert picked(connection) == []


def test_who_does_not_send_leaves_it_to_the_dispatcher(writer: Caller) -> None:
    assert accept(writer, sends=False) is None
    with statement() as connection:
        assert len(picked(connection)) == 1


def test_nobody_is_overtaken_whatever_his_priority(writer: Caller) -> None:
    accept(writer, SCAN | {"priority": "low"}, sends=False)
    assert accept(writer, SCAN | {"priority": "critical"}) is None
    with statement() as connection:
        assert len(picked(connection)) == 2


def test_what_waits_in_another_queue_or_lane_holds_nobody_up(writer: Caller) -> None:
    accept(writer, STOP, sends=False)
    assert accept(writer, DRIVE) is not None
    assert accept(writer, DRIVE) is None, "it waits behind the other of its robot"
    assert accept(writer, DRIVE | {"target": "another"}) is not None


def test_what_waits_in_its_lane_is_not_sent(writer: Caller) -> None:
    accept(writer, DRIVE)
    with statement() as connection:
        second = operations.create_tickets(connection, [DRIVE], writer)[0]["id"]
        operations.accept_execution(connection, second, expires_in_seconds=300, force=False, caller=writer, sends=True)
    job = job_of(second)
    assert (job["waits"], job["is_sent"], job["dispatches"]) == (True, False, 0)


def test_a_stop_is_never_sent_the_guardian_takes_it_from_its_row(writer: Caller) -> None:
    assert accept(writer, STOP) is None


def test_few_messages_go_past_the_dispatcher(writer: Caller) -> None:
    sent = [accept(writer) for _ in range(FEW_MESSAGES + 2)]
    assert [each is not None for each in sent] == [True] * FEW_MESSAGES + [False] * 2


def test_messages_that_were_taken_or_are_old_make_room(writer: Caller) -> None:
    sent = [accept(writer) for _ in range(FEW_MESSAGES)]
    assert sent[0] is not None
    with statement() as connection:
        assert operations.take_ticket(connection, sent[0]["id"], "worker:test")
    assert accept(writer) is not None
    assert accept(writer) is None
    with transaction() as connection:
        connection.execute(text("UPDATE jobs SET dispatched_at = clock_timestamp() - interval '2 seconds'"))
    assert accept(writer) is not None


def test_what_another_accepts_at_the_same_moment_is_sent_by_him_alone(writer: Caller) -> None:
    with transaction() as first, transaction() as second:
        ids = []
        for connection in (first, second):
            ticket_id = operations.create_tickets(connection, [SCAN], writer)[0]["id"]
            row = operations.accept_execution(
                connection, ticket_id, expires_in_seconds=300, force=False, caller=writer, sends=True
            )
            assert row["sent"]["subject_id"] == ticket_id
            ids.append(row["sent"]["id"])
        assert len(set(ids)) == 2
