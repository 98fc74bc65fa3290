"""Jobs: the fence decides who may act, never a name and never a clock."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import IntegrityError

from models.kernel.backlog import pick_jobs
from models.kernel.backoff import backoff_seconds
from models.kernel.jobs import is_live, jobs, list_expired, list_lost, renew
from models.kernel.session import settings as session_settings
from tests.kernel import parcel
from tests.kernel.races import meanwhile, together


def lease_ends(connection: Connection, job_id: int) -> None:
    parcel.set_job(connection, job_id, "lease_until = clock_timestamp() - interval '1 second'")


def test_a_fence_is_never_drawn_twice(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p", tries=9)
    fences = []
    for _ in range(4):
        taken = parcel.take_one(connection, job)
        fences.append(taken["fence"])
        parcel.retry(connection, taken)
    parcel.cancel(connection, "p")
    parcel.ask(connection, "p", again=True)
    fences.append(parcel.take_one(connection, parcel.job_of(connection, "p")["id"])["fence"])
    assert fences == sorted(set(fences))


def test_a_ghost_cannot_settle_a_later_attempt(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    ghost = parcel.take_one(connection, job)
    parcel.retry(connection, ghost)
    live = parcel.take_one(connection, job)
    assert parcel.fail(connection, ghost) == []
    assert parcel.retry(connection, ghost) == []
    assert parcel.release(connection, ghost) == []
    assert is_live(connection, job, live["fence"])
    assert not is_live(connection, job, ghost["fence"])
    assert len(parcel.deliver(connection, live)) == 1


def test_only_the_live_fence_is_renewed(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    ghost = parcel.take_one(connection, job)
    parcel.retry(connection, ghost)
    live = parcel.take_one(connection, job)
    lease_ends(connection, job)
    pairs = [(job, ghost["fence"]), (job, live["fence"]), (job + 1, live["fence"])]
    assert renew(connection, pairs) == {(job, live["fence"])}
    assert list_lost(connection) == {}


def test_a_ghost_alone_renews_nothing(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    ghost = parcel.take_one(connection, job)
    parcel.retry(connection, ghost)
    parcel.take_one(connection, job)
    before = parcel.job_of(connection, "p")["lease_until"]
    assert renew(connection, [(job, ghost["fence"])]) == set()
    assert parcel.job_of(connection, "p")["lease_until"] == before
    assert renew(connection, []) == set()


def test_renewals_touch_no_index(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    pair = (job, parcel.take_one(connection, job)["fence"])
    stats = text(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
        " WHERE relname = 'jobs' AND pg_stat_force_next_flush() IS NOT NULL"
    )
    before = connection.execute(stats).one()
    connection.execute(stats)
    for _ in range(200):
        renew(connection, [pair])
    connection.execute(stats)
    after = connection.execute(stats).one()
    assert after.n_tup_upd - before.n_tup_upd >= 200
    assert after.n_tup_hot_upd - before.n_tup_hot_upd >= 195


def test_an_expired_lease_that_nobody_reaped_still_settles(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    taken = parcel.take_one(connection, job)
    lease_ends(connection, job)
    assert len(parcel.deliver(connection, taken)) == 1


def rested(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases so short that the server has been up for one; the jobs' own are moved by the tests."""
    monkeypatch.setattr("models.kernel.jobs.settings", lambda: type("S", (), {"lease_seconds": 0.001}))


