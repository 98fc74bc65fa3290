"""Retention of the log: partitions in time, whole ones gone oldest first, never one that is needed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from celeryconfig import SCHEDULES
from models.engine.contract import Received
from models.engine.inputs import append_events, count_records, find_cut_end
from models.engine.queries import list_lasts
from models.engine.retention import (
    forget_old_inputs,
    list_marks,
    list_partitions,
    remove_mark,
    set_mark,
    tend_inputs,
)
from models.kernel.clients import Caller
from models.kernel.errors import Conflict, Gone, Invalid, NotFound, Unavailable
from models.kernel.session import statement, transaction
from orchestrator_tasks.schedules import DUTIES
from tests.conftest import forget
from tests.engine.configured import configure
from tests.engine.market import event
from tests.engine.test_cut_safety import race
from tests.engine.test_inputs import append, received, rows
from tests.kernel.races import DEADLINE_SECONDS, alone, waits_or_ends

ROOM = 40  # partitions of ten; thirty are kept
RUN = """
    INSERT INTO engine_runs (id, symbol, engine_timestamp_ms, engine_mode, cut_kind, cut_start_ingest_seq,
        cut_end_ingest_seq, counts_by_event_type, planned_ts_ms, max_attempts, timeout_seconds, config_version,
        state, correlation_id, started_ts_ms)
    VALUES (repeat('a', 64), 'BTC-USD', 0, 'truth', 'timer', :start, :end, '{}', 0, 1, 1,
        (SELECT config_version FROM engine_control), :state, 'c', CASE WHEN :state = 'planned' THEN NULL ELSE 1 END)
    RETURNING id
