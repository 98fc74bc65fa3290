"""The log: numbered without gaps in the order of commits, kept to the byte, and refused to change by the database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from models.engine.contract import Received, check_event
from models.engine.inputs import (
    Appended,
    append_events,
    append_parts,
    close_time,
    count_records,
    find_cut_end,
    find_snapshot,
    partition_rows,
)
from models.kernel.errors import Conflict, Invalid, Unavailable
from models.kernel.session import plain_errors, statement, transaction
from tests.engine.market import MINUTES_3, SOURCES, event, snapshot, text_of

ROOM = 100_000


def received(*events: Any) -> list[Received]:
    return [check_event(each if isinstance(each, bytes) else text_of(each), SOURCES) for each in events]


def append(*events: Any, max_records: int = ROOM, now_ms: int | None = None) -> Appended:
    with transaction() as connection:
        return append_events(connection, received(*events), max_records=max_records, now_ms=now_ms)


def rows(sql: str, **values: Any) -> list[dict[str, Any]]:
    with statement() as connection:
        return [dict(row) for row in connection.execute(text(sql), values).mappings()]


def test_numbers_begin_at_one_and_go_on_without_gaps(database: str) -> None:
    first, second = append(event(), snapshot()), append(event())
    assert (first.accepted, first.first_ingest_seq, first.last_ingest_seq) == (2, 1, 2)
    assert (second.accepted, second.first_ingest_seq, second.last_ingest_seq) == (1, 3, 3)
    found = rows("SELECT * FROM engine_inputs ORDER BY ingest_seq")
    assert [row["ingest_seq"] for row in found] == [1, 2, 3]
    assert [row["snapshot_ts_ms"] for row in found] == [None, MINUTES_3, None]
    assert [row["ingest_ts_ms"] for row in found] == [first.ingest_ts_ms] * 2 + [second.ingest_ts_ms]
    assert {(row["source_id"], row["symbol"]) for row in found} == {("binance", "BTC-USD")}


ODD_TEXTS = [
    b'{"payload" : "\\u0000 \\n \\\\. \xc3\xa9\xf0\x9f\x90\x88"',
    b'{\r\n\t"a": "\\"",\n "\\\\.": 1',
    b'{"huge": 123456789012345678901234567890.50, "twice": 1, "twice": 2',
]


@pytest.mark.parametrize("beginning", ODD_TEXTS)
def test_the_text_is_kept_byte_for_byte(database: str, beginning: bytes) -> None:
    whole = beginning + b", " + text_of(event())[1:]
    append(whole, event())
    kept = rows("SELECT event FROM engine_inputs ORDER BY ingest_seq")
    assert [row["event"].encode() for row in kept] == [whole, text_of(event())]


def test_a_batch_of_thousands_crosses_partitions_that_are_made_for_it(database: str) -> None:
    append(event(), max_records=4000)
    made = append(*[event()] * 2500, max_records=4000)
    assert made.last_ingest_seq == 2501
    found = rows("SELECT min(ingest_seq), max(ingest_seq) FROM engine_inputs GROUP BY tableoid ORDER BY 1")
    assert [(row["min"], row["max"]) for row in found] == [(1, 1000), (1001, 2000), (2001, 2501)]
    assert rows("SELECT count(*) AS n FROM engine_inputs") == [{"n": 2501}]


def test_partitions_are_small_enough_that_a_whole_one_can_go() -> None:
    assert [partition_rows(n) for n in (1, 10, 1000, 5000, 50_000, 16 * 10**6, 10**9)] == [
        1, 2, 250, 1000, 3125, 10**6, 10**6,
    ]  # fmt: skip


def test_a_full_buffer_takes_nothing_and_says_how_full_it_is(database: str) -> None:
    append(event(), event(), max_records=3)
    with pytest.raises(Unavailable) as refused:
        append(event(), event(), max_records=3)
    assert refused.value.code == "buffer_full"
    assert "2 of 3" in refused.value.message
    assert append(event(), max_records=3).first_ingest_seq == 3
    assert rows("SELECT sum(events) AS n FROM engine_totals") == [{"n": 3}]


def test_a_stopped_engine_takes_nothing(database: str) -> None:
    rows("UPDATE engine_control SET state = 'stopped' RETURNING id")
    with pytest.raises(Unavailable) as refused:
        append(event())
    assert refused.value.code == "engine_stopped"
    assert rows("SELECT last_seq FROM engine_head") == [{"last_seq": 0}]


def test_an_empty_batch_is_invalid(database: str) -> None:
    with pytest.raises(Invalid):
        append()


def test_a_rolled_back_append_leaves_no_gap_and_no_trace(database: str) -> None:
    def fail(events: list[Received]) -> None:
        with transaction() as connection:
            append_events(connection, events, max_records=ROOM)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(received(event(), snapshot(symbol="ETH-USD")))
    assert append(event()).first_ingest_seq == 1
    assert rows("SELECT symbol, first_seq FROM engine_symbols") == [{"symbol": "BTC-USD", "first_seq": 1}]
    assert rows("SELECT * FROM engine_totals") == [{"source_id": "binance", "event_type": "TradeTick", "events": 1}]
    assert rows("SELECT count(*) AS n FROM engine_appends") == [{"n": 1}]


def is_appending() -> bool:
    """Whether somebody holds the log's head."""
    try:
        with transaction() as connection, plain_errors():
            connection.execute(text("SELECT FROM engine_head FOR UPDATE NOWAIT"))
    except Conflict:
        return True
    return False


