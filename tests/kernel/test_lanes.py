"""Lanes: of the jobs that share one, one is carried out at a time, and the others cost nothing."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, select, text

from models.kernel.backlog import park_job, pick_jobs, put_off_job, wake_lanes
from models.kernel.jobs import jobs
from models.kernel.session import transaction
from models.kernel.transition import LaneBusy
from tests.kernel import parcel
from tests.kernel.plans import rows_touched
from tests.kernel.races import meanwhile

HEADS = text("UPDATE jobs SET waits = false WHERE lane IS NOT NULL AND fence IS NULL")


def waits(connection: Connection, *names: str) -> list[bool]:
    return [bool(parcel.job_of(connection, name)["waits"]) for name in names]


def test_of_two_ready_jobs_in_one_lane_the_second_take_finds_it_busy(connection: Connection) -> None:
    first, second = parcel.send(connection, "a", "b", van="v")
    connection.execute(HEADS)
    parcel.take_one(connection, first)
    with pytest.raises(LaneBusy):
        parcel.take(connection, second)
    assert parcel.state_of(connection, "b") == "queued"


def test_two_takes_of_one_lane_at_once_let_one_through(connection: Connection) -> None:
    first, second = parcel.send(connection, "a", "b", van="v")
    connection.execute(HEADS)
    with pytest.raises(LaneBusy):
        meanwhile(lambda c: parcel.take_one(c, first), lambda c: parcel.take(c, second))
    assert [parcel.state_of(connection, name) for name in "ab"] == ["moving", "queued"]


def test_lanes_do_not_hinder_each_other(connection: Connection) -> None:
    (a,), (b,) = parcel.send(connection, "a", van="v"), parcel.send(connection, "b", van="w")
    (c,) = parcel.send(connection, "c")
    assert len(parcel.take(connection, a, b, c)) == 3


def test_who_comes_second_into_a_lane_waits_and_is_not_picked(connection: Connection) -> None:
    (first,), _ = parcel.send(connection, "a", van="v"), parcel.send(connection, "b", van="v")
    assert waits(connection, "a", "b") == [False, True]
    assert [job.id for job in pick_jobs(connection, parcel.QUEUE, 9, 60.0)] == [first]


def test_of_a_batch_in_one_lane_only_the_head_is_ready(connection: Connection) -> None:
    parcel.pack(connection, "b", "c", van="v")
    parcel.pack(connection, "a", van="v", priority=3)
    parcel.pack(connection, "d")
    parcel.ask(connection, "a", "b", "c", "d")
    assert waits(connection, "a", "b", "c", "d") == [True, False, True, False]


def test_a_better_priority_does_not_wait_behind_a_worse(connection: Connection) -> None:
    parcel.send(connection, "slow", van="v", priority=3)
    parcel.send(connection, "urgent", van="v", priority=0)
    assert waits(connection, "slow", "urgent") == [False, False]


def test_a_parked_job_waits_and_is_woken_by_the_settle(connection: Connection) -> None:
    first, second = parcel.send(connection, "a", "b", van="v")
    connection.execute(HEADS)
    taken = parcel.take_one(connection, first)
    pick_jobs(connection, parcel.QUEUE, 9, 60.0)
    park_job(connection, second)
    row = parcel.job_of(connection, "b")
    assert (row["waits"], row["dispatched_at"], row["dispatches"]) == (True, None, 0)
    assert pick_jobs(connection, parcel.QUEUE, 9, 60.0) == []
    parcel.deliver(connection, taken)
    assert [job.id for job in pick_jobs(connection, parcel.QUEUE, 9, 60.0)] == [second]


def test_a_job_in_no_lane_or_at_work_is_not_parked(connection: Connection) -> None:
    (free,), (moving,) = parcel.send(connection, "a"), parcel.send(connection, "b", van="v")
    parcel.take_one(connection, moving)
    park_job(connection, free)
    park_job(connection, moving)
    assert waits(connection, "a", "b") == [False, False]


@pytest.mark.parametrize("end", [parcel.deliver, parcel.fail, parcel.retry, parcel.release])
def test_however_an_attempt_ends_it_wakes_the_best_waiter(connection: Connection, end: object) -> None:
    taken = parcel.take_one(connection, parcel.send(connection, "a", van="v", priority=0)[0])
    for name, priority in (("low", 3), ("high", 1), ("late", 1)):
        parcel.send(connection, name, van="v", priority=priority)
    end(connection, taken)  # type: ignore[operator]
    assert waits(connection, "high", "late", "low") == [False, True, True]


@pytest.mark.parametrize("off", [(), ("hashjoin", "indexscan", "material", "hashagg", "sort")])
def test_a_settle_wakes_one_waiter_whatever_the_plan(connection: Connection, off: tuple[str, ...]) -> None:
    """A subquery that locks and limits must not be asked again for each row that it changed."""
    first, *_ = parcel.send(connection, *"abcdefgh", van="v")
    for method in off:
        connection.execute(text(f"SET enable_{method} = off"))
    parcel.deliver(connection, parcel.take_one(connection, first))
    assert waits(connection, *"bcdefgh") == [False, *[True] * 6]


def test_a_cancel_wakes_the_next_of_its_lane(connection: Connection) -> None:
    parcel.send(connection, "a", van="v")
    parcel.send(connection, "b", van="v")
    parcel.cancel(connection, "a")
    assert waits(connection, "b") == [False]


def test_an_expiry_wakes_the_next_of_its_lane(connection: Connection) -> None:
    (first,) = parcel.send(connection, "a", van="v")
    parcel.send(connection, "b", van="v")
    assert parcel.expire(connection, [parcel.Held(first, "a", None, 0, 3)]) == 1
    assert waits(connection, "b") == [False]


def test_a_lane_whose_wake_up_was_raced_away_is_woken_by_the_sweep(connection: Connection) -> None:
    taken = parcel.take_one(connection, parcel.send(connection, "a", van="v")[0])
    with transaction() as late:
        parcel.send(late, "b", van="v")  # sees `a` at work, so it waits
        parcel.deliver(connection, taken)  # does not see `b`, so it wakes nobody
    assert waits(connection, "b") == [True]
    assert wake_lanes(connection) == 1
    assert waits(connection, "b") == [False]


def test_the_sweep_leaves_lanes_alone_in_which_somebody_is_ready_or_at_work(connection: Connection) -> None:
    parcel.send(connection, "a", van="v")
    parcel.send(connection, "b", van="v")
    assert wake_lanes(connection) == 0
    parcel.take_one(connection, parcel.job_of(connection, "a")["id"])
    assert wake_lanes(connection) == 0


def test_what_rests_until_its_retry_holds_up_nobody_of_its_lane(connection: Connection) -> None:
    (first,) = parcel.send(connection, "a", van="v")
    parcel.retry(connection, parcel.take_one(connection, first), delay_seconds=60)
    parcel.send(connection, "b", "c", van="v")
    assert waits(connection, "a", "b", "c") == [False, False, True]
    connection.execute(text("UPDATE jobs SET waits = true WHERE subject_id = 'b'"))  # a wake-up was raced away
    assert wake_lanes(connection) == 1
    assert waits(connection, "a", "b", "c") == [False, False, True]


def test_what_is_put_off_stays_the_head_of_its_lane_and_goes_behind_other_lanes(connection: Connection) -> None:
    first, _, _ = parcel.send(connection, "a", "b", "c", van="v")
    pick_jobs(connection, parcel.QUEUE, 99, 60.0)
    parcel.send(connection, "d", van="w")
    put_off_job(connection, first)
    assert waits(connection, "a", "b", "c", "d") == [True, True, True, False]
    assert wake_lanes(connection) == 1
    assert waits(connection, "a", "b", "c") == [False, True, True]
    assert [job.subject_id for job in pick_jobs(connection, parcel.QUEUE, 99, 60.0)] == ["d", "a"]


def test_what_is_taken_or_rests_is_not_put_off(connection: Connection) -> None:
    (first,) = parcel.send(connection, "a", van="v")
    taken = parcel.take_one(connection, first)
    put_off_job(connection, first)
    assert waits(connection, "a") == [False]
    parcel.retry(connection, taken, delay_seconds=60)
    put_off_job(connection, first)
    assert waits(connection, "a") == [False]


def test_the_sweep_does_not_wait_for_whoever_changes_a_waiter(connection: Connection) -> None:
    for van in ("v", "w"):
        parcel.send(connection, f"a-{van}", van=van)
    connection.execute(text("UPDATE jobs SET waits = true"))
    with transaction() as other:
        other.execute(select(jobs).where(jobs.c.lane == "v").with_for_update()).all()
        assert wake_lanes(connection) == 1
    assert waits(connection, "a-v", "a-w") == [True, False]


def test_a_lane_is_served_to_its_end_by_settles_alone(connection: Connection) -> None:
    names = [f"p{n}" for n in range(10)]
    parcel.pack(connection, *names, van="v")
    parcel.ask(connection, *names)
    carried = []
    while ready := pick_jobs(connection, parcel.QUEUE, 99, 60.0):
        assert len(ready) == 1
        taken = parcel.take_one(connection, ready[0].id)
        carried.append(taken["id"])
        parcel.deliver(connection, taken)
    assert carried == names


MANY = text(
    """
    INSERT INTO jobs (task, subject_kind, subject_id, queue, correlation_id, timeout_seconds, lane, waits)
    SELECT 'parcels.move', 'parcel', n::text, 'vans', 'c', 1, 'v', true FROM generate_series(1, 20000) n
    """
)


def test_twenty_thousand_jobs_behind_one_lane_cost_the_selection_nothing(connection: Connection) -> None:
    taken = parcel.take_one(connection, parcel.send(connection, "a", van="v", priority=0)[0])
    ready = parcel.send(connection, *[f"f{n}" for n in range(10)])
    connection.execute(MANY)
    connection.execute(text("ANALYZE jobs"))
    with rows_touched(connection) as touched:
        assert sorted(job.id for job in pick_jobs(connection, parcel.QUEUE, 10, 60.0)) == ready
        assert wake_lanes(connection) == 0
        assert len(parcel.deliver(connection, taken)) == 1
        (woken,) = pick_jobs(connection, parcel.QUEUE, 10, 60.0)
    assert woken.subject_id == "1"
    assert max(touched) < 500