def test_a_lost_lease_is_listed_under_its_fence_and_reaped(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = parcel.send(connection, "p")
    taken = parcel.take_one(connection, job)
    rested(connection, monkeypatch)
    assert list_lost(connection) == {}
    lease_ends(connection, job)
    (lost,) = list_lost(connection)[parcel.TASK]
    assert (lost.id, lost.fence, lost.attempt, lost.max_attempts) == (job, taken["fence"], 1, 3)
    assert parcel.lose(connection, [lost]) == 1
    assert parcel.deliver(connection, taken) == []
    assert parcel.state_of(connection, "p") == "queued"


def test_nothing_counts_as_lost_until_the_server_has_been_up_for_one_lease(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = parcel.send(connection, "p")
    parcel.take_one(connection, job)
    lease_ends(connection, job)
    monkeypatch.setattr("models.kernel.jobs.settings", lambda: type("S", (), {"lease_seconds": 1e6}))
    assert list_lost(connection) == {}


def test_a_lease_renewed_after_it_was_listed_is_still_ended_under_that_fence_alone(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    taken = parcel.take_one(connection, job)
    found = parcel.Held(job, "p", taken["fence"], 1, 3)
    parcel.retry(connection, taken)
    again = parcel.take_one(connection, job)
    assert parcel.lose(connection, [found]) == 0
    assert is_live(connection, job, again["fence"])


def test_a_job_is_not_taken_before_its_time(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    parcel.set_job(connection, job, "run_at = clock_timestamp() + interval '1 hour'")
    assert parcel.take(connection, job) == []
    assert pick_jobs(connection, parcel.QUEUE, 5, 60.0) == []
    parcel.set_job(connection, job, "run_at = clock_timestamp()")
    assert len(parcel.take(connection, job)) == 1


def test_a_job_is_not_taken_after_it_expired(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    parcel.set_job(connection, job, "expires_at = clock_timestamp() - interval '1 ms'")
    assert parcel.take(connection, job) == []
    (late,) = list_expired(connection)[parcel.TASK]
    assert parcel.expire(connection, [late]) == 1
    assert parcel.state_of(connection, "p") == "failed"
    assert parcel.count_jobs(connection) == 0


def test_a_job_that_started_in_time_does_not_expire(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    taken = parcel.take_one(connection, job)
    parcel.set_job(connection, job, "expires_at = clock_timestamp() - interval '1 ms'")
    assert list_expired(connection) == {}
    assert len(parcel.deliver(connection, taken)) == 1


def test_a_job_is_not_taken_beyond_its_last_attempt(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p", tries=2)
    parcel.set_job(connection, job, "attempt = 2")
    assert parcel.take(connection, job) == []


def test_a_retry_beyond_the_last_attempt_is_refused_so_that_no_job_is_left_that_nobody_may_take(
    connection: Connection,
) -> None:
    (job,) = parcel.send(connection, "p", tries=1)
    taken = parcel.take_one(connection, job)
    assert parcel.retry(connection, taken) == []
    assert parcel.state_of(connection, "p") == "moving"
    assert len(parcel.fail(connection, taken)) == 1


def test_a_release_gives_the_attempt_back(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p", tries=1)
    for _ in range(3):
        assert len(parcel.release(connection, parcel.take_one(connection, job))) == 1
    row = parcel.job_of(connection, "p")
    assert (row["attempt"], row["fence"], row["lease_until"], row["dispatched_at"]) == (0, None, None, None)


def test_a_retry_waits_as_long_as_it_was_told(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    parcel.retry(connection, parcel.take_one(connection, job), 3600.0)
    row = parcel.job_of(connection, "p")
    seconds = connection.scalar(select(text("extract(epoch FROM run_at - clock_timestamp()) FROM jobs")))
    assert 3590 < float(seconds) <= 3600
    assert (row["attempt"], row["dispatches"]) == (1, 0)
    assert parcel.take(connection, job) == []


def test_the_lease_lasts_as_long_as_the_settings_say(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    parcel.take_one(connection, job)
    left = connection.scalar(text("SELECT extract(epoch FROM lease_until - clock_timestamp()) FROM jobs"))
    lease = session_settings().lease_seconds
    assert lease - 5 < float(left) <= lease


def test_a_renewal_that_meets_a_settle_renews_the_others(connection: Connection) -> None:
    taken = [parcel.take_one(connection, job) for job in parcel.send(connection, "a", "b", "c")]
    pairs = [(row["job_id"], row["fence"]) for row in taken]
    _, renewed = meanwhile(lambda c: parcel.deliver(c, taken[1]), lambda c: renew(c, pairs))
    assert renewed == {pairs[0], pairs[2]}


def test_renewals_lock_in_the_order_in_which_batches_of_jobs_are_ended(connection: Connection) -> None:
    names = [f"p{n:02}" for n in range(40)]
    taken = [parcel.take_one(connection, job) for job in parcel.send(connection, *names)]
    pairs = [(row["job_id"], row["fence"]) for row in taken]
    for job, _ in pairs[::-1]:  # the heap's order is now another than the ids'
        connection.execute(text("UPDATE jobs SET priority = 1 WHERE id = :id"), {"id": job})
    nobody = [{"job_id": job, "fence": fence, "to": "nowhere"} for job, fence in pairs]

    def end(other: Connection) -> None:
        for _ in range(150):
            assert parcel.SETTLE(other, nobody, actor="driver") == []

    def keep(other: Connection) -> None:
        for _ in range(150):
            assert len(renew(other, pairs)) == len(pairs)

    together(end, keep, keep)


GOOD = {"task": "t", "subject_kind": "k", "subject_id": "s", "queue": "q", "correlation_id": "c", "timeout_seconds": 1}


@pytest.mark.parametrize(
    ("wrong", "constraint"),
    [
        ({"priority": 4}, "jobs_priority_check"),
        ({"priority": -1}, "jobs_priority_check"),
        ({"attempt": 2}, "jobs_attempt_check"),
        ({"attempt": -1}, "jobs_attempt_check"),
        ({"timeout_seconds": 0}, "jobs_timeout_check"),
        ({"fence": 1}, "jobs_lease_has_fence_check"),
        ({"lease_until": "2026-01-01"}, "jobs_lease_has_fence_check"),
        ({"waits": True}, "jobs_waits_in_lane_check"),
        ({"waits": True, "lane": "l", "fence": 1, "lease_until": "2026-01-01"}, "jobs_waits_in_lane_check"),
    ],
)
def test_the_database_refuses_a_job_that_makes_no_sense(
    connection: Connection, wrong: dict[str, object], constraint: str
) -> None:
    with pytest.raises(IntegrityError, match=constraint):
        connection.execute(insert(jobs).values(GOOD | wrong))


def test_a_subject_owes_a_task_once(connection: Connection) -> None:
    connection.execute(insert(jobs).values(GOOD))
    with pytest.raises(IntegrityError, match="jobs_subject_kind_subject_id_task_key"):
        connection.execute(insert(jobs).values(GOOD))


def test_the_pause_doubles_up_to_its_cap() -> None:
    assert [backoff_seconds(n, 2.0, 10.0) for n in range(1, 6)] == [2.0, 4.0, 8.0, 10.0, 10.0]
    assert backoff_seconds(10_000, 0.5, 300.0) == 300.0
    assert backoff_seconds(0, 2.0, 10.0) == 2.0
