"""A day of a market on a clock set by hand: what comes in, when, and an engine that fails now and then.

Nothing is drawn by chance: what is late, doubled or missing follows from the numbers of the tick and the symbol.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.engine import operations, transitions
from models.engine.contract import check_event
from models.engine.inputs import append_events, find_snapshot
from models.engine.operations import Attempt
from models.engine.queries import find_state
from models.engine.snapshots import engine_input
from models.kernel.session import statement, transaction
from tests.engine import desk
from tests.engine.carried import Call, example, hysteresis_of, settle
from tests.engine.market import MINUTES_3, event, snapshot, text_of

DAY_MS = 86_400_000
BEGIN_MS = 20_000 * DAY_MS
TICKS = DAY_MS // MINUTES_3
DELAY_MS = 2000
SYMBOLS = [f"COIN{number:02}-USD" for number in range(50)]
NEVER, AGAIN = 97, 31  # of so many attempts one fails for good, and one at first


def body(mode: str, symbols: Sequence[str]) -> dict[str, Any]:
    """Three-minute boundaries, two seconds late."""
    return {
        "sources": [{"source_id": "binance", "symbols": [*symbols]}],
        "scheduler": {"mode": "boundary", "boundary_interval_ms": MINUTES_3, "boundary_delay_ms": DELAY_MS},
        "engine": {"engine_mode": mode, "hysteresis": {"min_persistence_updates": 2}},
        "engine_retry": {"min_delay_ms": 1, "max_delay_ms": 1, "max_attempts": 3},
    }


def price_of(tick: int, place: int) -> float:
    return 100 + (tick * 7 + place * 13) % 50 + place / 8


def inputs(tick: int, place: int, symbol: str, more: float = 0.0) -> dict[str, Any]:
    """SnapshotInputs for this tick; now and then a part of them is missing."""
    market = {"price": price_of(tick, place) + more, "vwap": 110.0, "atr": 2.5, "atr_z": (tick % 9) / 3 - 1}
    parts = {"market": market, "flow": {"cvd": tick % 40 - 20, "cvd_slope": (place - tick % 50) / 7}}
    if (tick + place) % 19:
        parts["derivatives"] = {"funding_z": (tick % 11) / 2 - 2, "liquidation_intensity": None}
    return snapshot(BEGIN_MS + tick * MINUTES_3, symbol, **parts)


def sent_in(tick: int, symbols: Sequence[str]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(when, what) came for one tick, in order of time. The last batch is too late for it."""
    boundary = BEGIN_MS + tick * MINUTES_3
    timely, doubled, late = [], [], []
    for place, symbol in enumerate(symbols):
        kind = (tick * 5 + place * 3) % 23
        if place % 3 == tick % 3:
            timely.append(event("TradeTick", symbol))
        if kind == 0:  # never comes
            continue
        (late if kind == 1 else timely).append(inputs(tick, place, symbol))
        if kind == 2:
            doubled.append(inputs(tick, place, symbol))
        if kind == 3:  # the later one counts
            doubled.append(inputs(tick, place, symbol, more=0.25))
    yield boundary - 1500, timely
    yield boundary + DELAY_MS, doubled or [event("Novel", symbols[0])]  # just in time
    yield boundary + DELAY_MS + 1, late or [event("BookTop", symbols[-1])]


def moody(engine: Call, number: int | None = None) -> Call:
    """The engine, which fails for some prices for good, and for others at its first attempt."""

    def call(request: Mapping[str, Any]) -> Mapping[str, Any]:
        cents = round(request["input"]["market"]["price"] * 100) + request["input"]["timestamp"] // MINUTES_3
        if cents % NEVER == 0 or (cents % AGAIN == 0 and number == 1):
            return {"error_kind": "engine_failure", "error_detail": f"ValueError: {cents} is no price"}
        return engine(request)

    return call


# one tick


def receive(now_ms: int, events: Sequence[Mapping[str, Any]], symbols: Sequence[str]) -> None:
    sources = {"binance": frozenset(symbols)}
    received = [check_event(text_of(each), sources) for each in events]
    with transaction() as connection:
        append_events(connection, received, max_records=10**6, now_ms=now_ms)


