"""Operations over many tickets against workers and against each other: every ticket has one history."""

from __future__ import annotations

from typing import Any

from models.kernel.transition import LaneBusy
from models.tickets import batches, operations
from orchestrator_tasks.kernel import bulk as worker
from tests.kernel.races import together
from tests.tasks.desk import Desk, states
from tests.tasks.owed import rows

MANY = 400


def carry_out(desk: Desk, operation_id: str) -> Any:
    return lambda _connection: worker.run(desk.job(operation_id), operation_id)


def told(topic: str) -> dict[str, int]:
    (row,) = rows(
        "SELECT count(*) AS n, count(DISTINCT subject_id) AS tickets FROM ledger WHERE topic = :topic", topic=topic
    )
    return row


def test_a_cancellation_of_many_races_workers_that_take_them_and_ends_each_once(desk: Desk) -> None:
    ticket_ids = desk.create(MANY)
    desk.do(batches.EXECUTE, ids=ticket_ids)
    jobs = [row["id"] for row in rows("SELECT id FROM jobs WHERE task = 'tickets.execute' ORDER BY id DESC")]

    def take_all(connection: Any) -> None:
        for job in jobs:
            operations.take_ticket(connection, job, "worker:test")

    operation_id = desk.ask(batches.CANCEL, filter={"target": "rover"})
    together(take_all, carry_out(desk, operation_id))
    operation = desk.operation(operation_id)
    assert (operation["state"], operation["done"], operation["refused"]) == ("completed", MANY, {})
    assert states() == {"cancelled": MANY}
    assert told("ticket_cancelled") == {"n": MANY, "tickets": MANY}
    assert rows("SELECT count(*) AS n FROM jobs") == [{"n": 0}]


def test_operations_over_the_same_tickets_wait_for_each_other_and_none_fails(desk: Desk) -> None:
    ticket_ids = desk.create(MANY)
    backwards = ticket_ids[::-1]
    asked = [
        desk.ask(batches.EXECUTE, filter={"target": "rover"}),
        desk.ask(batches.EXECUTE, ids=backwards),
        desk.ask(batches.CANCEL, filter={"target": "rover"}),
        desk.ask(batches.CANCEL, ids=backwards),
    ]
    together(*(carry_out(desk, operation_id) for operation_id in asked))
    ended = [desk.operation(operation_id) for operation_id in asked]
    assert {operation["state"] for operation in ended} == {"completed"}
    assert ended[0]["done"] + ended[1]["done"] == told("ticket_queued")["n"] == told("ticket_queued")["tickets"]
    assert ended[2]["done"] + ended[3]["done"] == told("ticket_cancelled")["n"] == MANY
    assert states() == {"cancelled": MANY}


def test_a_busy_lane_keeps_no_cancellation_from_ending_what_waits_in_it(desk: Desk) -> None:
    drive = {"command": "drive", "params": {"speed": 1, "duration_seconds": 5}}
    first, *_ = desk.create(20, **drive)
    desk.do(batches.EXECUTE, filter={"target": "rover"})
    jobs = [row["id"] for row in rows("SELECT id FROM jobs ORDER BY id")]

    def take_all(connection: Any) -> None:
        for job in jobs:
            try:
                operations.take_ticket(connection, job, "worker:test")
            except LaneBusy:
                continue

    operation_id = desk.ask(batches.CANCEL, filter={"target": "rover"})
    together(take_all, carry_out(desk, operation_id))
    assert states() == {"cancelled": 20}
    moved = rows("SELECT subject_id AS id FROM ledger WHERE topic = 'execution_started' ORDER BY seq")
    stopped = rows("SELECT ticket_id AS id FROM stop_orders ORDER BY id")
    assert sorted(row["id"] for row in stopped) == sorted(row["id"] for row in moved)
    assert {row["id"] for row in moved[:1]} <= {first}
