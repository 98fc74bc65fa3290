"""Transition: sets of subjects move together in one statement, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, event, func, select, text
from sqlalchemy.exc import IntegrityError

from models.kernel.errors import Unavailable
from models.kernel.jobs import jobs
from models.kernel.ledger import ledger
from models.kernel.machine import Machine
from models.kernel.session import statement, transaction
from models.kernel.transition import Job, LaneBusy
from tests.kernel import parcel
from tests.kernel.races import together


@contextmanager
def counted(connection: Connection) -> Iterator[list[str]]:
    """The statements that reach the database meanwhile."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, sql: str, *_: object) -> None:
        seen.append(sql)

    event.listen(connection, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(connection, "before_cursor_execute", note)


def everything(connection: Connection) -> tuple[object, ...]:
    """All that a transition may write."""
    rows = connection.execute(select(parcel.parcels).order_by(parcel.parcels.c.id)).all()
    counts = connection.execute(select(select(func.count()).select_from(ledger).scalar_subquery())).scalar_one()
    backlog = connection.execute(select(jobs).order_by(jobs.c.id)).all()
    return (rows, counts, backlog)


def test_a_hundred_subjects_move_in_one_statement_each_act(connection: Connection) -> None:
    names = [f"p{n:03}" for n in range(100)]
    with counted(connection) as seen:
        parcel.pack(connection, *names)
        parcel.ask(connection, *names)
    assert len(seen) == 2
    waiting = [parcel.job_of(connection, name)["id"] for name in names]
    with counted(connection) as seen:
        taken = parcel.take(connection, *waiting)
        ended = parcel.SETTLE(connection, [{**parcel.held(t), "to": "delivered"} for t in taken], actor="driver")
    assert len(seen) == 2
    assert {row["state"] for row in ended} == {"delivered"}
    assert parcel.count_jobs(connection) == 0
    assert connection.scalar(select(func.count()).select_from(ledger)) == 400


def test_the_ledger_tells_each_move_with_its_states_and_revision(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    parcel.fail(connection, parcel.take_one(connection, job))
    rows = connection.execute(
        select(ledger.c.from_state, ledger.c.to_state, ledger.c.revision, ledger.c.topic, ledger.c.actor)
        .where(ledger.c.subject_id == "p")
        .order_by(ledger.c.seq)
    )
    assert [tuple(row) for row in rows] == [
        (None, "packed", 1, "parcel_packed", "test"),
        ("packed", "queued", 2, "parcel_queued", "test"),
        ("queued", "moving", 3, "parcel_moving", "driver"),
        ("moving", "failed", 4, "parcel_delivered", "driver"),
    ]
    last = connection.execute(select(ledger).order_by(ledger.c.seq.desc()).limit(1)).one()
    assert (last.reason, last.correlation_id, last.body) == ("dropped", "c-1", {"parcel": "p"})


def test_a_wrong_present_state_moves_nothing_and_writes_nothing(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    before = everything(connection)
    assert parcel.ask(connection, "p") == []
    assert parcel.fail(connection, {"job_id": job, "fence": 1}) == []
    assert parcel.ask(connection, "nobody") == []
    assert everything(connection) == before


def test_only_the_subjects_whose_guard_holds_move(connection: Connection) -> None:
    parcel.pack(connection, "a", "b", "c")
    parcel.ask(connection, "b")
    assert {row["id"] for row in parcel.ask(connection, "a", "b", "c")} == {"a", "c"}
    assert parcel.count_jobs(connection) == 3
    assert parcel.topics_of(connection, "b") == ["parcel_packed", "parcel_queued"]


def test_a_job_whose_subject_may_not_move_is_not_leased(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    connection.execute(text("UPDATE parcels SET state = 'cancelled'"))
    before = everything(connection)
    assert parcel.take(connection, job) == []
    assert everything(connection) == before


def test_a_stale_revision_moves_nothing(connection: Connection) -> None:
    (seen,) = parcel.pack(connection, "p")
    parcel.ask(connection, "p")
    stale = {"id": "p", "revision": seen["revision"]}
    assert parcel.CANCEL(connection, [stale], actor="test") == []
    fresh = {"id": "p", "revision": seen["revision"] + 1}
    assert [row["revision"] for row in parcel.CANCEL(connection, [fresh], actor="test")] == [3]


def test_a_target_that_the_act_does_not_name_moves_nothing(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    taken = parcel.take_one(connection, job)
    before = everything(connection)
    assert parcel.SETTLE(connection, [{**parcel.held(taken), "to": "queued"}], actor="driver") == []
    assert parcel.SETTLE(connection, [parcel.held(taken)], actor="driver") == []
    assert everything(connection) == before


def test_a_subject_named_twice_in_one_call_moves_once(connection: Connection) -> None:
    parcel.pack(connection, "p")
    assert len(parcel.ask(connection, "p", "p")) == 1
    assert parcel.topics_of(connection, "p") == ["parcel_packed", "parcel_queued"]


def test_an_act_on_nothing_does_nothing(connection: Connection) -> None:
    assert parcel.ask(connection) == []
    assert parcel.pack(connection) == []


def test_an_edge_that_the_machine_lacks_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="packed -> delivered is no edge"):
        parcel.move("packed", "delivered")


def test_one_illegal_pair_among_many_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="queued -> delivered is no edge"):
        parcel.move("moving queued", "failed delivered")


def test_a_state_that_the_machine_does_not_know_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="lost"):
        parcel.move("lost", "queued")


def test_an_act_that_would_forget_the_job_it_owes_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="owes"):
        parcel.move("moving", "delivered", job=Job.END, owes=parcel.carriage)


def test_a_machine_whose_edge_leads_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="without a line of their own"):
        Machine(kind="m", initial="a", edges={"a": frozenset({"b"})}, terminal=frozenset())


