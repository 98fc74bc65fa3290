"""An engine room for the mutants: a clock set by hand, workers in this process, and all that is sent in the history."""

from __future__ import annotations

from typing import Any

from models.kernel.backlog import wake_lanes
from models.kernel.session import statement
from tests.chaos import market
from tests.chaos.checker import check
from tests.chaos.conftest import Stage
from tests.engine import carried, desk

START_MS, INTERVAL_MS = desk.START_MS, desk.INTERVAL_MS
TIMER = {"mode": "timer", "timer_interval_ms": INTERVAL_MS}


class Room:
    """An engine that ticks every ten seconds of a clock set by hand, and what is sent to it in the history."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.batches = 0

    def begin(self, **sections: Any) -> None:
        desk.running(scheduler=TIMER, **sections)

    def draft(self, *symbols: str) -> list[dict[str, Any]]:
        """SnapshotInputs for the second tick, the first after the beginning at which something had come."""
        self.batches += 1
        timestamp = {"timestamp_ms": START_MS + INTERVAL_MS}
        return [
            market.event(f"b{self.batches}/{n}", symbol, "SnapshotInputs", timestamp)
            for n, symbol in enumerate(symbols)
        ]

    def send(self, now_ms: int, *symbols: str) -> None:
        body = self.draft(*symbols)
        call = self.stage.history.begin("feeder", "append", {"batch": f"b{self.batches}", "body": body})
        appended = desk.append(*body, now_ms=now_ms)
        answer = {name: getattr(appended, name) for name in ("accepted", "first_ingest_seq", "last_ingest_seq")}
        self.stage.history.end(call, 201, answer)

    def promises(self, **others: Any) -> set[str]:
        return {violation.promise for violation in check(self.stage.evidence(**others))}


def finish_what_is_due() -> None:
    """Carry out whatever is ready, one after the other, as workers do that answer the same to everything."""
    with statement() as connection:
        wake_lanes(connection)
    while ready := desk.rows(DUE):
        carried.carry_out_one(desk.take(ready[0]), answer)


def answer(_request: Any) -> dict[str, Any]:
    return {"ok": {"regime_output": desk.OUTPUT}}


DUE = """
    SELECT r.* FROM jobs j JOIN engine_runs r ON r.id = j.subject_id
     WHERE NOT j.waits AND j.run_at <= clock_timestamp() ORDER BY r.number
"""
