"""What is planned once a connection stays quick: on tables that were nearly empty then and never analysed since."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text

from models.kernel import backlog
from models.kernel.clients import Caller
from models.kernel.session import dispose_engines, statement
from models.tickets import operations, queries, transitions
from models.tickets.operations import Attempt, Outcome
from tests.kernel.plans import rows_touched

MANY = 3000
FEW = 60  # rows that a statement may touch
HUNDRED = 100
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
    assert queries.find_clearances(connection, [(attempt.job_id, attempt.fence, attempt.target)])
    operations.release_ticket(connection, attempt, "worker:test")
    attempt = take(connection)
    operations.settle_ticket(connection, attempt, Outcome("completed", result={}), "worker:test")
    operations.cancel_ticket(connection, take(connection).ticket_id, caller)
    operations.cancel_ticket(connection, accept_and_send(connection, caller), caller)


def accept_and_send(connection: Connection, caller: Caller) -> str:
    ticket_id = str(operations.create_tickets(connection, [DRAFT], caller)[0]["id"])
    operations.accept_execution(connection, ticket_id, expires_in_seconds=60, force=False, caller=caller, sends=True)
    return ticket_id


@pytest.fixture(params=["few", "none"])
def grown(database: str, writer: Caller, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A connection that planned everything over a few rows, or none; since then there are many."""
    with statement() as connection:
        for table in TABLES:
            connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)"))
        carry_out(connection, writer)
        if request.param == "none":
            connection.execute(text("DELETE FROM jobs"))
        for table in TABLES:
            connection.execute(text(f"VACUUM ANALYZE {table}"))
    dispose_engines()
    with statement() as connection:
        for _ in range(FOR_GOOD):
            carry_out(connection, writer)
        owe(connection, MANY, writer)
        yield connection


def test_a_pick_reads_what_it_picks(grown: Connection) -> None:
    with rows_touched(grown) as touched:
        pick(grown)
    assert max(touched) <= FEW


def test_a_pick_of_many_reads_each_a_few_times(grown: Connection) -> None:
    with rows_touched(grown) as touched:
        assert len(backlog.pick_jobs(grown, transitions.QUEUE, HUNDRED, 60.0)) == HUNDRED
    assert max(touched) <= 10 * HUNDRED


def test_a_look_reads_the_attempts_it_is_about_however_many_are_going_on(grown: Connection) -> None:
    attempt = take(grown)
    others = """UPDATE jobs SET fence = nextval('fence_seq'), lease_until = clock_timestamp() + interval '30 seconds'
         WHERE fence IS NULL"""
    grown.execute(text(others))
    with rows_touched(grown) as touched:
        assert queries.find_clearances(grown, [(attempt.job_id, attempt.fence, attempt.target)])
    assert max(touched) <= FEW


def test_what_puts_jobs_back_reads_those_alone(grown: Connection) -> None:
    picked = [job.id for job in backlog.pick_jobs(grown, transitions.QUEUE, 2, 60.0)]
    with rows_touched(grown) as touched:
        backlog.hand_back_jobs(grown, picked)
        pick(grown)
        backlog.send_again(grown, transitions.QUEUE, 1, 0.0)
        backlog.send_passed_over(grown, transitions.QUEUE, 1, 60.0)
    assert max(touched) <= FEW


def test_an_acceptance_that_asks_whether_its_queue_is_calm_reads_no_queue(grown: Connection, writer: Caller) -> None:
    for sent in (0, MANY):
        change = "UPDATE jobs SET dispatched_at = CASE WHEN id <= :sent THEN clock_timestamp() END"
        grown.execute(text(change), {"sent": sent})
        with rows_touched(grown) as touched:
            accept_and_send(grown, writer)
        assert max(touched) <= FEW


def test_the_acts_of_an_attempt_read_its_own_rows(grown: Connection, writer: Caller) -> None:
    with rows_touched(grown) as touched:
        carry_out(grown, writer)
    assert len(touched) > 10
    assert max(touched) <= FEW
