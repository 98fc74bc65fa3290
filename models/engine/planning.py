"""The planner: makes the runs of every tick that is due, from rows alone.

A pass first closes time: once it has held the lock of the appends, no record can come that is as old as a
tick which lies before that moment, and so each cut is final. Then it plans in one transaction that holds the
engine's row, so that two planners plan the same runs once, and one that dies leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import BigInteger, Connection, Text, bindparam, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY

from models.engine.cadence import count_due, engine_timestamp, first_tick
from models.engine.config import Config
from models.engine.control import get_config, tell
from models.engine.cuts import Last, is_runnable, run_id
from models.engine.delays import retry_delays
from models.engine.inputs import close_time, count_records, find_cut_end
from models.engine.queries import Row, get_now, get_status, is_planning, list_lasts
from models.engine.tables import engine_control
from models.engine.transitions import PLAN
from models.kernel.session import statement, transaction

ACTOR = "planner"
MISSED = "engine_ticks_missed"
MOST_TICKS = 20
"""Of one pass: its transaction stays short, and another pass follows at once."""
BOOKKEEPING_SECONDS = 45
"""What a worker may need beside the engine's own time: an engine that is imported, rows that are read."""


@dataclass
class Pass:
    """What one pass did at `now_ms`. `more`: due ticks are left. `next_tick_ms`: 0 while nothing is planned."""

    now_ms: int
    ticks: int = 0
    runs: int = 0
    skipped: int = 0
    missed: int = 0
    lag_ms: int | None = None
    next_tick_ms: int = 0
    more: bool = False


def plan_runs(now_ms: int | None = None) -> Pass:
    """One pass over what is due; `now_ms` stands in for the database's clock.

    Raises Unavailable; Conflict while appends or another planner hold on for too long.
    """
    with statement() as connection:
        now = get_now(connection) if now_ms is None else now_ms
        status = get_status(connection)
        if not is_planning(status):
            return Pass(now)
        if (status["next_tick_ms"] or 0) >= now:
            return Pass(now, next_tick_ms=status["next_tick_ms"])
        close_time(connection, now)
    with transaction() as connection:
        return plan_ticks(connection, now)


def plan_ticks(connection: Connection, now_ms: int) -> Pass:
    """Plan what is due before `now_ms`, beyond which time must have been closed; `connection` must be a transaction."""
    control = connection.execute(select(engine_control).with_for_update()).mappings().one()
    configured = get_config(connection)
    if configured is None or not is_planning(control):
        return Pass(now_ms)
    version, config = configured
    begin = control["next_tick_ms"]
    done = Pass(now_ms, next_tick_ms=first_tick(config.scheduler, now_ms) if begin is None else begin)
    skip_missed(connection, config, done, now_ms)
    due = count_due(config.scheduler, done.next_tick_ms, now_ms)
    make_runs(connection, version, config, done, min(due, MOST_TICKS))
    done.more = due > MOST_TICKS
    if done.ticks:
        done.lag_ms = now_ms - (done.next_tick_ms - config.scheduler.interval_ms)
    if done.next_tick_ms != begin:
        keep_cadence(connection, control, config, done)
    return done


def skip_missed(connection: Connection, config: Config, done: Pass, now_ms: int) -> None:
    """Leave out the ticks beyond the bound: the records that they would have cut off fall to the next one."""
    schedule, begin = config.scheduler, done.next_tick_ms
    done.missed = max(0, count_due(schedule, begin, now_ms) - schedule.max_catch_up_ticks)
    if done.missed:
        done.next_tick_ms = begin + done.missed * schedule.interval_ms
        body = {"missed": done.missed, "from_ms": begin, "to_ms": done.next_tick_ms - schedule.interval_ms}
        tell(connection, MISSED, ACTOR, body)


