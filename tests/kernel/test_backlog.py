"""The backlog: what is sent next, and what a lost message costs."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import Connection, select, text

from models.kernel.backlog import AGING_SHARE, AgedShare, pick_jobs, send_again
from models.kernel.jobs import jobs
from models.kernel.session import statement, transaction
from tests.kernel import parcel
from tests.kernel.plans import rows_touched
from tests.kernel.races import together

NEVER = 1e6  # seconds: nothing ages meanwhile


def picked(connection: Connection, slots: int, aging: float = NEVER) -> list[str]:
    return [job.subject_id for job in pick_jobs(connection, parcel.QUEUE, slots, aging)]


def test_priority_is_strict(connection: Connection) -> None:
    for priority in (3, 0, 2, 1):
        parcel.send(connection, f"{priority}-a", f"{priority}-b", priority=priority)
    assert picked(connection, 5) == ["0-a", "0-b", "1-a", "1-b", "2-a"]
    assert picked(connection, 5) == ["2-b", "3-a", "3-b"]


def test_a_small_tenant_is_not_starved_by_a_large_one(connection: Connection) -> None:
    large = [f"l{n:04}" for n in range(1000)]
    parcel.pack(connection, *large, tenant="large")
    parcel.ask(connection, *large)
    parcel.send(connection, "s1", "s2", "s3", tenant="small")
    first = picked(connection, 6)
    assert [name for name in first if name.startswith("s")] == ["s1", "s2", "s3"]
    assert [name for name in first if name.startswith("l")] == large[:3]


def test_a_small_tenant_is_not_starved_however_few_slots_a_pick_has(connection: Connection) -> None:
    parcel.send(connection, *[f"l{n:02}" for n in range(40)], tenant="large")
    parcel.send(connection, "s1", "s2", tenant="small")
    assert [picked(connection, 1) for _ in range(4)] == [["l00"], ["s1"], ["l01"], ["s2"]]


def test_within_a_tenant_the_oldest_goes_first(connection: Connection) -> None:
    parcel.send(connection, *"abc")
    connection.execute(text("UPDATE jobs SET run_at = run_at - interval '1 minute' WHERE subject_id = 'c'"))
    assert picked(connection, 3) == ["c", "a", "b"]


def test_one_slot_in_eight_goes_to_what_has_waited_too_long(connection: Connection) -> None:
    urgent = [f"u{n:02}" for n in range(50)]
    parcel.pack(connection, *urgent, priority=0)
    parcel.ask(connection, *urgent)
    parcel.send(connection, "old", "older", "oldest", priority=3)
    for name, minutes in (("old", 2), ("older", 3), ("oldest", 4)):
        connection.execute(
            text(f"UPDATE jobs SET run_at = run_at - interval '{minutes} minutes' WHERE subject_id = '{name}'")
        )
    sent = pick_jobs(connection, parcel.QUEUE, AGING_SHARE, 60.0, 1)
    assert Counter(job.subject_id[0] for job in sent) == {"u": AGING_SHARE - 1, "o": 1}
    assert ("oldest", 0) in [(job.subject_id, job.priority) for job in sent]
    sent = pick_jobs(connection, parcel.QUEUE, 2 * AGING_SHARE, 60.0, 2)
    assert {job.subject_id for job in sent if job.subject_id[0] == "o"} == {"old", "older"}


def test_of_those_that_are_equal_in_all_else_the_first_that_came_goes_first(connection: Connection) -> None:
    old, young = [f"o{n:02}" for n in range(20)], [f"y{n:02}" for n in range(20)]
    parcel.send(connection, *old, priority=3)
    for n, name in enumerate(young):
        parcel.send(connection, name, tenant=f"t{99 - n}")
    ages = "CASE priority WHEN 3 THEN interval '2 min' ELSE interval '1 s' END"
    connection.execute(text(f"UPDATE jobs SET run_at = transaction_timestamp() - {ages}"))
    assert [picked(connection, 2, aging=60.0) for _ in old] == [list(pair) for pair in zip(old, young, strict=True)]


def test_a_queue_gets_its_own_jobs_only(connection: Connection) -> None:
    parcel.send(connection, "p")
    assert pick_jobs(connection, "another", 9, NEVER) == []
    assert pick_jobs(connection, parcel.QUEUE, 0, NEVER) == []
    assert pick_jobs(connection, parcel.QUEUE, -3, NEVER) == []
    (job,) = pick_jobs(connection, parcel.QUEUE, 1, NEVER)
    assert (job.task, job.subject_id, job.queue, job.priority) == (parcel.TASK, "p", parcel.QUEUE, 2)
    assert job.correlation_id == "c-1"


def test_what_is_leased_or_sent_is_not_picked(connection: Connection) -> None:
    leased, _ = parcel.send(connection, "a", "b")
    parcel.take_one(connection, leased)
    assert picked(connection, 9) == ["b"]
    assert picked(connection, 9) == []


def test_one_dispatcher_picks_per_queue_at_a_time(connection: Connection) -> None:
    parcel.send(connection, *"abcd")
    with transaction() as other:
        assert picked(other, 2) == ["a", "b"]
        assert picked(connection, 2) == []
    assert picked(connection, 2) == ["c", "d"]


def test_another_queue_is_picked_meanwhile(connection: Connection) -> None:
    parcel.send(connection, "a", "b")
    connection.execute(text("UPDATE jobs SET queue = 'other' WHERE subject_id = 'b'"))
    with transaction() as other:
        assert picked(other, 2) == ["a"]
        assert [job.subject_id for job in pick_jobs(connection, "other", 2, NEVER)] == ["b"]


def test_one_slot_in_eight_goes_to_what_has_aged_however_few_slots_a_pick_has(connection: Connection) -> None:
    parcel.send(connection, *[f"o{n:02}" for n in range(40)], priority=3)
    connection.execute(text("UPDATE jobs SET run_at = run_at - interval '2 min'"))
    parcel.send(connection, *[f"u{n:02}" for n in range(40)], priority=0)
    share = AgedShare()
    sent = [pick_jobs(connection, parcel.QUEUE, slots, 60.0, share.take(slots)) for slots in [1] * 16 + [3] * 8]
    names = [job.subject_id for jobs in sent for job in jobs]
    assert sum(name[0] == "o" for name in names[:16]) == 2
    assert sum(name[0] == "o" for name in names) == 5


def test_what_has_aged_and_was_passed_over_goes_out_as_critical_also_in_its_turn(connection: Connection) -> None:
    parcel.send(connection, "a", "b", priority=3)
    connection.execute(text("UPDATE jobs SET run_at = run_at - interval '2 min', dispatches = (subject_id = 'a')::int"))
    sent = pick_jobs(connection, parcel.QUEUE, 2, 60.0, 0)
    assert [(job.subject_id, job.priority) for job in sent] == [("a", 0), ("b", 3)]


def test_pickers_in_a_crowd_send_each_job_once(road: str) -> None:
    names = [f"p{n:03}" for n in range(400)]
    with statement() as connection:
        parcel.pack(connection, *names)
        parcel.ask(connection, *names)

    def pick(connection: Connection) -> list[str]:
        sent: list[str] = []
        for _ in range(60):
            sent += picked(connection, 7)
        return sent

    sent = [name for part in together(pick, pick, pick, pick) for name in part]
    assert len(sent) == len(set(sent))
    with statement() as connection:
        while rest := picked(connection, 100):
            sent += rest
        assert sorted(sent) == names
        assert set(connection.scalars(select(jobs.c.dispatches))) == {1}


def test_a_pick_does_not_wait_for_whoever_changes_a_job(connection: Connection) -> None:
    first, _ = parcel.send(connection, "a", "b")
    with transaction() as other:
        parcel.take(other, first)
        assert picked(connection, 9) == ["b"]


def sent_ago(connection: Connection, seconds: float, dispatches: int = 1) -> None:
    connection.execute(
        text(f"UPDATE jobs SET dispatches = {dispatches}, dispatched_at = clock_timestamp() - interval '{seconds} s'")
    )


def test_only_what_was_sent_long_ago_is_sent_again(connection: Connection) -> None:
    parcel.send(connection, "a", "b")
    picked(connection, 2)
    connection.execute(text("UPDATE jobs SET dispatched_at = dispatched_at - interval '6 s' WHERE subject_id = 'a'"))
    assert send_again(connection, parcel.QUEUE, 9, 5.0) == 1
    assert picked(connection, 9) == ["a"]
    assert parcel.job_of(connection, "a")["dispatches"] == 2


@pytest.mark.parametrize(("dispatches", "patience"), [(1, 5), (2, 10), (3, 20), (4, 40), (9, 40), (2000, 40)])
def test_each_time_it_is_sent_again_the_patience_doubles_up_to_a_bound(
    connection: Connection, dispatches: int, patience: float
) -> None:
    parcel.send(connection, "p")
    sent_ago(connection, patience - 2, dispatches)
    assert send_again(connection, parcel.QUEUE, 9, 5.0) == 0
    sent_ago(connection, patience + 1, dispatches)
    assert send_again(connection, parcel.QUEUE, 9, 5.0) == 1


def test_what_a_worker_took_is_not_sent_again(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    picked(connection, 1)
    parcel.take_one(connection, job)
    sent_ago(connection, 3600)
    assert send_again(connection, parcel.QUEUE, 9, 5.0) == 0


def test_no_more_is_sent_again_than_there_are_slots(connection: Connection) -> None:
    parcel.send(connection, *"abc")
    sent_ago(connection, 3600)
    assert send_again(connection, parcel.QUEUE, 2, 5.0) == 2


BACKLOG = text(
    """
    INSERT INTO jobs (task, subject_kind, subject_id, queue, correlation_id, timeout_seconds, priority, tenant)
    SELECT 'parcels.move', 'parcel', n::text, 'vans', 'c', 1, n % 4, 'tenant-' || n % 10 FROM generate_series(1, :n) n
    """
)


def test_a_pick_from_a_hundred_thousand_ready_jobs_touches_a_few_hundred(connection: Connection) -> None:
    connection.execute(BACKLOG, {"n": 100_000})
    connection.execute(text("ANALYZE jobs"))
    with rows_touched(connection) as touched:
        assert len(picked(connection, 24)) == 24
    # 40 pairs of priority and tenant, the 24 heads of each, and the row that ends each scan
    assert max(touched) < 40 * 24 * 3


def test_a_pick_waits_for_no_disk_and_whoever_uses_its_connection_next_does(connection: Connection) -> None:
    setting = text("SHOW synchronous_commit")
    parcel.send(connection, "a", "b")
    usual = connection.scalar(setting)
    with transaction() as other:
        other.execute(text("SET LOCAL synchronous_commit = on"))
        assert picked(other, 1) == ["a"]
        assert other.scalar(setting) == "off"
    assert picked(connection, 1) == ["b"]
    assert connection.scalar(setting) == usual
