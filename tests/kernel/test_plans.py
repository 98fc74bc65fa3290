"""What is planned once a connection stays quick: on tables that were nearly empty then and never analysed since."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, text

from models.kernel import backlog
from models.kernel.clients import Caller
from models.kernel.prepared import Prepared
from models.kernel.session import dispose_engines, statement
from models.tickets import operations, queries, transitions
from models.tickets.operations import Attempt, Outcome

MANY = 3000
FEW = 60  # rows that any part of a plan may come to
FOR_GOOD = 8  # calls, after which Postgres plans no more
DRAFT = {"command": "scan", "params": {}, "priority": "normal", "timeout_seconds": 30, "metadata": {}, "target": "r"}
TABLES = ("jobs", "tickets")


def owe(connection: Connection, count: int, caller: Caller) -> None:
    made = operations.create_tickets(connection, [DRAFT] * count, caller)
    given = [{"id": row["id"], "expires_in_seconds": 300.0, "correlation_id": "c", "turn": 1} for row in made]
    transitions.ACCEPT(connection, given, actor="test", correlation_id="c")


def pick(connection: Connection) -> int:
    return backlog.pick_jobs(connection, transitions.QUEUE, 1, 60.0)[0].id


def take(connection: Connection) -> Attempt:
    attempt = operations.take_ticket(connection, pick(connection), "worker:test")
    assert attempt is not None
    return attempt


def carry_out(connection: Connection, caller: Caller) -> None:
    """Each act once, so that each is planned."""
    owe(connection, 2, caller)
    attempt = take(connection)
    assert queries.find_clearance(connection, attempt.job_id, attempt.fence, attempt.target)
    operations.release_ticket(connection, attempt, "worker:test")
    attempt = take(connection)
    operations.settle_ticket(connection, attempt, Outcome("completed", result={}), "worker:test")
    operations.cancel_ticket(connection, take(connection).ticket_id, caller)


@pytest.fixture
def grown(database: str, writer: Caller) -> Iterator[Connection]:
    """A connection that planned everything over a few rows; since then there are many."""
    with statement() as connection:
        for table in TABLES:
            connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)"))
        carry_out(connection, writer)
        for table in TABLES:
            connection.execute(text(f"VACUUM ANALYZE {table}"))
    dispose_engines()
    with statement() as connection:
        for _ in range(FOR_GOOD):
            carry_out(connection, writer)
        owe(connection, MANY, writer)
        yield connection


def rows_of(plan: Mapping[str, Any]) -> int:
    """The most rows that one part of a plan read, whether it kept them or not."""
    dropped = sum(plan.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Join Filter", "Index Recheck"))
    own = (plan["Actual Rows"] + dropped) * plan["Actual Loops"]
    return max([round(own), *(rows_of(part) for part in plan.get("Plans", []))])


def read_by(connection: Connection, prepared: Prepared, call: Mapping[str, Any]) -> int:
    """The most rows that one part of the statement's plan reads; what it does is undone."""
    connection.exec_driver_sql("BEGIN")
    try:
        found = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {prepared.call}", dict(call)).scalar_one()
        return rows_of(found[0]["Plan"])
    finally:
        connection.exec_driver_sql("ROLLBACK")


def of_act(row: Mapping[str, Any]) -> dict[str, Any]:
    rows = orjson.dumps([row]).decode()
    return {"rows": rows, "actor": "test", "reason": None, "correlation_id": "c", "lease": 15.0}


def test_a_pick_reads_what_it_picks(grown: Connection) -> None:
    call = {"queue": transitions.QUEUE, "slots": 5, "aging": 60.0, "aged_slots": 1}
    assert read_by(grown, backlog.PICK, call) <= FEW


def test_a_take_reads_what_it_takes(grown: Connection) -> None:
    assert read_by(grown, transitions.TAKE.prepared, of_act({"job_id": pick(grown)})) <= FEW


def test_a_look_reads_what_it_looks_at(grown: Connection) -> None:
    held = take(grown)
    call = {"job_ids": [held.job_id], "fences": [held.fence], "targets": [held.target]}
    assert read_by(grown, queries.CLEARANCE, call) <= FEW


@pytest.mark.parametrize("act", [transitions.SETTLE, transitions.RELEASE], ids=["settle", "release"])
def test_the_end_of_an_attempt_reads_its_own_rows(grown: Connection, act: Any) -> None:
    held = take(grown)
    row = {"job_id": held.job_id, "fence": held.fence, "to": "completed", "result": {}}
    assert read_by(grown, act.prepared, of_act(row)) <= FEW


def test_a_cancellation_reads_its_own_rows(grown: Connection) -> None:
    ticket = queries.get_ticket(grown, take(grown).ticket_id)
    assert read_by(grown, transitions.CANCEL.prepared, of_act({"id": ticket["id"], "revision": None})) <= FEW


def test_an_acceptance_reads_its_own_rows(grown: Connection, writer: Caller) -> None:
    (made,) = operations.create_tickets(grown, [DRAFT], writer)
    row = {"id": made["id"], "expires_in_seconds": 300.0, "correlation_id": "c", "turn": 1}
    assert read_by(grown, transitions.ACCEPT.prepared, of_act(row)) <= FEW
