"""The planner: every due tick once, in order, over cuts that can never gain a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine

from models.engine import control, planning
from models.engine.cuts import run_id
from models.engine.inputs import append_events, close_time
from models.engine.planning import Pass, plan_runs, plan_ticks
from models.kernel.errors import Conflict
from models.kernel.session import statement, transaction
from tests.engine import desk
from tests.engine.desk import DELAY_MS, INTERVAL_MS, START_MS, inputs, plan, running, runs, trade
from tests.kernel.races import alone, meanwhile, together

FIRST = START_MS + DELAY_MS  # the boundary that a cadence begun at START_MS has first


def tick(n: int) -> int:
    return FIRST + n * INTERVAL_MS


def cut(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return run["symbol"], run["cut_start_ingest_seq"], run["cut_end_ingest_seq"]


def test_a_run_is_planned_with_its_cut_its_counts_and_its_job(database: str) -> None:
    running()
    desk.append(trade(), inputs(START_MS), trade("ETH-USD"), now_ms=START_MS + 10)
    done = plan(FIRST + 5)
    assert (done.ticks, done.runs, done.skipped, done.missed, done.lag_ms) == (1, 2, 0, 0, 5)
    btc, eth = runs()
    assert cut(btc) == ("BTC-USD", 1, 3)
    assert cut(eth) == ("ETH-USD", 3, 3)
    assert btc["counts_by_event_type"] == {"TradeTick": 1, "SnapshotInputs": 1}
    assert eth["counts_by_event_type"] == {"TradeTick": 1}
    assert (btc["engine_timestamp_ms"], btc["planned_ts_ms"], btc["cut_kind"]) == (START_MS, FIRST, "boundary")
    assert (btc["state"], btc["attempts"], btc["max_attempts"], btc["config_version"]) == ("planned", 0, 3, 1)
    assert btc["id"] == run_id("BTC-USD", START_MS, 3, "truth") == btc["correlation_id"]
    job = desk.job_of(btc["id"])
    assert (job["task"], job["queue"], job["lane"]) == ("engine.run", "cpu", "symbol:BTC-USD")
    assert (job["keeps_turn"], job["waits"], job["max_attempts"]) == (True, False, 3 + 5)
    assert desk.topics() == ["engine_run_planned", "engine_run_planned"]


def test_the_engine_s_row_tells_ticks_skips_and_lag(database: str) -> None:
    running()
    desk.append(trade(), now_ms=START_MS)
    plan(tick(2) + 7)
    row = desk.engine_row()
    assert (row["ticks"], row["skipped_ticks"], row["missed_ticks"], row["lag_ms"]) == (3, 1 + 2 + 2, 0, 7)
    assert (row["last_tick_ms"], row["next_tick_ms"]) == (tick(2), tick(3))
    with statement() as connection:
        assert control.get_status(connection)["lag_ms"] == 7


def test_cuts_follow_one_another_without_gap_or_overlap(database: str) -> None:
    running()
    for n in range(4):
        desk.append(trade(), trade(), now_ms=tick(n) - 5)
        plan(tick(n) + 1)
    assert [cut(run) for run in runs()] == [("BTC-USD", 2 * n + 1, 2 * n + 2) for n in range(4)]


def test_a_record_of_the_planned_millisecond_is_in_the_cut_and_a_later_one_is_not(database: str) -> None:
    running()
    desk.append(trade(), now_ms=FIRST)
    assert plan(FIRST).ticks == 0
    desk.append(trade(), now_ms=FIRST)
    desk.append(trade(), now_ms=FIRST + 1)
    assert plan(FIRST + 1).ticks == 1
    assert [cut(run) for run in runs()] == [("BTC-USD", 1, 2)]


def test_after_the_planner_no_append_is_as_old_as_the_tick(database: str) -> None:
    running()
    desk.append(trade(), now_ms=FIRST - 1)
    plan(FIRST + 3)
    appended = desk.append(trade(), now_ms=FIRST - 1)
    assert appended.ingest_ts_ms == FIRST + 3


def test_a_tick_with_nothing_new_is_skipped_and_the_next_cut_begins_where_the_last_one_ended(database: str) -> None:
    running()
    desk.append(trade(), now_ms=START_MS)
    plan(tick(1) + 1)
    desk.append(trade(), now_ms=tick(1) + 5)
    plan(tick(2) + 1)
    assert [cut(run) for run in runs()] == [("BTC-USD", 1, 1), ("BTC-USD", 2, 2)]
    assert [run["engine_timestamp_ms"] for run in runs()] == [START_MS, START_MS + 2 * INTERVAL_MS]


def test_a_symbol_runs_over_the_others_records_too_but_counts_its_own(database: str) -> None:
    running()
    desk.append(trade(), trade("ETH-USD"), now_ms=START_MS)
    plan(tick(0) + 1)
    desk.append(trade("ETH-USD"), now_ms=tick(0) + 5)
    plan(tick(1) + 1)
    later = [run for run in runs() if run["planned_ts_ms"] == tick(1)]
    assert [(cut(run), run["counts_by_event_type"]) for run in later] == [
        (("BTC-USD", 3, 3), {}),
        (("ETH-USD", 3, 3), {"TradeTick": 1}),
    ]


def test_a_symbol_begins_with_its_own_first_record(database: str) -> None:
    running()
    desk.append(trade(), now_ms=START_MS)
    plan(tick(0) + 1)
    desk.append(trade(), trade("ETH-USD"), trade("ETH-USD"), now_ms=tick(0) + 5)
    plan(tick(1) + 1)
    (eth,) = [run for run in runs() if run["symbol"] == "ETH-USD"]
    assert cut(eth) == ("ETH-USD", 3, 4)
    assert eth["counts_by_event_type"] == {"TradeTick": 2}


def test_symbols_that_are_not_configured_any_more_make_no_runs(database: str) -> None:
    running()
    desk.append(trade(), trade("ETH-USD"), now_ms=START_MS)
    desk.configure(sources=[{"source_id": "binance", "symbols": ["ETH-USD"]}])
    assert plan(tick(0) + 1).runs == 1
    assert [run["symbol"] for run in runs()] == ["ETH-USD"]


def test_missed_ticks_are_made_up_for_in_order(database: str) -> None:
    running()
    for n in range(5):
        desk.append(inputs(START_MS + n * INTERVAL_MS), now_ms=tick(n) - 1)
    done = plan(tick(4) + 1)
    assert (done.ticks, done.runs, done.missed) == (5, 5, 0)
    assert [(run["planned_ts_ms"], cut(run)) for run in runs()] == [
        (tick(n), ("BTC-USD", n + 1, n + 1)) for n in range(5)
    ]
    assert [job["waits"] for job in desk.jobs()] == [False, True, True, True, True]


def test_ticks_beyond_the_bound_are_missed_counted_and_told(database: str) -> None:
    running(scheduler={"max_catch_up_ticks": 2})
    for n in range(5):
        desk.append(trade(), now_ms=tick(n) - 1)
    done = plan(tick(4) + 1)
    assert (done.ticks, done.missed) == (2, 3)
    assert [(run["planned_ts_ms"], cut(run)) for run in runs()] == [
        (tick(3), ("BTC-USD", 1, 4)),
        (tick(4), ("BTC-USD", 5, 5)),
    ]
    assert runs()[0]["counts_by_event_type"] == {"TradeTick": 4}
    assert desk.engine_row()["missed_ticks"] == 3
    (told,) = desk.rows("SELECT body FROM ledger WHERE topic = 'engine_ticks_missed'")
    assert told["body"] == {"missed": 3, "from_ms": tick(0), "to_ms": tick(2)}


def test_a_pass_is_bounded_and_says_that_more_is_due(database: str) -> None:
    running()
    desk.append(trade(), now_ms=START_MS)
    done = plan(tick(24) + 1)
    assert (done.ticks, done.more) == (planning.MOST_TICKS, True)
    done = plan(tick(24) + 1)
    assert (done.ticks, done.more) == (25 - planning.MOST_TICKS, False)
    assert plan(tick(24) + 1) == Pass(tick(24) + 1, next_tick_ms=tick(25))


def test_the_missed_are_counted_once_however_many_passes_the_rest_takes(database: str) -> None:
    running(scheduler={"max_catch_up_ticks": 30})
    now_ms = tick(99) + 1
    assert [plan(now_ms).missed for _ in range(3)] == [70, 0, 0]
    assert desk.engine_row()["ticks"] == 30


@pytest.mark.parametrize("state", ["init", "drained", "stopped", "degraded"])
def test_only_a_running_engine_plans(database: str, state: str) -> None:
    running()
    desk.append(trade(), now_ms=START_MS)
    desk.change("UPDATE engine_control SET state = :state", state=state)
    assert plan(tick(3) + 1) == Pass(tick(3) + 1)
    with transaction() as connection:
        assert plan_ticks(connection, tick(3) + 1).runs == 0
    assert runs() == []


def test_what_a_pause_held_back_is_made_up_for_afterwards(database: str) -> None:
    running()
    with statement() as connection:
        control.degrade_engine(connection, "blocked")
    for n in range(3):
        desk.append(trade(), now_ms=tick(n) - 1)
        assert plan(tick(n) + 1).runs == 0
    with statement() as connection:
        control.recover_engine(connection, "free")
    plan(tick(2) + 1)
    assert [(run["planned_ts_ms"], cut(run)) for run in runs()] == [
        (tick(n), ("BTC-USD", n + 1, n + 1)) for n in range(3)
    ]


@pytest.mark.parametrize("acts", [[control.drain_engine], [control.stop_engine, control.reset_engine]])
def test_what_an_operator_held_back_stays_unplanned_and_its_records_fall_to_the_next_tick(
    database: str, acts: list[Callable[..., Any]]
) -> None:
    running()
    with statement() as connection:
        for act in acts:
            act(connection, desk.CALLER)
    for n in range(5):
        desk.append(trade(), now_ms=tick(n) - 1)
    desk.start()
    assert plan(tick(5) - 100) == Pass(tick(5) - 100, next_tick_ms=tick(5))
    plan(tick(5) + 1)
    assert [(run["planned_ts_ms"], cut(run)) for run in runs()] == [(tick(5), ("BTC-USD", 1, 5))]
    assert desk.engine_row()["missed_ticks"] == 0


def test_a_timer_begins_with_the_pass_that_finds_it_and_goes_on_by_its_interval_alone(database: str) -> None:
    timer = {"mode": "timer", "timer_interval_ms": 5000}
    running(1_000_003, scheduler=timer, engine={"alignment_ms": 2000})
    for n in range(3):
        desk.append(trade(), now_ms=1_000_000 + n * 5000)
        plan(1_000_900 + n * 5000)
    assert [run["planned_ts_ms"] for run in runs()] == [1_000_003, 1_005_003, 1_010_003]
    assert [run["engine_timestamp_ms"] for run in runs()] == [1_000_000, 1_004_000, 1_010_000]
    assert {run["cut_kind"] for run in runs()} == {"timer"}


@pytest.mark.parametrize(("mode", "made"), [("truth", 4), ("hysteresis", 2)])
def test_a_repeated_timestamp_runs_again_in_truth_mode_and_is_skipped_in_hysteresis_mode(
    database: str, mode: str, made: int
) -> None:
    running(
        1_000_000,
        scheduler={"mode": "timer", "timer_interval_ms": 5000},
        engine={"engine_mode": mode, "alignment_ms": 10_000},
    )
    for n in range(4):
        desk.append(trade(), now_ms=1_000_000 + n * 5000)
        plan(1_000_001 + n * 5000)
    assert len(runs()) == made
    assert len({run["id"] for run in runs()}) == made
    assert runs()[-1]["cut_end_ingest_seq"] == (4 if mode == "truth" else 3)
    assert [run["cut_start_ingest_seq"] for run in runs()] == ([1, 2, 3, 4] if mode == "truth" else [1, 2])
    assert desk.engine_row()["skipped_ticks"] == 4 + (4 - made)


def test_a_cadence_that_would_go_back_in_time_waits_until_it_is_past_the_last_run(database: str) -> None:
    running(1_000_000, scheduler={"mode": "timer", "timer_interval_ms": 5000}, engine={"alignment_ms": 1000})
    desk.append(trade(), now_ms=1_000_000)
    plan(1_000_001)
    desk.append(trade(), now_ms=1_004_000)
    plan(1_005_001)
    desk.configure(scheduler={"boundary_delay_ms": 9_000})
    desk.append(trade(), now_ms=1_006_000)
    assert plan(1_008_000).next_tick_ms == 1_009_000
    assert plan(1_009_001).skipped == 2  # of the boundary 1000000, before the last run's timestamp
    plan(1_019_001)
    stamps = [(run["engine_timestamp_ms"], run["cut_start_ingest_seq"]) for run in runs()]
    assert stamps == [(1_000_000, 1), (1_005_000, 2), (1_010_000, 3)]


def test_each_run_names_the_version_that_it_was_planned_under(database: str) -> None:
    running()
    desk.append(trade(), now_ms=START_MS)
    plan(tick(0) + 1)
    desk.configure(engine={"timeout_ms": 9000}, engine_retry={"max_attempts": 2})
    desk.append(trade(), now_ms=tick(0) + 5)
    plan(tick(1) + 1)
    assert [(run["config_version"], run["max_attempts"]) for run in runs()] == [(1, 3), (2, 2)]


# two at once


def test_two_planners_at_once_plan_the_same_runs_once(database: str) -> None:
    running()
    for n in range(8):
        desk.append(trade(), trade("ETH-USD"), now_ms=tick(n) - 1)
    now_ms = tick(7) + 1
    passes = together(*[lambda _c: plan_runs(now_ms)] * 4)
    assert sum(done.runs for done in passes) == len(runs()) == 16
    assert sum(done.ticks for done in passes) == desk.engine_row()["ticks"] == 8


def test_a_planner_that_waits_for_another_finds_everything_done(database: str) -> None:
    running()
    desk.append(trade(), now_ms=START_MS)
    alone(lambda c: close_time(c, tick(0) + 1))

    def second(_connection: Connection) -> Pass:
        with transaction() as own:
            return plan_ticks(own, tick(0) + 1)

    one, other = meanwhile(lambda c: plan_ticks(c, tick(0) + 1), second)
    assert (one.runs, other.runs, other.next_tick_ms) == (1, 0, tick(1))


def test_a_planner_that_dies_leaves_nothing_behind(database: str) -> None:
    running()
    desk.append(trade(), now_ms=START_MS)

    def die() -> None:
        with transaction() as connection:
            assert plan_ticks(connection, tick(0) + 1).runs == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        die()
    assert runs() == []
    assert plan(tick(0) + 1).runs == 1


def test_the_planner_waits_for_an_append_under_way_and_has_it_in_the_cut(database: str) -> None:
    running()
    desk.append(trade(), now_ms=START_MS)
    under_way = desk.received(trade(), trade())
    meanwhile(
        lambda c: append_events(c, under_way, max_records=100, now_ms=FIRST),
        lambda _c: plan_runs(FIRST + 1),
    )
    assert [cut(run) for run in runs()] == [("BTC-USD", 1, 3)]


def test_an_append_that_waits_for_the_planner_is_younger_than_the_tick(database: str) -> None:
    running()
    desk.append(trade(), now_ms=START_MS)

    def append(_connection: Connection) -> int:
        return desk.append(trade(), now_ms=FIRST).ingest_ts_ms

    _, appended_ms = meanwhile(lambda c: close_time(c, FIRST + 1), append)
    assert appended_ms == FIRST + 1
    plan(FIRST + 1)
    assert [cut(run) for run in runs()] == [("BTC-USD", 1, 1)]


def test_an_append_that_is_rolled_back_is_in_no_cut(database: str) -> None:
    running()

    def fail() -> None:
        with transaction() as connection:
            append_events(connection, desk.received(trade()), max_records=100, now_ms=START_MS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert plan(FIRST + 1).skipped == 2
    assert runs() == []


def test_an_append_that_hangs_holds_the_planner_up_and_loses_nothing(database: str) -> None:
    def impatient() -> None:
        with statement() as other:
            other.exec_driver_sql("SET lock_timeout = 100")
            close_time(other, FIRST + 1)

    running()
    with transaction() as connection:
        append_events(connection, desk.received(trade()), max_records=100, now_ms=START_MS)
        with pytest.raises(Conflict):
            impatient()
    assert plan(FIRST + 1).runs == 1


def test_a_pass_asks_as_much_for_two_hundred_symbols_as_for_two(database: str) -> None:
    def statements(symbols: int, begin_ms: int) -> int:
        names = [f"S{n:03d}" for n in range(symbols)]
        desk.configure(sources=[{"source_id": "binance", "symbols": names}])
        for name in names[:50]:
            desk.append_of(names, trade(name), now_ms=begin_ms - 5)  # first records in appends of their own
        desk.append_of(names, *(trade(name) for name in names), now_ms=begin_ms - 5)
        asked: list[str] = []

        def count(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
            asked.append(sql)

        event.listen(Engine, "before_cursor_execute", count)
        try:
            assert plan(begin_ms + 1).runs == symbols
        finally:
            event.remove(Engine, "before_cursor_execute", count)
        return len(asked)

    running()
    few = statements(2, tick(0))
    assert statements(200, tick(1)) <= few + 1
    assert few < 20
