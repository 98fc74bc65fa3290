"""Operations over many tickets, as a worker carries them out: each once, each refusal counted, come what may."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from models.kernel import bulk, bulk_moves
from models.kernel.bulk import Run
from models.kernel.bulk_acts import REGISTRY
from models.kernel.clients import Caller
from models.kernel.dead_letters import REPLAY, replay_as_registered
from models.kernel.errors import IllegalTransition, LeaseLost
from models.kernel.jobs import Held, renew
from models.kernel.latch import engage_latch, release_latch
from models.kernel.session import statement, transaction
from models.tickets import batches, operations
from orchestrator_tasks.keeper import REVOKED, SHUTDOWN, TIMEOUT
from orchestrator_tasks.kernel import bulk as worker
from tests.kernel.races import alone, together, waits_or_ends
from tests.tasks.desk import Desk, states
from tests.tasks.owed import change, rows


def end(ticket_ids: Sequence[str], state: str) -> None:
    """As if they had been carried out."""
    change(
        "UPDATE tickets SET state = :state, completed_at = now(), result = '{}', error = 'x' WHERE id = ANY(:ids)",
        state=state,
        ids=list(ticket_ids),
    )


def lose(taken: Run) -> None:
    """What the reaper does when the worker falls silent; then the next attempt is due."""
    held = Held(taken.job_id, taken.operation_id, taken.fence, taken.attempt, taken.max_attempts)
    with statement() as connection:
        assert bulk.lose_operations(connection, [held]) == 1
    change("UPDATE jobs SET run_at = clock_timestamp() WHERE id = :id", id=taken.job_id)


def counts(operation: dict[str, Any]) -> tuple[str, int, int, dict[str, int]]:
    return operation["state"], operation["matched"], operation["done"], operation["refused"]


def test_a_thousand_tickets_named_by_id_are_set_going_by_one_operation(desk: Desk) -> None:
    operation = desk.do(batches.EXECUTE, ids=desk.create(1000))
    assert counts(operation) == ("completed", 1000, 1000, {})
    assert states() == {"queued": 1000}
    assert rows("SELECT count(*) AS n FROM jobs WHERE task = 'tickets.execute'") == [{"n": 1000}]
    assert operation["started_at"] <= operation["completed_at"]


def test_three_thousand_tickets_are_found_by_a_filter_and_only_those_that_existed(desk: Desk) -> None:
    for _ in range(3):
        desk.create(1000)
    others = desk.create(3, target="other")
    operation_id = desk.ask(batches.EXECUTE, filter={"target": "rover"})
    later = desk.create(2)
    assert counts(desk.run(operation_id)) == ("completed", 3000, 3000, {})
    left = {row["id"] for row in rows("SELECT id FROM tickets WHERE state = 'pending'")}
    assert left == {*others, *later}


def test_each_refusal_is_counted_under_its_code_and_some_are_shown(desk: Desk) -> None:
    pending, failed, queued = desk.create(3), desk.create(25), desk.create(2)
    end(failed, "failed")
    desk.do(batches.EXECUTE, ids=queued)
    missing = "tick-20200101-00000000"
    operation = desk.do(batches.EXECUTE, ids=[*failed, *queued, missing, *pending])
    refused = {"ticket_terminal": 25, "ticket_queued": 2, "ticket_not_found": 1}
    assert counts(operation) == ("completed", 31, 3, refused)
    assert len(operation["examples"]) == bulk.MOST_EXAMPLES


def test_a_filter_is_the_conjunction_of_its_parts(desk: Desk) -> None:
    wanted = desk.create(2, target="a", priority="high")
    desk.create(1, target="a")
    desk.create(1, target="b", priority="high")
    change("UPDATE tickets SET created_at = '2020-01-01T00:00:00Z' WHERE id = :id", id=wanted[0])
    both = {"target": "a", "priority": "high"}
    old = desk.do(batches.EXECUTE, filter={**both, "created_before": "2021-01-01T00:00:00+00:00"})
    assert counts(old) == ("completed", 1, 1, {})
    new = desk.do(batches.CANCEL, filter={**both, "status": "pending", "created_after": "2021-01-01T00:00:00+00:00"})
    assert counts(new) == ("completed", 1, 1, {})
    assert states() == {"pending": 2, "queued": 1, "cancelled": 1}


def test_a_replay_by_filter_leaves_completed_tickets_alone_and_one_by_ids_does_not(desk: Desk) -> None:
    failed, cancelled, completed = desk.create(2), desk.create(2), desk.create(2)
    for ticket_ids, state in ((failed, "failed"), (cancelled, "cancelled"), (completed, "completed")):
        end(ticket_ids, state)
    assert counts(desk.do(batches.REPLAY, filter={"target": "rover"})) == ("completed", 4, 4, {})
    assert counts(desk.do(batches.REPLAY, ids=completed)) == ("completed", 2, 2, {})
    assert states() == {"queued": 6}


def test_cancelling_many_ends_what_waits_and_orders_a_stop_for_what_moves(desk: Desk) -> None:
    drive = {"command": "drive", "params": {"speed": 1, "duration_seconds": 5}}
    (moving,) = desk.create(1, **drive)
    desk.do(batches.EXECUTE, ids=[moving])
    with statement() as connection:
        assert operations.take_ticket(connection, desk.job(moving), "worker:test")
    ended = desk.create(1)
    end(ended, "completed")
    waiting = desk.create(300)
    operation = desk.do(batches.CANCEL, ids=[moving, *ended, *waiting])
    assert counts(operation) == ("completed", 302, 301, {"ticket_terminal": 1})
    assert [row["ticket_id"] for row in rows("SELECT ticket_id FROM stop_orders")] == [moving]
    assert rows("SELECT count(*) AS n FROM jobs") == [{"n": 0}]


def test_an_e_stop_refuses_all_but_what_stops_a_robot(desk: Desk, writer: Caller) -> None:
    stopped, free, stop = desk.create(2), desk.create(1, target="b"), desk.create(1, command="stop")
    with statement() as connection:
        engage_latch(connection, "rover", "smoke", writer)
    operation = desk.do(batches.EXECUTE, ids=[*stopped, *free, *stop])
    assert counts(operation) == ("completed", 4, 2, {"emergency_stop": 2})
    assert states() == {"pending": 2, "queued": 2}


def test_what_was_ordered_before_an_e_stop_is_not_set_going_by_its_release(desk: Desk, writer: Caller) -> None:
    operation_id = desk.ask(batches.EXECUTE, ids=desk.create(2))
    with statement() as connection:
        engage_latch(connection, "all", "smoke", writer)
        release_latch(connection, "all", "it was steam", writer)
    assert counts(desk.run(operation_id)) == ("completed", 2, 0, {"emergency_stop": 2})
    assert counts(desk.do(batches.EXECUTE, filter={"target": "rover"})) == ("completed", 2, 2, {})


def test_a_worker_that_dies_between_chunks_is_followed_by_one_that_goes_on(desk: Desk) -> None:
    operation_id = desk.ask(batches.EXECUTE, ids=desk.create(2 * bulk.CHUNK + 10))
    first = desk.take(operation_id)
    worker.advance(first)
    lose(first)
    with pytest.raises(LeaseLost):
        worker.advance(first)
    total = 2 * bulk.CHUNK + 10
    assert counts(desk.run(operation_id)) == ("completed", total, total, {})
    told = rows("SELECT count(*) AS n, count(DISTINCT subject_id) AS t FROM ledger WHERE topic = 'ticket_queued'")
    assert told == [{"n": total, "t": total}]


def test_an_operation_whose_workers_all_die_fails_leaves_a_letter_and_can_go_on(desk: Desk, writer: Caller) -> None:
    operation_id = desk.ask(batches.EXECUTE, ids=desk.create(bulk.CHUNK + 10))
    worker.advance(first := desk.take(operation_id))
    for taken in [first, *(desk.take for _ in range(bulk_moves.MAX_ATTEMPTS - 1))]:
        lose(taken if isinstance(taken, Run) else taken(operation_id))
    failed = desk.operation(operation_id)
    assert counts(failed) == ("failed", bulk.CHUNK, bulk.CHUNK, {})
    (letter,) = rows("SELECT id, code FROM dead_letters WHERE task = :task", task=bulk_moves.TASK)
    assert letter["code"] == failed["error_code"] == "worker_lost"
    with transaction() as connection:
        replay_as_registered(connection, letter["id"], writer, expires_in_seconds=60)
    total = bulk.CHUNK + 10
    assert counts(desk.run(operation_id)) == ("completed", total, total, {})
    assert states() == {"queued": total}


def test_a_chunk_that_fails_changes_nothing_and_is_tried_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    operation_id = desk.ask(batches.EXECUTE, ids=desk.create(5))

    def fail(connection: Any, ticket_ids: Sequence[str], order: Any) -> None:
        batches.execute_many(connection, ticket_ids, order)
        raise RuntimeError("after the tickets moved")

    with monkeypatch.context() as patch:
        patch.setitem(REGISTRY, batches.EXECUTE, replace(REGISTRY[batches.EXECUTE], carry_out=fail))
        assert counts(desk.run(operation_id)) == ("queued", 0, 0, {})
    assert states() == {"pending": 5}
    change("UPDATE jobs SET run_at = clock_timestamp()")
    assert counts(desk.run(operation_id)) == ("completed", 5, 5, {})


def test_a_cancelled_operation_stops_where_it_stands(desk: Desk, writer: Caller) -> None:
    operation_id = desk.ask(batches.EXECUTE, ids=desk.create(bulk.CHUNK + 10))
    taken = desk.take(operation_id)
    worker.advance(taken)
    with statement() as connection:
        cancelled = bulk.cancel_operation(connection, operation_id, writer)
    assert counts(dict(cancelled)) == ("cancelled", bulk.CHUNK, bulk.CHUNK, {})
    with pytest.raises(LeaseLost):
        worker.advance(taken)
    assert states() == {"pending": 10, "queued": bulk.CHUNK}
    with statement() as connection, pytest.raises(IllegalTransition) as refused:
        bulk.cancel_operation(connection, operation_id, writer)
    assert refused.value.code == "operation_terminal"


def test_a_cancellation_waits_for_the_chunk_that_is_being_done_and_a_renewal_does_not(
    desk: Desk, writer: Caller
) -> None:
    taken = desk.take(desk.ask(batches.EXECUTE, ids=desk.create(5)))
    with ThreadPoolExecutor(1) as pool:
        with transaction() as chunk:
            bulk.advance_operation(chunk, taken)
            assert alone(lambda c: renew(c, [(taken.job_id, taken.fence)])) == {(taken.job_id, taken.fence)}
            cancelled = pool.submit(alone, lambda c: bulk.cancel_operation(c, taken.operation_id, writer))
            waits_or_ends(cancelled)
            assert not cancelled.done()
        assert counts(dict(cancelled.result(20))) == ("cancelled", 5, 5, {})


def test_a_worker_that_is_told_to_stop_gives_the_rest_back_without_losing_an_attempt(desk: Desk) -> None:
    taken = desk.take(desk.ask(batches.EXECUTE, ids=desk.create(5)))
    notice = worker.Notice()
    notice.set(SHUTDOWN)
    assert worker.work(taken, notice) == "given back"
    assert rows("SELECT attempt, fence FROM jobs WHERE id = :id", id=taken.job_id) == [{"attempt": 0, "fence": None}]
    assert counts(desk.run(taken.operation_id)) == ("completed", 5, 5, {})


@pytest.mark.parametrize("how", ["the keeper says so", "the row says so"])
def test_nothing_is_set_going_once_the_time_of_an_operation_is_over(desk: Desk, how: str) -> None:
    taken = desk.take(desk.ask(batches.EXECUTE, ids=desk.create(5), expires_in_seconds=60))
    notice = worker.Notice()
    if how == "the keeper says so":
        notice.set(TIMEOUT)
    else:
        change("UPDATE bulk_operations SET asked_at = asked_at - interval '61 s'")
    assert worker.work(taken, notice) == "expired"
    operation = desk.operation(taken.operation_id)
    assert counts(operation) == ("failed", 0, 0, {})
    assert operation["error_code"] == "expired"
    assert states() == {"pending": 5}


def test_a_revoked_run_changes_nothing_more(desk: Desk) -> None:
    taken = desk.take(desk.ask(batches.EXECUTE, ids=desk.create(5)))
    notice = worker.Notice()
    notice.set(REVOKED)
    with pytest.raises(LeaseLost):
        worker.work(taken, notice)
    assert states() == {"pending": 5}


def test_an_execution_may_start_no_later_than_the_request_for_it_allows(desk: Desk) -> None:
    operation_id = desk.ask(batches.EXECUTE, ids=desk.create(1), expires_in_seconds=60)
    change("UPDATE bulk_operations SET asked_at = asked_at - interval '50 s'")
    desk.run(operation_id)
    (ticket,) = rows("SELECT extract(epoch FROM expires_at - clock_timestamp())::float8 AS left FROM tickets")
    assert 0 < ticket["left"] <= 10


def test_a_filter_races_single_executions_and_each_ticket_is_set_going_once(desk: Desk, writer: Caller) -> None:
    ticket_ids = desk.create(300)
    operation_id = desk.ask(batches.EXECUTE, filter={"target": "rover"})
    single: list[str] = []

    def one_by_one(connection: Any) -> None:
        for ticket_id in reversed(ticket_ids):
            try:
                operations.accept_execution(connection, ticket_id, expires_in_seconds=60, force=False, caller=writer)
                single.append(ticket_id)
            except IllegalTransition:
                return

    together(one_by_one, lambda _c: worker.run(desk.job(operation_id), operation_id))
    operation = desk.operation(operation_id)
    assert operation["state"] == "completed"
    assert operation["done"] + len(single) == 300
    assert operation["matched"] - operation["done"] == sum(operation["refused"].values())
    assert rows("SELECT count(*) AS n FROM ledger WHERE topic = 'ticket_queued'") == [{"n": 300}]


def test_a_run_that_is_taken_twice_is_carried_out_once(desk: Desk) -> None:
    operation_id = desk.ask(batches.EXECUTE, ids=desk.create(5))
    job = desk.job(operation_id)
    assert worker.run(job, operation_id) == "completed"
    assert worker.run(job, operation_id) == "not taken"
    topics = rows("SELECT topic FROM ledger WHERE subject_kind = 'operation' ORDER BY seq")
    assert [row["topic"] for row in topics] == ["operation_queued", "operation_started", "operation_completed"]


def test_dead_letters_are_replayed_by_filter_and_those_that_cannot_be_say_why(desk: Desk) -> None:
    failed, completed = desk.create(300), desk.create(1)
    end([*failed, *completed], "failed")
    change(
        "INSERT INTO dead_letters (task, subject_kind, subject_id, code, error, correlation_id)"
        " SELECT 'tickets.execute', 'ticket', id, 'timeout', 'x', 'c' FROM tickets"
    )
    change(
        "INSERT INTO dead_letters (task, subject_kind, subject_id, code, error, correlation_id)"
        " VALUES ('unheard.of', 'other', 'x', 'timeout', 'x', 'c')"
    )
    end(completed, "completed")
    operation = desk.do(REPLAY, filter={"code": "timeout"})
    assert counts(operation) == ("completed", 302, 300, {"ticket_terminal": 1, "not_replayable": 1})
    left = rows("SELECT subject_id FROM dead_letters WHERE replayed_at IS NULL ORDER BY id")
    assert [row["subject_id"] for row in left] == [*completed, "x"]
    assert states() == {"queued": 300, "completed": 1}


def test_the_database_refuses_an_operation_that_makes_no_sense(desk: Desk) -> None:
    operation_id = desk.ask(batches.EXECUTE, ids=desk.create(1))
    for nonsense in ("filter = '{}'", "ids = NULL", "done = 1", "completed_at = now()", "expires_in_seconds = 0"):
        with pytest.raises(IntegrityError):
            change(f"UPDATE bulk_operations SET {nonsense} WHERE id = :id", id=operation_id)


def test_equal_tickets_are_carried_out_in_the_order_in_which_they_were_created_or_named(desk: Desk) -> None:
    queue = "SELECT subject_id AS id, waits FROM jobs WHERE task = 'tickets.execute' ORDER BY run_at, id"
    drive = {"command": "drive", "params": {"speed": 1, "duration_seconds": 5}}
    created = desk.create(60, **drive)
    desk.do(batches.EXECUTE, filter={"target": "rover"})
    assert rows(queue) == [{"id": ticket_id, "waits": place > 0} for place, ticket_id in enumerate(created)]
    desk.do(batches.CANCEL, ids=created)
    named = sorted(created)
    desk.do(batches.REPLAY, ids=named)
    assert [row["id"] for row in rows(queue)] == named
