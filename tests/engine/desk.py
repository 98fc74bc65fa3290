"""A small engine room for tests: a configuration, a log, a planner's clock set by hand, workers' acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import text

from models.engine import control, operations
from models.engine.contract import Received, check_event
from models.engine.inputs import Appended, append_events
from models.engine.operations import Attempt
from models.engine.planning import Pass, plan_runs
from models.kernel.clients import Caller
from models.kernel.session import statement, transaction
from tests.engine.market import event, snapshot, text_of

WORKER = "worker:test"
CALLER = Caller("tester", "default", frozenset({"read", "write", "admin"}), "correlation-1")
START_MS = 1_000_000  # of the boundaries' clock: a multiple of the interval
INTERVAL_MS = 10_000
DELAY_MS = 1_000
SYMBOLS = ["BTC-USD", "ETH-USD"]
OUTPUT = {
    "symbol": "BTC-USD",
    "timestamp": START_MS,
    "regime": "CHOP_BALANCED",
    "confidence": 0.5,
    "drivers": ["a"],
    "invalidations": [],
    "permissions": [],
}


def body(**sections: Any) -> dict[str, Any]:
    """A valid configuration: boundaries of ten seconds; `sections` replace keys of its tables, or add tables."""
    base: dict[str, Any] = {
        "sources": [{"source_id": "binance", "symbols": SYMBOLS}],
        "scheduler": {"mode": "boundary", "boundary_interval_ms": INTERVAL_MS, "boundary_delay_ms": DELAY_MS},
        "engine": {"engine_mode": "truth", "alignment_ms": INTERVAL_MS, "timeout_ms": 2000},
        "engine_retry": {"min_delay_ms": 100, "max_delay_ms": 1000, "max_attempts": 3},
    }
    for name, value in sections.items():
        base[name] = {**base.get(name, {}), **value} if isinstance(value, dict) else value
    return base


def configure(**sections: Any) -> int:
    with transaction() as connection:
        return control.accept_config(connection, body(**sections), "tester")


def start() -> None:
    with statement() as connection:
        control.start_engine(connection, CALLER)


def running(begin_ms: int = START_MS, **sections: Any) -> None:
    """A configured engine that runs, and whose cadence begins at this moment."""
    configure(**sections)
    start()
    assert plan_runs(begin_ms).runs == 0


def received(*events: Any, symbols: Sequence[str] = SYMBOLS) -> list[Received]:
    sources = {"binance": frozenset(symbols), "kraken": frozenset(symbols)}
    return [check_event(text_of(each), sources) for each in events]


def append_of(symbols: Sequence[str], *events: Any, now_ms: int) -> Appended:
    with transaction() as connection:
        return append_events(connection, received(*events, symbols=symbols), max_records=10**6, now_ms=now_ms)


def append(*events: Any, now_ms: int) -> Appended:
    return append_of(SYMBOLS, *events, now_ms=now_ms)


def trade(symbol: str = "BTC-USD", event_type: str = "TradeTick") -> dict[str, Any]:
    return event(event_type, symbol)


def inputs(timestamp_ms: int, symbol: str = "BTC-USD", **normalized: Any) -> dict[str, Any]:
    return snapshot(timestamp_ms, symbol, **normalized)


def plan(now_ms: int) -> Pass:
    return plan_runs(now_ms)


def rows(sql: str, **values: Any) -> list[dict[str, Any]]:
    with statement() as connection:
        return [dict(row) for row in connection.execute(text(sql), values).mappings()]


def change(sql: str, **values: Any) -> None:
    with statement() as connection:
        connection.execute(text(sql), values)


def engine_row() -> Mapping[str, Any]:
    return rows("SELECT * FROM engine_control")[0]


def runs() -> list[dict[str, Any]]:
    return rows("SELECT * FROM engine_runs ORDER BY number")


def jobs() -> list[dict[str, Any]]:
    return rows("SELECT * FROM jobs ORDER BY id")


def job_of(run_id: str) -> dict[str, Any]:
    (job,) = rows("SELECT * FROM jobs WHERE subject_id = :id", id=run_id)
    return job


def outputs() -> list[dict[str, Any]]:
    return rows("SELECT * FROM engine_outputs ORDER BY seq")


def topics(kind: str = "engine_run") -> list[str]:
    return [row["topic"] for row in rows("SELECT topic FROM ledger WHERE subject_kind = :kind ORDER BY seq", kind=kind)]


def take(run: Mapping[str, Any]) -> Attempt:
    with statement() as connection:
        attempt = operations.take_run(connection, job_of(run["id"])["id"], WORKER)
    assert attempt is not None
    return attempt


def complete(attempt: Attempt, **result: Any) -> Mapping[str, Any]:
    with transaction() as connection:
        return operations.settle_completed(connection, attempt, {"regime_output": OUTPUT, **result}, WORKER)


def fail(attempt: Attempt, kind: str = "engine_failure", detail: str = "it broke") -> Mapping[str, Any]:
    with statement() as connection:
        return operations.settle_failed(connection, attempt, kind, detail, WORKER)


def retry(attempt: Attempt, delay_ms: int = 0) -> Mapping[str, Any]:
    with statement() as connection:
        return operations.retry_run(connection, attempt, "engine_failure", "it broke", WORKER, delay_ms=delay_ms)


def planned_run(*events: Any, now_ms: int = START_MS + DELAY_MS) -> dict[str, Any]:
    """One run of BTC-USD that is planned, over these events or one that fits it."""
    append(*(events or [inputs(START_MS + INTERVAL_MS)]), now_ms=now_ms)
    assert plan(START_MS + INTERVAL_MS + DELAY_MS + 1).runs >= 1
    return next(run for run in runs() if run["symbol"] == "BTC-USD")


def finish_all(order: Sequence[str] = ()) -> None:
    """Carry out whatever is ready, one after the other."""
    while ready := [job for job in jobs() if not job["waits"]]:
        (run,) = rows("SELECT * FROM engine_runs WHERE id = :id", id=ready[0]["subject_id"])
        complete(take(run))
