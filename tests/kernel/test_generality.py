"""The kernel carries a domain that it has never heard of: backoff, lanes, tenants, expiry, dead letters."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, select, text

from models.kernel.backlog import park_job, pick_jobs
from models.kernel.dead_letters import list_letters, replay_letter
from models.kernel.jobs import jobs, list_expired, list_lost
from models.kernel.session import transaction
from models.kernel.tallies import count_states
from models.kernel.transition import LaneBusy
from tests.kernel import parcel

DELAY = text("SELECT extract(epoch FROM run_at - clock_timestamp())::float8 FROM jobs WHERE subject_id = 'p'")
DUE = text("UPDATE jobs SET run_at = clock_timestamp()")


def test_a_parcel_travels_from_packed_to_delivered(connection: Connection) -> None:
    parcel.send(connection, "p")
    (ready,) = pick_jobs(connection, parcel.QUEUE, 9, 60.0)
    parcel.deliver(connection, parcel.take_one(connection, ready.id))
    assert parcel.topics_of(connection, "p") == [
        "parcel_packed",
        "parcel_queued",
        "parcel_moving",
        "parcel_delivered",
    ]
    assert count_states(connection, "parcel") == {"packed": 0, "queued": 0, "moving": 0, "delivered": 1}


def test_a_parcel_is_tried_with_backoff_a_bounded_number_of_times_and_then_leaves_a_dead_letter(
    connection: Connection,
) -> None:
    (job,) = parcel.send(connection, "p", tries=4)
    delays = []
    for _ in range(3):
        assert parcel.stumble(connection, parcel.take_one(connection, job)) == "queued"
        delays.append(connection.scalar(DELAY))
        assert parcel.take(connection, job) == []
        connection.execute(DUE)
    assert [round(delay) for delay in delays] == [2, 4, 8]
    assert parcel.stumble(connection, parcel.take_one(connection, job)) == "failed"
    assert parcel.count_jobs(connection) == 0
    (letter,) = list_letters(connection, task=parcel.TASK)
    assert (letter["subject_id"], letter["code"], letter["error"]) == ("p", "dropped", "It fell")


def test_a_driver_that_falls_silent_costs_an_attempt_each_time(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.kernel.jobs.settings", lambda: type("S", (), {"lease_seconds": 0.001}))
    (job,) = parcel.send(connection, "p", tries=2)
    for expected in ("queued", "failed"):
        parcel.take_one(connection, job)
        connection.execute(text("UPDATE jobs SET lease_until = clock_timestamp() - interval '1 s'"))
        assert parcel.lose(connection, list_lost(connection)[parcel.TASK]) == 1
        connection.execute(DUE)
        assert parcel.state_of(connection, "p") == expected
    assert [letter["code"] for letter in list_letters(connection)] == ["lost"]


def test_a_parcel_that_comes_too_late_fails_as_expired(connection: Connection) -> None:
    parcel.send(connection, "p", expires_at="2020-01-01T00:00:00Z")
    assert parcel.expire(connection, list_expired(connection)[parcel.TASK]) == 1
    assert parcel.state_of(connection, "p") == "failed"
    assert [letter["code"] for letter in list_letters(connection)] == ["expired"]


def test_a_dead_letter_sets_its_parcel_going_again(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p", tries=1)
    parcel.fail(connection, parcel.take_one(connection, job))
    (letter,) = list_letters(connection)
    with transaction() as whole:
        replay_letter(whole, letter["id"], lambda c, name: parcel.ask(c, name, again=True), "operator")
    parcel.deliver(connection, parcel.take_one(connection, parcel.job_of(connection, "p")["id"]))
    assert parcel.state_of(connection, "p") == "delivered"


def test_vans_of_two_tenants_carry_everything_one_at_a_time_each(connection: Connection) -> None:
    names = [f"{tenant}{van}{n}" for tenant in "ab" for van in "12" for n in range(5)]
    for name in names:
        parcel.pack(connection, name, tenant=name[0], van=name[:2])
    parcel.ask(connection, *names)
    carried: list[str] = []
    while ready := pick_jobs(connection, parcel.QUEUE, 3, 60.0):
        for job in ready:
            try:
                (taken,) = parcel.take(connection, job.id)
            except LaneBusy:
                park_job(connection, job.id)
                continue
            assert parcel.deliver(connection, taken)
            carried.append(str(taken["id"]))
    assert sorted(carried) == names
    assert connection.execute(select(jobs)).all() == []


def test_other_domains_do_not_see_these_subjects(connection: Connection) -> None:
    parcel.send(connection, "p")
    assert count_states(connection, "ticket") == {}
    connection.execute(text("UPDATE jobs SET subject_kind = 'other'"))
    assert parcel.take(connection, connection.scalar(select(jobs.c.id))) == []