def live(symbols: Sequence[str], mode: str) -> None:
    """The whole day: each tick is planned once its time is over, and carried out."""
    with transaction() as connection:
        desk.control.accept_config(connection, body(mode, symbols), "tester")
    desk.start()
    assert desk.plan(BEGIN_MS).runs == 0
    receive(BEGIN_MS + MINUTES_3 // 2, [event(symbol=symbol) for symbol in symbols], symbols)
    carry_out = carry_out_together if mode == "truth" else carry_out_each
    engine = example()
    for tick in range(1, TICKS + 1):
        *timely, (late_ms, late) = sent_in(tick, symbols)
        for now_ms, events in timely:
            receive(now_ms, events, symbols)
        if tick % 2:  # otherwise the planner comes after what is too late
            desk.plan(late_ms)
        receive(late_ms, late, symbols)
        if not tick % 2:
            desk.plan(late_ms)
        carry_out(engine)


def take_ready() -> list[Attempt]:
    """Everything that may be taken, in one statement."""
    with statement() as connection:
        ready = desk.rows("SELECT id FROM jobs WHERE NOT waits ORDER BY id")
        rows = (
            transitions.TAKE(connection, [{"job_id": job["id"]} for job in ready], actor=desk.WORKER) if ready else []
        )
    columns = [column.name for column in transitions.SUBJECT.table.columns]
    return [
        Attempt(row["job_id"], row["fence"], row["attempts"] + 1, {name: row[name] for name in columns}, 60.0)
        for row in rows
    ]


def find_snapshots(attempts: Sequence[Attempt]) -> dict[str, tuple[int, str]]:
    """By symbol the event that is selected; runs with the same cut are asked for at once.

    What is selected is compared again when the day is replayed.
    """
    cuts: dict[tuple[int, ...], list[str]] = {}
    for attempt in attempts:
        names = ("engine_timestamp_ms", "cut_start_ingest_seq", "cut_end_ingest_seq")
        cuts.setdefault(tuple(attempt.run[name] for name in names), []).append(attempt.run["symbol"])
    question = """
        SELECT DISTINCT ON (symbol) symbol, ingest_seq, event FROM engine_inputs
         WHERE symbol = ANY(:symbols) AND snapshot_ts_ms = :at AND ingest_seq BETWEEN :start AND :end
         ORDER BY symbol, ingest_seq DESC
    """
    found = {}
    for (at, start, end), symbols in cuts.items():
        for row in desk.rows(question, symbols=symbols, at=at, start=start, end=end):
            found[row["symbol"]] = row["ingest_seq"], row["event"]
    return found


def find_one(run: Mapping[str, Any]) -> tuple[int, str] | None:
    cut = run["cut_start_ingest_seq"], run["cut_end_ingest_seq"]
    with statement() as connection:
        return find_snapshot(connection, run["symbol"], run["engine_timestamp_ms"], *cut)


def answered(attempt: Attempt, found: tuple[int, str] | None, engine: Call) -> tuple[int | None, Mapping[str, Any]]:
    run = attempt.run
    if found is None:
        return None, {"error_kind": "missing_snapshot_inputs", "error_detail": "missing SnapshotInputs"}
    request = {"mode": run["engine_mode"], "input": engine_input(found[1], run["engine_timestamp_ms"])}
    if run["engine_mode"] == "hysteresis":
        with statement() as connection:
            request |= hysteresis_of(run, find_state(connection, run["symbol"], run["number"], run["state_epoch"]))
    return found[0], moody(engine, attempt.number)(request)


def may_try_again(attempt: Attempt, told: Mapping[str, Any]) -> bool:
    return told.get("error_kind") == "engine_failure" and attempt.number < 3


def carry_out_together(engine: Call) -> None:
    """Runs of one tick are settled in one statement, as many as there are."""
    while attempts := take_ready():
        rows, found = [], find_snapshots(attempts)
        for attempt in attempts:
            seq, told = answered(attempt, found.get(attempt.run["symbol"]), engine)
            if may_try_again(attempt, told):
                desk.retry(attempt)
                continue
            end = end_of(told) | {"state": None, "snapshot_ingest_seq": seq, "elapsed_ms": None}
            rows.append({**attempt.held, **end})
        if rows:
            with statement() as connection:
                assert len(transitions.SETTLE(connection, rows, actor=desk.WORKER)) == len(rows)


def end_of(told: Mapping[str, Any]) -> dict[str, Any]:
    if "ok" not in told:
        return operations.failure(told["error_kind"], told["error_detail"])
    payload = operations.canonical({"regime_output": told["ok"]["regime_output"]})
    return {"to": "completed", "payload": payload, "error_kind": None, "error_detail": None}


def carry_out_each(engine: Call) -> None:
    """Runs one by one, as a worker does: with hysteresis each tells its decision first."""
    while attempts := take_ready():
        for attempt in attempts:
            seq, told = answered(attempt, find_one(attempt.run), engine)
            if may_try_again(attempt, told):
                desk.retry(attempt)
            elif seq is None:
                desk.fail(attempt, told["error_kind"], told["error_detail"])
            else:
                settle(attempt, told, seq)
