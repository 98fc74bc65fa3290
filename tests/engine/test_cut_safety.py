"""A cut once taken never gains a record: whatever appends and cuts follow each other, and whoever waits for whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from sqlalchemy import Connection, text

from models.engine.inputs import Appended, append_events, close_time, find_cut_end
from models.kernel.errors import Unavailable
from models.kernel.session import statement, transaction
from tests.conftest import forget
from tests.engine.market import event
from tests.engine.test_inputs import ROOM, append, received, rows
from tests.kernel.races import DEADLINE_SECONDS, waits_or_ends

REAL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Append:
    """A batch by a process whose clock is off by so much; it may be rolled back."""

    count: int
    skew_ms: int
    fails: bool


@dataclass(frozen=True)
class Cut:
    """A tick that is planned so late."""

    late_ms: int


steps = some.lists(
    some.tuples(
        some.integers(0, 40),
        some.builds(Append, some.integers(1, 4), some.integers(-60, 60), some.booleans())
        | some.builds(Cut, some.integers(1, 60)),
    ),
    max_size=25,
)


class Undone(Exception):
    """Everything of this example goes again."""


def carry_out(connection: Connection, plan: list[tuple[int, Append | Cut]]) -> Iterator[dict[int, int]]:
    """Follow the plan; after each step the ends of all cuts that were taken, by planned time, read anew."""
    now_ms, cuts = 1000, dict[int, int]()
    for passed, step in plan:
        now_ms += passed
        if isinstance(step, Append):
            batch = received(*[event()] * step.count)
            saved = connection.begin_nested()
            append_events(connection, batch, max_records=ROOM, now_ms=now_ms + step.skew_ms)
            saved.rollback() if step.fails else saved.commit()
        else:
            planned = now_ms - step.late_ms
            close_time(connection, now_ms)
            cuts.setdefault(planned, find_cut_end(connection, planned))
        again = {planned: find_cut_end(connection, planned) for planned in cuts}
        assert again == cuts
        yield cuts


@REAL
@given(steps)
def test_no_interleaving_of_appends_and_cuts_adds_to_a_cut(database: str, plan: list[tuple[int, Append | Cut]]) -> None:
    def follow() -> None:
        with transaction() as connection:
            cuts = [dict(each) for each in carry_out(connection, plan)]
            ends = [end for _, end in sorted((cuts or [{}])[-1].items())]
            assert ends == sorted(ends)
            numbers = list(connection.scalars(text("SELECT ingest_seq FROM engine_inputs ORDER BY ingest_seq")))
            appended = sum(step.count for _, step in plan if isinstance(step, Append) and not step.fails)
            assert numbers == list(range(1, appended + 1))
            times = list(connection.scalars(text("SELECT ingest_ts_ms FROM engine_inputs ORDER BY ingest_seq")))
            assert times == sorted(times)
            raise Undone

    with pytest.raises(Undone):
        follow()


def apart(act: Callable[[Connection], Any]) -> Any:
    with transaction() as connection:
        return act(connection)


def appending(count: int, now_ms: int, max_records: int = ROOM) -> Callable[[Connection], Appended]:
    batch = received(*[event()] * count)
    return lambda connection: append_events(connection, batch, max_records=max_records, now_ms=now_ms)


def race(
    first: Callable[[Connection], Any], second: Callable[[Connection], Any], *, fails: bool = False
) -> Future[Any]:
    """`first` holds the append lock, uncommitted, while `second` waits for it; then it commits, or fails."""
    with ThreadPoolExecutor(1) as pool:
        try:
            with transaction() as connection:
                first(connection)
                other = pool.submit(apart, second)
                waits_or_ends(other)
                assert not other.done()
                if fails:
                    raise Undone
        except Undone:
            pass
        other.exception(DEADLINE_SECONDS)
        return other


def cut_end(planned_ts_ms: int) -> int:
    with statement() as connection:
        return find_cut_end(connection, planned_ts_ms)


def test_an_append_that_waited_while_time_was_closed_is_younger(database: str) -> None:
    append(event(), now_ms=3000)
    waited = race(lambda connection: close_time(connection, 5001), appending(2, 4000)).result()
    assert waited.ingest_ts_ms == 5001
    assert (cut_end(5000), cut_end(5001)) == (1, 3)


def test_whoever_closes_time_waits_for_the_append_under_way_and_then_sees_it(database: str) -> None:
    append(event(), now_ms=1000)

    def plan(connection: Connection) -> int:
        close_time(connection, 5001)
        return find_cut_end(connection, 5000)

    assert race(appending(2, 4000), plan).result() == 3
    assert append(event(), now_ms=4000).ingest_ts_ms == 5001
    assert cut_end(5000) == 3


def test_an_append_behind_one_that_is_rolled_back_takes_its_numbers(database: str) -> None:
    append(event(), now_ms=1000)
    follower = race(appending(3, 9000), appending(2, 2000), fails=True).result()
    assert (follower.first_ingest_seq, follower.last_ingest_seq, follower.ingest_ts_ms) == (2, 3, 2000)
    assert rows("SELECT last_seq, first_seq, ingest_ts_ms FROM engine_appends ORDER BY 1") == [
        {"last_seq": 1, "first_seq": 1, "ingest_ts_ms": 1000},
        {"last_seq": 3, "first_seq": 2, "ingest_ts_ms": 2000},
    ]


def test_an_append_behind_one_that_commits_numbers_on_and_adds_to_its_counts(database: str) -> None:
    follower = race(appending(3, 9000), appending(2, 2000)).result()
    assert (follower.first_ingest_seq, follower.last_ingest_seq, follower.ingest_ts_ms) == (4, 5, 9000)
    assert rows("SELECT events FROM engine_totals") == [{"events": 5}]
    assert rows("SELECT first_seq FROM engine_symbols") == [{"first_seq": 1}]


def test_of_two_that_want_the_last_room_one_is_refused(database: str) -> None:
    append(event(), max_records=4)
    loser = race(appending(2, 1, 4), appending(2, 1, 4))
    refusal = loser.exception()
    assert isinstance(refusal, Unavailable)
    assert refusal.code == "buffer_full"
    assert rows("SELECT last_seq FROM engine_head") == [{"last_seq": 3}]


def test_who_waits_too_long_for_the_lock_is_told_to_come_back(database: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ORCHESTRATOR_LOCK_TIMEOUT", "0.2")
    forget()
    with ThreadPoolExecutor(1) as pool, transaction() as connection:
        appending(1, 1)(connection)
        refusal = pool.submit(apart, appending(1, 1)).exception(DEADLINE_SECONDS)
    assert isinstance(refusal, Unavailable)
    assert refusal.code == "buffer_busy"


def test_appends_of_many_at_once_leave_no_gap(database: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda count: append(*[event()] * count), [1, 5, 2, 7, 3, 1, 4, 6] * 4))
    found = sorted((one.first_ingest_seq, one.last_ingest_seq) for one in made)
    assert [first for first, _ in found] == [1, *(last + 1 for _, last in found[:-1])]
    assert [row["n"] for row in rows("SELECT ingest_seq AS n FROM engine_inputs ORDER BY 1")] == [*range(1, 117)]
    times = [row["t"] for row in rows("SELECT ingest_ts_ms AS t FROM engine_inputs ORDER BY ingest_seq")]
    assert times == sorted(times)
    assert rows("SELECT sum(events)::int AS n FROM engine_totals") == [{"n": 116}]
