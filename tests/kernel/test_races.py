"""Races between acts on one parcel: whoever comes second gets nothing, and nothing is left behind."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from models.kernel.jobs import jobs
from models.kernel.ledger import ledger
from models.kernel.session import statement
from tests.kernel import parcel
from tests.kernel.races import meanwhile, together


def started(connection: Connection, name: str = "p", **columns: object) -> dict[str, object]:
    (job,) = parcel.send(connection, name, **columns)
    return dict(parcel.take_one(connection, job))


def is_whole(connection: Connection, name: str = "p") -> bool:
    """The state, its job and its history agree: one ledger row for each revision, a job exactly while one is owed."""
    row = connection.execute(select(parcel.parcels).where(parcel.parcels.c.id == name)).one()
    told = connection.scalar(select(func.count()).select_from(ledger).where(ledger.c.subject_id == name))
    owed = connection.scalar(select(func.count()).select_from(jobs).where(jobs.c.subject_id == name))
    return told == row.revision and owed == (row.state in {"queued", "moving"})


def test_of_two_settles_exactly_one_wins(connection: Connection) -> None:
    taken = started(connection)
    one, other = meanwhile(lambda c: parcel.deliver(c, taken), lambda c: parcel.fail(c, taken))
    assert ([row["state"] for row in one], other) == (["delivered"], [])
    assert is_whole(connection)


def test_of_eight_settles_let_go_at_once_exactly_one_wins(connection: Connection) -> None:
    taken = started(connection)
    results = together(*[lambda c: parcel.deliver(c, taken)] * 4, *[lambda c: parcel.fail(c, taken)] * 4)
    assert sum(bool(rows) for rows in results) == 1
    assert is_whole(connection)


def test_of_two_takes_exactly_one_wins(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    one, other = meanwhile(lambda c: parcel.take(c, job), lambda c: parcel.take(c, job))
    assert (len(one), other) == (1, [])
    assert parcel.job_of(connection, "p")["attempt"] == 1


def test_of_two_accepts_exactly_one_makes_a_job(connection: Connection) -> None:
    parcel.pack(connection, "p")
    one, other = meanwhile(lambda c: parcel.ask(c, "p"), lambda c: parcel.ask(c, "p"))
    assert (len(one), other) == (1, [])
    assert parcel.count_jobs(connection) == 1


def test_a_cancel_that_comes_after_a_take_takes_the_job_away(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    one, other = meanwhile(lambda c: parcel.take(c, job), lambda c: parcel.cancel(c, "p"))
    assert len(one) == 1
    # It ran into a change: it may say so, and the caller looks again.
    assert other or parcel.cancel(connection, "p")
    assert parcel.state_of(connection, "p") == "cancelled"
    assert parcel.deliver(connection, one[0]) == []
    assert is_whole(connection)


def test_a_take_that_comes_after_a_cancel_gets_nothing(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    one, other = meanwhile(lambda c: parcel.cancel(c, "p"), lambda c: parcel.take(c, job))
    assert (len(one), other) == (1, [])
    assert is_whole(connection)


def test_a_cancel_that_comes_after_a_settle_changes_nothing(connection: Connection) -> None:
    taken = started(connection)
    one, other = meanwhile(lambda c: parcel.deliver(c, taken), lambda c: parcel.cancel(c, "p"))
    assert (len(one), other) == (1, [])
    assert parcel.state_of(connection, "p") == "delivered"
    assert is_whole(connection)


def test_a_settle_that_comes_after_a_cancel_changes_nothing(connection: Connection) -> None:
    taken = started(connection)
    one, other = meanwhile(lambda c: parcel.cancel(c, "p"), lambda c: parcel.deliver(c, taken))
    assert (len(one), other) == (1, [])
    assert parcel.state_of(connection, "p") == "cancelled"
    assert is_whole(connection)


def test_a_cancel_that_waited_for_an_accept_leaves_no_orphaned_job(connection: Connection) -> None:
    parcel.pack(connection, "p")
    one, other = meanwhile(lambda c: parcel.ask(c, "p"), lambda c: parcel.cancel(c, "p"))
    assert (len(one), other) == (1, [])
    assert is_whole(connection)
    assert len(parcel.cancel(connection, "p")) == 1
    assert is_whole(connection)


def test_a_forced_accept_that_meets_a_settle_finds_it_moving_and_the_next_one_owes_a_new_job(
    connection: Connection,
) -> None:
    taken = started(connection)
    one, other = meanwhile(lambda c: parcel.deliver(c, taken), lambda c: parcel.ask(c, "p", again=True))
    assert (len(one), other) == (1, [])  # it was moving when the accept began: that is what the accept found
    assert is_whole(connection)
    assert len(parcel.ask(connection, "p", again=True)) == 1
    assert parcel.job_of(connection, "p")["id"] != taken["job_id"]
    assert parcel.deliver(connection, taken) == []
    assert is_whole(connection)


def test_a_forced_accept_cannot_touch_what_is_moving(connection: Connection) -> None:
    taken = started(connection)
    assert parcel.ask(connection, "p", again=True) == []
    assert len(parcel.deliver(connection, taken)) == 1


def test_an_expiry_found_before_a_rerun_does_not_end_the_rerun(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    found = [parcel.Held(job, "p", None, 0, 3)]
    parcel.cancel(connection, "p")
    parcel.ask(connection, "p", again=True)
    assert parcel.expire(connection, found) == 0
    assert parcel.state_of(connection, "p") == "queued"
    assert is_whole(connection)


def test_an_expiry_that_comes_after_a_take_changes_nothing(connection: Connection) -> None:
    (job,) = parcel.send(connection, "p")
    found = [parcel.Held(job, "p", None, 0, 3)]
    one, other = meanwhile(lambda c: parcel.take(c, job), lambda c: parcel.expire(c, found))
    assert (len(one), other) == (1, 0)
    assert is_whole(connection)


def test_a_reaper_and_a_settle_end_an_attempt_once(connection: Connection) -> None:
    taken = started(connection, tries=1)
    lost = [parcel.Held(taken["job_id"], "p", taken["fence"], 1, 1)]  # type: ignore[arg-type]
    one, other = meanwhile(lambda c: parcel.lose(c, lost), lambda c: parcel.deliver(c, taken))
    assert (one, other) == (1, [])
    assert parcel.state_of(connection, "p") == "failed"
    assert is_whole(connection)


def test_a_crowd_doing_everything_at_once_leaves_every_parcel_whole(road: str) -> None:
    names = [f"p{n}" for n in range(4)]
    with statement() as connection:
        parcel.pack(connection, *names)

    def carry(connection: Connection) -> None:
        for _ in range(60):
            ready = list(connection.scalars(select(jobs.c.id).where(jobs.c.fence.is_(None))))
            for job in ready:
                for taken in parcel.take(connection, job):
                    parcel.deliver(connection, taken)

    def disturb(connection: Connection) -> None:
        for _ in range(60):
            parcel.ask(connection, *names, again=True)
            parcel.cancel(connection, *names[::2])

    together(carry, disturb, carry, disturb)
    with statement() as connection:
        assert all(is_whole(connection, name) for name in names)