"""


@pytest.fixture
def log(database: str) -> str:
    """Thirty-five records in four partitions of ten, one batch of five after the other, all of them in a cut."""
    configure(max_records=ROOM)
    for number in range(7):
        append(*[event()] * 5, max_records=ROOM, now_ms=1000 + number)
    cut(35)
    return database


def cut(end: int) -> None:
    rows("UPDATE engine_symbols SET cut_end_ingest_seq = :end RETURNING symbol", end=end)


def tend() -> list[str]:
    return list(alone(tend_inputs))


def partitions() -> list[tuple[int, int]]:
    return [(each.first, each.beyond) for each in alone(list_partitions)]


def kept() -> list[int]:
    return [row["n"] for row in rows("SELECT ingest_seq AS n FROM engine_inputs ORDER BY 1")]


def begins() -> int:
    return int(rows("SELECT first_seq AS n FROM engine_head")[0]["n"])


def name(first: int) -> str:
    return f"engine_inputs_{first:019d}"


def test_the_oldest_whole_partition_goes_so_that_three_quarters_are_kept(log: str) -> None:
    assert tend() == [name(1)]
    assert kept() == [*range(11, 36)]
    assert begins() == 11
    assert [row["n"] for row in rows("SELECT last_seq AS n FROM engine_appends ORDER BY 1")] == [15, 20, 25, 30, 35]
    assert tend() == []


def test_partitions_are_made_ahead(log: str) -> None:
    tend()
    assert partitions() == [(11, 21), (21, 31), (31, 41), (41, 51), (51, 61)]


def test_nothing_goes_without_a_bound_that_asks_for_it(log: str) -> None:
    configure(max_records=10_000)
    assert tend() == []
    assert kept() == [*range(1, 36)]


def test_nothing_happens_without_a_configuration(database: str) -> None:
    assert tend() == []
    assert partitions() == []


def test_what_is_older_than_the_greatest_age_goes_by_whole_partitions(database: str) -> None:
    configure(max_records=ROOM, max_age_ms=3_600_000)
    append(*[event()] * 15, max_records=ROOM, now_ms=1000)
    append(event(), max_records=ROOM)
    cut(16)
    assert tend() == [name(1)]
    assert kept() == [*range(11, 17)]


def test_what_is_young_enough_stays(database: str) -> None:
    configure(max_records=ROOM, max_age_ms=3_600_000)
    append(*[event()] * 25, max_records=ROOM)
    cut(25)
    assert tend() == []


@pytest.mark.parametrize("state", ["planned", "started", "waiting"])
def test_what_an_unfinished_run_needs_stays_until_it_has_ended(log: str, state: str) -> None:
    rows(RUN, start=10, end=20, state=state)
    assert tend() == []
    rows("UPDATE engine_runs SET state = 'completed', started_ts_ms = 1, completed_ts_ms = 1 RETURNING id")
    assert tend() == [name(1)]


def test_an_unfinished_run_keeps_nothing_older_than_its_cut(log: str) -> None:
    rows(RUN, start=11, end=20, state="planned")
    assert tend() == [name(1)]


def test_what_was_in_no_cut_yet_stays(log: str) -> None:
    cut(9)
    assert tend() == []
    cut(10)
    assert tend() == [name(1)]


def test_what_a_symbol_without_any_cut_needs_stays(log: str) -> None:
    rows("UPDATE engine_symbols SET cut_end_ingest_seq = NULL RETURNING symbol")
    assert tend() == []


def test_a_symbol_that_is_configured_no_longer_keeps_nothing(log: str) -> None:
    cut(5)
    configure(max_records=ROOM, sources=[{"source_id": "binance", "symbols": ["ETH-USD"]}])
    assert tend() == [name(1)]


def test_the_next_cut_of_a_symbol_that_comes_back_begins_with_what_is_kept(log: str) -> None:
    cut(3)
    configure(max_records=ROOM, sources=[{"source_id": "binance", "symbols": ["ETH-USD"]}])
    tend()
    with statement() as connection:
        assert list_lasts(connection, ["BTC-USD"])["BTC-USD"].next_start == 11


def test_what_a_mark_keeps_stays_until_it_is_removed(log: str, writer: Caller) -> None:
    with transaction() as connection:
        mark = set_mark(connection, "audit", 10, writer)
    assert (mark.name, mark.ingest_seq, mark.created_by) == ("audit", 10, "writer")
    assert tend() == []
    with transaction() as connection:
        remove_mark(connection, "audit", writer)
    assert tend() == [name(1)]
    told = rows("SELECT topic, body FROM ledger WHERE subject_kind = 'engine_mark' ORDER BY seq")
    assert [row["topic"] for row in told] == ["engine_mark_set", "engine_mark_removed"]
    assert {row["body"]["ingest_seq"] for row in told} == {10}


def test_a_mark_without_a_record_keeps_all_that_there_are(log: str, writer: Caller) -> None:
    with transaction() as connection:
        assert set_mark(connection, "all", None, writer).ingest_seq == 1
        assert set_mark(connection, "all", None, writer).ingest_seq == 1
        assert [mark.name for mark in list_marks(connection)] == ["all"]


def test_a_mark_on_what_is_gone_or_to_come_is_refused(log: str, writer: Caller) -> None:
    def mark(ingest_seq: int, name: str = "late") -> Any:
        with transaction() as connection:
            return set_mark(connection, name, ingest_seq, writer)

    tend()
    with pytest.raises(Gone):
        mark(10)
    with pytest.raises(Invalid):
        mark(37)
    assert mark(36).ingest_seq == 36
    with pytest.raises(Conflict):
        mark(35)
    with pytest.raises(NotFound), transaction() as connection:
        remove_mark(connection, "nothing", writer)


def test_a_mark_that_is_set_while_retention_decides_fails_rather_than_keep_nothing(log: str, writer: Caller) -> None:
    refusal = race(lambda c: forget_old_inputs(c, ROOM, None), lambda c: set_mark(c, "late", 5, writer)).exception()
    assert isinstance(refusal, Gone)


def test_retention_that_waits_for_a_mark_keeps_what_it_marks(log: str, writer: Caller) -> None:
    first = race(lambda c: set_mark(c, "early", 5, writer), lambda c: forget_old_inputs(c, ROOM, None)).result()
    assert first == 1


def test_appends_and_reads_go_on_while_a_partition_is_dropped(log: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        with transaction() as reading:
            assert reading.scalar(text("SELECT count(*) FROM engine_inputs")) == 35
            dropping = pool.submit(tend)
            waits_or_ends(dropping)
            assert not dropping.done()
            assert append(event(), max_records=ROOM).first_ingest_seq == 36
            assert kept() == [*range(11, 37)]
        assert dropping.result(DEADLINE_SECONDS) == [name(1)]


def test_a_drop_that_a_reader_held_up_for_too_long_is_finished_by_the_next(
    log: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("ORCHESTRATOR_LOCK_TIMEOUT", "0.3")
    forget()
    with transaction() as reading:
        reading.execute(text("SELECT FROM engine_inputs"))
        with pytest.raises(Conflict):
            tend()
        assert append(event(), max_records=ROOM).first_ingest_seq == 36
    assert tend() == [name(1)]
    assert kept() == [*range(11, 37)]


def test_the_schedule_tends_the_log(log: str) -> None:
    assert "engine_inputs" in SCHEDULES
    DUTIES["engine_inputs"]()
    assert begins() == 11


def test_what_a_process_left_that_died_in_between_goes_with_the_next(log: str) -> None:
    with transaction() as connection:
        assert forget_old_inputs(connection, ROOM, None) == 11
    assert kept()[0] == 1
    assert tend() == [name(1)]


def test_a_detached_partition_is_dropped_by_the_next(log: str) -> None:
    with transaction() as connection:
        forget_old_inputs(connection, ROOM, None)
    alone(lambda c: c.execute(text(f'ALTER TABLE engine_inputs DETACH PARTITION "{name(1)}"')))
    assert tend() == [name(1)]


def test_a_full_buffer_takes_again_once_retention_made_room(log: str) -> None:
    full: list[Received] = received(*[event()] * 6)
    with pytest.raises(Unavailable), transaction() as connection:
        append_events(connection, full, max_records=ROOM)
    tend()
    assert append(*[event()] * 6, max_records=ROOM).last_ingest_seq == 41


def test_a_smaller_buffer_is_not_blocked_by_a_partition_made_for_a_larger_one(database: str) -> None:
    configure(max_records=1_000_000)
    append(*[event()] * 39, max_records=1_000_000, now_ms=1000)
    tend()
    configure(max_records=ROOM)
    cut(39)
    assert tend() == [name(1)]
    assert kept() == []
    assert begins() == 40
    assert append(*[event()] * 21, max_records=ROOM).first_ingest_seq == 40
    assert partitions()[:2] == [(40, 50), (50, 60)]
    assert rows("SELECT count(*) AS n FROM engine_inputs") == [{"n": 21}]


def test_the_log_refuses_changes_also_in_a_partition_that_was_made_smaller(database: str) -> None:
    configure(max_records=1_000_000)
    append(event(), max_records=1_000_000)
    configure(max_records=ROOM)
    tend()
    for act in (f"DELETE FROM {name(1)}", f"TRUNCATE {name(1)}", f"UPDATE {name(1)} SET event = ''"):
        with pytest.raises(Exception, match="append-only"), transaction() as connection:
            connection.execute(text(act))


def test_cuts_and_counts_know_only_what_is_kept(log: str) -> None:
    tend()
    with statement() as connection:
        assert find_cut_end(connection, 1001) == 0
        assert find_cut_end(connection, 1002) == 15
        assert count_records(connection, 0, 35) == {"BTC-USD": {"TradeTick": 25}}