def test_the_parts_of_a_batch_are_made_one_by_one_and_the_first_before_others_have_to_wait(database: str) -> None:
    waits: list[bool] = []

    def parts() -> Iterator[list[Received]]:
        for each in (event(), snapshot()), (event(symbol="ETH-USD"),), (event(), event()):
            waits.append(is_appending())
            yield received(*each)

    append(event())
    with transaction() as connection:
        made = append_parts(connection, 5, parts(), max_records=ROOM)
    assert waits == [False, True, True]
    assert (made.first_ingest_seq, made.last_ingest_seq, made.symbols) == (2, 6, ["BTC-USD", "ETH-USD"])
    assert [row["ingest_seq"] for row in rows("SELECT ingest_seq FROM engine_inputs ORDER BY 1")] == [*range(1, 7)]
    assert rows("SELECT symbol, first_seq FROM engine_symbols ORDER BY 1") == [
        {"symbol": "BTC-USD", "first_seq": 1},
        {"symbol": "ETH-USD", "first_seq": 4},
    ]
    with statement() as connection:
        of_btc = {"TradeTick": 3, "SnapshotInputs": 1}
        assert count_records(connection, 1, 6) == {"BTC-USD": of_btc, "ETH-USD": {"TradeTick": 1}}


def test_a_part_that_cannot_be_made_says_why_and_leaves_no_gap_and_no_trace(database: str) -> None:
    def parts() -> Iterator[list[Received]]:
        yield received(event(), snapshot())
        yield received(event(symbol="NO-PE"))

    with pytest.raises(Invalid, match="NO-PE"), transaction() as connection:
        append_parts(connection, 3, parts(), max_records=ROOM)
    assert append(event()).first_ingest_seq == 1
    assert rows("SELECT count(*) AS n FROM engine_inputs") == [{"n": 1}]
    assert rows("SELECT sum(events) AS n FROM engine_totals") == [{"n": 1}]


def test_a_symbol_is_known_from_its_first_record_on(database: str) -> None:
    append(event(), event(), event(symbol="ETH-USD"))
    append(event(symbol="ETH-USD"), event())
    known = rows("SELECT symbol, first_seq FROM engine_symbols ORDER BY symbol")
    assert known == [{"symbol": "BTC-USD", "first_seq": 1}, {"symbol": "ETH-USD", "first_seq": 3}]