def ask_then_pack_twice(connection: Connection) -> None:
    parcel.ask(connection, "p")
    parcel.pack(connection, "q")
    parcel.pack(connection, "q")


def test_what_fails_in_a_transaction_leaves_no_part_behind(connection: Connection) -> None:
    parcel.pack(connection, "p")
    before = everything(connection)
    with pytest.raises(IntegrityError), transaction() as other:
        ask_then_pack_twice(other)
    assert everything(connection) == before


def test_two_subjects_born_under_one_id_are_refused_whole(connection: Connection) -> None:
    parcel.pack(connection, "a")
    with pytest.raises(IntegrityError, match="parcels_pkey"):
        parcel.pack(connection, "b", "a")
    assert connection.scalar(select(func.count()).select_from(parcel.parcels)) == 1


def churn(*acts: object) -> object:
    """Acts in turn, over and over, on one connection."""

    def run(connection: Connection) -> int:
        for n in range(200):
            acts[n % len(acts)](connection)  # type: ignore[operator]
        return 200

    return run


def test_batches_in_opposite_order_never_deadlock(road: str) -> None:
    names = [f"p{n:02}" for n in range(30)]
    with statement() as connection:
        parcel.pack(connection, *names)
    forward, backward = names[:20], names[:9:-1]
    done = together(
        churn(lambda c: parcel.ask(c, *forward, again=True), lambda c: parcel.cancel(c, *forward)),  # type: ignore[arg-type]
        churn(lambda c: parcel.ask(c, *backward, again=True), lambda c: parcel.cancel(c, *backward)),  # type: ignore[arg-type]
    )
    assert done == [200, 200]


def take_all(connection: Connection, *, backward: bool) -> None:
    """Take whatever is ready in one batch, then settle what was got in the same order."""
    ready = list(connection.scalars(select(jobs.c.id).where(jobs.c.fence.is_(None)).order_by(jobs.c.id)))
    try:
        taken = parcel.take(connection, *(reversed(ready) if backward else ready))
    except LaneBusy:
        return
    ends = [{**parcel.held(row), "to": "delivered"} for row in taken]
    parcel.SETTLE(connection, ends[::-1] if backward else ends, actor="driver")


def test_takes_settles_and_cancels_of_overlapping_batches_never_deadlock(road: str) -> None:
    names = [f"p{n:02}" for n in range(24)]
    with statement() as connection:
        parcel.pack(connection, *names[:12])
        parcel.pack(connection, *names[12:], van="v")
    try:
        together(
            churn(lambda c: parcel.ask(c, *names, again=True)),  # type: ignore[arg-type]
            churn(lambda c: take_all(c, backward=False), lambda c: take_all(c, backward=True)),  # type: ignore[arg-type]
            churn(lambda c: parcel.cancel(c, *names[::-1])),  # type: ignore[arg-type]
        )
    except Unavailable as error:
        pytest.fail(f"a deadlock: {error.__cause__}")
