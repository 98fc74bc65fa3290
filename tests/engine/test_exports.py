"""Exports of real runs: what they hold, that they replay to what was published, and what retention has taken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from models.engine import exports
from models.engine.divergence import Digest, verify
from models.engine.exports import Range, export_lines, plan_export
from models.engine.replay import replay
from models.kernel.errors import Gone, NotFound
from models.kernel.session import statement
from tests.engine import desk
from tests.engine.carried import carry_out, example, exported
from tests.engine.desk import DELAY_MS, INTERVAL_MS, START_MS, inputs, trade
from tests.engine.written import stand_in

pytestmark = pytest.mark.usefixtures("database")

BTC, ETH = desk.SYMBOLS
TICKS = 6
MODES = ("truth", "hysteresis")


def market(tick: int, **more: float) -> dict[str, Any]:
    price = 100 + 7 * (tick % 4)
    return {"market": {"price": price, "vwap": 100, "atr": 2, "atr_z": tick / 3, **more}, "flow": {"cvd": -0.0}}


def plan_day(mode: str = "truth", ticks: int = TICKS) -> None:
    """Ticks of two symbols with late, doubled and missing snapshots; nothing is carried out yet."""
    desk.running(engine={"engine_mode": mode, "hysteresis": {"min_persistence_updates": 2}})
    for tick in range(1, ticks + 1):
        of = START_MS + tick * INTERVAL_MS
        now = of - 5
        desk.append(trade(), inputs(of, **market(tick)), inputs(of - INTERVAL_MS, ETH), now_ms=now)
        desk.append(trade(ETH, "Novel"), inputs(of, **market(tick, sweep_score=1e22)), now_ms=now + 1)
        if tick % 2:
            desk.append(inputs(of, ETH, **market(tick + 1)), now_ms=now + 2)
        desk.plan(of + DELAY_MS + 1)


def day(mode: str = "truth") -> None:
    plan_day(mode)
    carry_out(example())


def read(lines: list[bytes], kind: str) -> list[dict[str, Any]]:
    return [body for line in lines if (body := json.loads(line))["kind"] == kind]


def digest_of(lines: list[bytes]) -> str:
    digest = Digest()
    for run in replay(lines, example()):
        digest.add(run.texts)
    return digest.text()


@pytest.mark.parametrize("mode", MODES)
def test_an_export_replays_to_the_bytes_that_were_published(mode: str) -> None:
    day(mode)
    lines = exported()
    assert verify(lines, example()) is None
    published = [row["event"] for row in desk.outputs()]
    texts = [text for run in replay(lines, example()) for text in run.texts]
    without = [{n: v for n, v in json.loads(text).items() if n != "published_ts_ms"} for text in published]
    assert sorted(texts) == sorted(
        json.dumps(e, sort_keys=True, separators=(",", ":"), ensure_ascii=False) for e in without
    )
    assert len(texts) == len(published) >= 4 * TICKS
    assert {event["payload"] is None or "error_kind" in event["payload"] for event in without} == {True, False}


@pytest.mark.parametrize("mode", MODES)
def test_two_exports_are_equal_to_the_byte_whatever_the_size_of_their_pages(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    day(mode)
    lines = exported()
    for name, size in (("RUNS_IN_PAGE", 3), ("RECORDS_IN_PAGE", 4), ("BYTES_IN_PAGE", 700)):
        monkeypatch.setattr(exports, name, size)
    assert exported() == lines
    monkeypatch.setattr(exports, "BYTES_IN_PAGE", 1)
    assert exported() == lines


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("since", [2, 5, 8])
def test_a_part_begins_with_the_states_before_it_and_with_its_own_records(mode: str, since: int) -> None:
    day(mode)
    lines = exported(since_number=since, upto_number=10)
    assert verify(lines, example()) is None
    assert [run["number"] for run in read(lines, "run")] == [*range(since, 11)]
    assert read(lines, "record")[0]["ingest_seq"] == min(r["cut_start_ingest_seq"] for r in read(lines, "run"))
    assert bool(read(lines, "state")) == (mode == "hysteresis")


def test_a_part_is_chosen_by_planned_time_or_by_symbol() -> None:
    day("hysteresis")
    of = START_MS + 3 * INTERVAL_MS + DELAY_MS
    lines = exported(since_planned_ms=of, upto_planned_ms=of + INTERVAL_MS)
    assert {run["planned_ts_ms"] for run in read(lines, "run")} == {of, of + INTERVAL_MS}
    assert verify(lines, example()) is None
    assert read(exported(since_planned_ms=10**15), "run") == []
    alone = exported(symbols=frozenset({ETH}))
    assert {run["symbol"] for run in read(alone, "run")} == {ETH}
    assert verify(alone, example()) is None


def test_an_unknown_symbol_is_refused() -> None:
    day()
    with pytest.raises(NotFound, match="DOGE"):
        exported(symbols=frozenset({BTC, "DOGE"}))


def test_an_engine_without_runs_exports_and_replays_to_nothing() -> None:
    lines = exported()
    assert [json.loads(line)["kind"] for line in lines] == ["header", "end"]
    assert list(replay(lines, example())) == []


def test_unfinished_runs_are_left_out_and_counted() -> None:
    plan_day("hysteresis")
    carry_out(example(), most=5)
    lines = exported()
    assert read(lines, "end")[0]["counts"] | {"config": 1} == {
        "config": 1,
        "state": 0,
        "record": len(read(lines, "record")),
        "run": 5,
        "output": len(desk.outputs()),
        "unfinished": len(desk.runs()) - 5,
        "dropped": 0,
    }
    assert verify(lines, example()) is None


def test_runs_that_end_while_they_are_exported_are_not_half_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "RUNS_IN_PAGE", 1)
    plan_day("hysteresis")
    carry_out(example(), most=5)
    before = exported()
    with statement() as connection:
        lines = export_lines(connection, plan_export(connection, Range()))
        begun = [next(lines) for _ in range(4)]
        carry_out(example())
        assert [*begun, *lines] == before


def forget_before(seq: int) -> None:
    """What retention does, to the row that says where the log begins."""
    desk.change("UPDATE engine_head SET first_seq = :seq", seq=seq)


def test_what_retention_dropped_is_left_out_said_and_refused_when_it_was_asked_for() -> None:
    day("hysteresis")
    whole = read(exported(), "run")
    forget_before(whole[4]["cut_start_ingest_seq"])
    lines = exported()
    assert [run["number"] for run in read(lines, "run")] == [run["number"] for run in whole[4:]]
    assert read(lines, "end")[0]["counts"]["dropped"] == 4
    assert read(lines, "header")[0]["first_ingest_seq"] == whole[4]["cut_start_ingest_seq"]
    assert verify(lines, example()) is None
    with pytest.raises(Gone, match="records of 3 of these runs: run number 5 is the first"):
        exported(since_number=2)
    assert verify(exported(since_number=5), example()) is None


def lost_in_the_middle() -> None:
    """Of the second run, whose records began before those of the first, retention has dropped some."""
    desk.running()
    for tick in range(1, 4):
        of = START_MS + tick * INTERVAL_MS
        desk.append(trade(ETH), inputs(of), inputs(of, ETH), now_ms=of - 5)
        desk.plan(of + DELAY_MS + 1)
    carry_out(example())
    assert [(run["symbol"], run["cut_start_ingest_seq"]) for run in desk.runs()[:2]] == [(BTC, 2), (ETH, 1)]
    forget_before(2)


def test_a_run_that_is_missing_in_the_middle_is_named_with_what_lies_behind_it() -> None:
    lost_in_the_middle()
    lines = exported()
    assert [run["number"] for run in read(lines, "run")] == [1, 3, 4, 5, 6]
    assert read(lines, "end")[0]["gaps"] == {ETH: [2, 2]}
    assert verify(lines, example()) is None
    with pytest.raises(Gone, match="records of 1 of these runs: run number 3 is the first"):
        exported(since_number=1)
    assert "gaps" not in read(exported(since_number=3), "end")[0]


def test_an_export_that_misses_only_its_beginning_has_no_gap() -> None:
    day()
    forget_before(desk.runs()[4]["cut_start_ingest_seq"])
    (end,) = read(exported(), "end")
    assert end["counts"]["dropped"] == 4
    assert "gaps" not in end


def test_an_export_of_which_nothing_is_kept_says_so() -> None:
    day()
    forget_before(desk.rows("SELECT last_seq + 1 AS next FROM engine_head")[0]["next"])
    lines = exported()
    assert read(lines, "end")[0]["counts"] == {
        "config": 1,
        "state": 0,
        "record": 0,
        "run": 0,
        "output": 0,
        "unfinished": 0,
        "dropped": 2 * TICKS,
    }
    with pytest.raises(Gone, match="none of the others"):
        exported(since_number=1)


def test_an_export_that_retention_overtakes_is_refused_and_has_no_end() -> None:
    day()
    with statement() as connection:
        lines = export_lines(connection, plan_export(connection, Range()))
        begun = [next(lines)]
        desk.change("ALTER TABLE engine_inputs DETACH PARTITION engine_inputs_0000000000000000001")
        with pytest.raises(Gone, match="Record 1, of run number 1, was dropped by retention while"):
            begun.extend(lines)
    assert read(begun, "end") == []


def tampered(sql: str) -> None:
    """What only somebody who owns the database can do."""
    with statement() as connection:
        connection.exec_driver_sql(
            f"SET session_replication_role = replica; {sql}; SET session_replication_role = origin"
        )


def test_an_output_that_was_changed_in_the_database_is_the_first_divergence() -> None:
    day()
    surer = "replace(event, '\"confidence\":', '\"confidence\":1')"
    tampered(f"UPDATE engine_outputs SET event = {surer} WHERE symbol = 'BTC-USD'")
    found = verify(exported(), example())
    assert found is not None
    assert (found.number, found.symbol, found.event_type) == (1, BTC, "EngineRunCompleted")
    assert found.field == "/payload/regime_output/confidence"
    assert found.published == pytest.approx(found.replayed + 10 if found.replayed < 1 else 11)


def test_a_record_that_was_changed_in_the_database_is_named_as_the_one_at_fault() -> None:
    plan_day()
    carry_out(stand_in)
    first = desk.runs()[0]
    tampered(
        "UPDATE engine_inputs SET event = replace(event, '\"price\":107', '\"price\":60')"
        f" WHERE ingest_seq = {first['snapshot_ingest_seq']}"
    )
    found = verify(exported(), stand_in)
    assert found is not None
    assert (found.run_id, found.ingest_seq) == (first["id"], first["snapshot_ingest_seq"])
    assert '"price":60' in (found.snapshot_inputs or "")


def test_an_output_that_was_lost_from_the_database_is_missing() -> None:
    day("hysteresis")
    tampered("DELETE FROM engine_outputs WHERE event_type = 'HysteresisDecisionPublished'")
    found = verify(exported(), example())
    assert found is not None
    assert (found.field, found.published, found.replayed) == (
        "/event_type",
        "EngineRunCompleted",
        "HysteresisDecisionPublished",
    )


def test_a_state_that_was_changed_in_the_database_shows_in_the_run_after_it() -> None:
    day("hysteresis")
    states = desk.rows("SELECT number FROM engine_states WHERE symbol = 'BTC-USD' ORDER BY number")
    earlier = "replace(state, '\"last_timestamp\":', '\"last_timestamp\":-')"
    tampered(f"UPDATE engine_states SET state = {earlier} WHERE number = {states[1]['number']}")
    assert verify(exported(), example()) is None  # a whole replay needs no stored state
    found = verify(exported(since_number=states[1]["number"] + 1), example())
    assert found is not None
    assert found.number == states[2]["number"]


def failing(request: Mapping[str, Any]) -> Mapping[str, Any]:
    if request["input"]["market"]["price"] == 107:
        return {"error_kind": "engine_failure", "error_detail": "ValueError: \ud800 \0 " + "x" * 600}
    return example()(request)


def test_failures_are_replayed_with_the_words_that_were_kept_of_them() -> None:
    plan_day()
    carry_out(failing)
    lines = exported()
    assert verify(lines, failing) is None
    ends = [run.published[-1]["payload"].get("error_detail", "") for run in replay(lines, failing)]
    assert {len(detail) for detail in ends if detail.startswith("ValueError")} == {500}


def test_a_run_whose_workers_were_lost_is_told_as_recorded() -> None:
    plan_day(ticks=1)
    run = next(run for run in desk.runs() if run["symbol"] == BTC)
    desk.fail(desk.take(run), "engine_failure", "5 workers fell silent")
    carry_out(example())
    assert verify(exported(), example()) is None