def test_totals_count_by_source_and_event_type(database: str) -> None:
    append(event(), event(source_id="kraken"), snapshot())
    append(event(), event("Novelty"))
    found = rows("SELECT source_id, event_type, events FROM engine_totals ORDER BY 1, 2")
    assert [tuple(row.values()) for row in found] == [
        ("binance", "Novelty", 1),
        ("binance", "SnapshotInputs", 1),
        ("binance", "TradeTick", 2),
        ("kraken", "TradeTick", 1),
    ]


def test_a_sender_that_invents_names_is_counted_as_other_beyond_the_bound(database: str) -> None:
    append(event())
    append(event(), *(event(event_type=f"Odd{n:04}") for n in range(1200)))
    append(*(event(event_type=f"Odd{n:04}") for n in (0, 1199)))
    found = {row["event_type"]: int(row["events"]) for row in rows("SELECT event_type, events FROM engine_totals")}
    assert len(found) == 1001
    assert (found["TradeTick"], found["Odd0000"], found["other"]) == (2, 2, 202)


def test_the_time_of_the_log_never_goes_back(database: str) -> None:
    assert append(event(), now_ms=5000).ingest_ts_ms == 5000
    assert append(event(), now_ms=4000).ingest_ts_ms == 5000
    with transaction() as connection:
        close_time(connection, 7000)
    with transaction() as connection:
        close_time(connection, 6000)
    assert append(event(), now_ms=6500).ingest_ts_ms == 7000
    assert append(event()).ingest_ts_ms > 1_700_000_000_000


def test_a_cut_ends_with_the_newest_append_that_is_not_younger(database: str) -> None:
    append(event(), event(), now_ms=1000)
    append(event(), now_ms=1000)
    append(event(), event(), now_ms=2000)
    with statement() as connection:
        ends = [find_cut_end(connection, planned) for planned in (999, 1000, 1999, 2000, 2001)]
    assert ends == [0, 3, 3, 5, 5]


def test_counts_of_a_cut_are_by_symbol_and_event_type(database: str) -> None:
    append(event(), now_ms=1)
    append(event(), snapshot(symbol="ETH-USD"), event(), now_ms=2)
    append(event("Novelty"), now_ms=3)
    with statement() as connection:
        assert count_records(connection, 1, 5) == {
            "BTC-USD": {"TradeTick": 2, "Novelty": 1},
            "ETH-USD": {"SnapshotInputs": 1},
        }
        assert count_records(connection, 1, 1) == {}
        assert count_records(connection, 0, 1) == {"BTC-USD": {"TradeTick": 1}}


def test_the_last_snapshot_inputs_within_the_cut_is_selected(database: str) -> None:
    append(snapshot(market={"price": 1}), snapshot(symbol="ETH-USD"), snapshot(market={"price": 2}))
    append(snapshot(market={"price": 3}), snapshot(2 * MINUTES_3))
    with statement() as connection:
        assert find_snapshot(connection, "BTC-USD", MINUTES_3, 1, 3) == (
            3,
            text_of(snapshot(market={"price": 2})).decode(),
        )
        assert find_snapshot(connection, "BTC-USD", MINUTES_3, 2, 5) == (
            4,
            text_of(snapshot(market={"price": 3})).decode(),
        )
        assert find_snapshot(connection, "BTC-USD", MINUTES_3, 5, 5) is None
        assert find_snapshot(connection, "ETH-USD", 2 * MINUTES_3, 1, 5) is None


@pytest.mark.parametrize("table", ["engine_inputs", "engine_inputs_0000000000000000001"])
@pytest.mark.parametrize(
    "act", ["UPDATE {} SET event = '' WHERE ingest_seq = 1", "DELETE FROM {}", "TRUNCATE {}", "DELETE FROM ONLY {}"]
)
def test_the_database_itself_refuses_to_change_the_log(database: str, table: str, act: str) -> None:
    append(event())
    if act.startswith("DELETE FROM ONLY") and table == "engine_inputs":
        return  # the parent itself holds no row
    with pytest.raises(DBAPIError, match="append-only"), transaction() as connection:
        connection.execute(text(act.format(table)))
    assert rows("SELECT count(*) AS n FROM engine_inputs") == [{"n": 1}]