def make_runs(connection: Connection, version: int, config: Config, done: Pass, ticks: int) -> None:
    """Plan so many ticks one after the other."""
    lasts = list_lasts(connection, config.symbols) if ticks else {}
    moved: dict[str, Last] = {}
    for _ in range(ticks):
        tick_ms = done.next_tick_ms
        rows = runs_of_tick(connection, config, tick_ms, lasts)
        rows = [{**row, "config_version": version} for row in rows]
        if rows:
            PLAN(connection, rows, actor=ACTOR)
        for row in rows:
            cut_end, timestamp = row["cut_end_ingest_seq"], row["engine_timestamp_ms"]
            moved[row["symbol"]] = replace(lasts[row["symbol"]], cut_end=cut_end, engine_timestamp_ms=timestamp)
        lasts |= moved
        done.runs += len(rows)
        done.skipped += len(config.symbols) - len(rows)
        done.ticks += 1
        done.next_tick_ms = tick_ms + config.scheduler.interval_ms
    if moved:
        keep_lasts(connection, moved)


def runs_of_tick(
    connection: Connection, config: Config, tick_ms: int, lasts: Mapping[str, Last]
) -> list[dict[str, Any]]:
    """The runs of one tick, in the order of their symbols."""
    mode = config.engine.engine_mode
    timestamp = engine_timestamp(config.scheduler, tick_ms, config.engine.alignment_ms)
    end = find_cut_end(connection, tick_ms)
    symbols = [symbol for symbol in config.symbols if is_runnable(lasts.get(symbol), timestamp, end, mode)]
    counts = counts_of(connection, {symbol: lasts[symbol] for symbol in symbols}, end)
    common = {
        "engine_timestamp_ms": timestamp,
        "engine_mode": mode,
        "cut_kind": config.scheduler.mode,
        "cut_end_ingest_seq": end,
        "planned_ts_ms": tick_ms,
        "state_epoch": config.engine.state_epoch,
        "max_attempts": len(retry_delays(config.engine_retry)),
        "timeout_seconds": -(-config.engine.timeout_ms // 1000) + BOOKKEEPING_SECONDS,
    }
    ids = {symbol: run_id(symbol, timestamp, end, mode) for symbol in symbols}
    return [
        {
            **common,
            "id": ids[symbol],
            "correlation_id": ids[symbol],
            "symbol": symbol,
            "cut_start_ingest_seq": lasts[symbol].next_start,
            "counts_by_event_type": counts.get(symbol, {}),
        }
        for symbol in symbols
    ]


def counts_of(connection: Connection, lasts: Mapping[str, Last], end: int) -> dict[str, dict[str, int]]:
    """How many records of each symbol are in its cut, asked once for all that had their last cut together.

    Symbols without one are asked for together too: none has a record before its first.
    """
    new = [last.first_seq for last in lasts.values() if last.cut_end is None]
    after = {symbol: min(new) - 1 if last.cut_end is None else last.cut_end for symbol, last in lasts.items()}
    found = {begin: count_records(connection, begin, end) for begin in set(after.values())}
    return {symbol: found[begin].get(symbol, {}) for symbol, begin in after.items()}


_KEEP_LASTS = text(
    """
    UPDATE engine_symbols SET cut_end_ingest_seq = m.cut_end, engine_timestamp_ms = m.timestamp_ms
      FROM unnest(:symbols, :ends, :timestamps) AS m (symbol, cut_end, timestamp_ms)
     WHERE engine_symbols.symbol = m.symbol
    """
).bindparams(
    bindparam("symbols", type_=ARRAY(Text)),
    bindparam("ends", type_=ARRAY(BigInteger)),
    bindparam("timestamps", type_=ARRAY(BigInteger)),
)


def keep_lasts(connection: Connection, moved: Mapping[str, Last]) -> None:
    """At the end of a pass, since an append waits for whoever changes the row of its symbol."""
    symbols = sorted(moved)
    call = {
        "symbols": symbols,
        "ends": [moved[symbol].cut_end for symbol in symbols],
        "timestamps": [moved[symbol].engine_timestamp_ms for symbol in symbols],
    }
    connection.execute(_KEEP_LASTS, call)


def keep_cadence(connection: Connection, control: Row, config: Config, done: Pass) -> None:
    values: dict[str, Any] = {
        "next_tick_ms": done.next_tick_ms,
        "ticks": control["ticks"] + done.ticks,
        "skipped_ticks": control["skipped_ticks"] + done.skipped,
        "missed_ticks": control["missed_ticks"] + done.missed,
    }
    if done.ticks:
        values |= {"last_tick_ms": done.next_tick_ms - config.scheduler.interval_ms, "lag_ms": done.lag_ms}
    connection.execute(update(engine_control).values(values))
