"""A day of runs written down plainly: a model that keeps everything in lists and computes each cut by slicing.

It shares no rule with what it is compared with: what a run sees, which event is selected, how states go on and what is
told is written out here a second time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.engine.lines import FORMAT, Writer
from tests.engine.market import event, snapshot

BTC, ETH = "BTC-USD", "ETH-USD"
TICK_MS = 1000


def stand_in(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """An engine whose answers depend on all that it is given, and which fails for a price below zero."""
    given = request["input"]
    price = given["market"]["price"]
    if isinstance(price, int | float) and price < 0:
        return {"error_kind": "engine_failure", "error_detail": f"ValueError: price {price}"}
    regime = "CHOP_BALANCED" if isinstance(price, dict) else "TREND_BUILD_UP"
    output = {
        "symbol": given["symbol"],
        "timestamp": given["timestamp"],
        "regime": regime,
        "confidence": 0.5,
        "drivers": [json.dumps(given["flow"]["cvd"]), json.dumps(price)],
        "invalidations": [],
        "permissions": [],
    }
    if request["mode"] == "truth":
        return {"ok": {"regime_output": output}}
    count = (request["state"] or {"count": 0})["count"] + request["config"]["step"]
    decision = {"selected_output": output, "effective_confidence": 0.5, "transition": {"candidate_count": count}}
    return {"ok": {"regime_output": output, "hysteresis_decision": decision, "state": {"count": count}}}


@dataclass
class Day:
    """What came and what was planned; `lines` is its export."""

    mode: str = "truth"
    records: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    outputs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)

    def come(self, *events: dict[str, Any]) -> None:
        self.records += events

    def tick(self, timestamp_ms: int, timed_out: tuple[str, ...] = ()) -> None:
        """Plan and carry out a run of each symbol that has something new."""
        for symbol in (BTC, ETH):
            first = next((n for n, e in enumerate(self.records, start=1) if e["symbol"] == symbol), None)
            start = self.ends.get(symbol, (first or 0) - 1) + 1
            if first is not None and start <= len(self.records):
                self.run(symbol, timestamp_ms, start, len(self.records), symbol in timed_out)

    def run(self, symbol: str, timestamp_ms: int, start: int, end: int, times_out: bool) -> None:
        cut = [(n, e) for n, e in enumerate(self.records, start=1) if start <= n <= end and e["symbol"] == symbol]
        chosen = [
            (n, e)
            for n, e in cut
            if e["event_type"] == "SnapshotInputs" and e["normalized"]["timestamp_ms"] == timestamp_ms
        ]
        number = len(self.runs) + 1
        attempts = 1 + number % 3
        plan = self.planned(symbol, timestamp_ms, start, end, [e["event_type"] for _, e in cut])
        kind, detail, told = self.outcome(symbol, timestamp_ms, chosen, times_out)
        self.tell(plan, number, attempts, told)
        self.ends[symbol] = end
        self.runs.append(
            {
                **plan,
                "number": number,
                "planned_ts_ms": timestamp_ms + 5,
                "started_ts_ms": number,
                "completed_ts_ms": number + 1,
                "status": "failed" if kind else "completed",
                "attempts": attempts,
                "error_kind": kind,
                "error_detail": detail,
                "snapshot_ingest_seq": chosen[-1][0] if chosen else None,
                "config_version": 1,
            }
        )

    def planned(self, symbol: str, timestamp_ms: int, start: int, end: int, came: list[str]) -> dict[str, Any]:
        """What a run's record and each of its outputs say alike."""
        return {
            "run_id": hashlib.sha256(f"{symbol}|{timestamp_ms}|{end}|{self.mode}".encode()).hexdigest(),
            "symbol": symbol,
            "engine_timestamp_ms": timestamp_ms,
            "cut_start_ingest_seq": start,
            "cut_end_ingest_seq": end,
            "cut_kind": "boundary",
            "engine_mode": self.mode,
            "counts_by_event_type": {event_type: came.count(event_type) for event_type in set(came)},
        }

    def tell(self, plan: Mapping[str, Any], number: int, attempts: int, told: list[Any]) -> None:
        """The run's outputs: that it started, with its first attempt, and what came of it, with its last."""
        base = {"schema": "orchestrator_event", "schema_version": "1", **plan}
        started = {"event_type": "EngineRunStarted", "attempt": 1, "payload": None}
        ends = [{"event_type": name, "attempt": attempts, "payload": payload} for name, payload in told]
        self.outputs[plan["run_id"]] = [{**base, **each, "published_ts_ms": number} for each in (started, *ends)]

    def outcome(self, symbol: str, timestamp_ms: int, chosen: list[Any], times_out: bool) -> tuple[Any, Any, list[Any]]:
        if not chosen:
            return failed("missing_snapshot_inputs", "missing SnapshotInputs")
        if times_out:
            return failed("engine_timeout", "the engine did not answer within its time")
        normalized = chosen[-1][1]["normalized"]
        parts = {
            part: {name: normalized.get(part, {}).get(name, {"__xray_missing__": True}) for name in names}
            for part, names in {"market": ["price"], "flow": ["cvd"]}.items()
        }
        given = {"symbol": symbol, "timestamp": timestamp_ms, **parts}
        request = {"mode": self.mode, "input": given, "state": self.states.get(symbol), "config": {"step": 2}}
        answer = stand_in(request)
        if "ok" not in answer:
            return failed(answer["error_kind"], answer["error_detail"])
        told = [("EngineRunCompleted", {"regime_output": answer["ok"]["regime_output"]})]
        if self.mode == "hysteresis":
            self.states[symbol] = answer["ok"]["state"]
            decision = {"hysteresis_decision": answer["ok"]["hysteresis_decision"]}
            told.insert(0, ("HysteresisDecisionPublished", decision))
        return None, None, told

    def events(self) -> list[dict[str, Any]]:
        """All that was told, in the order of the runs, without what is operational."""
        told = [each for run in self.runs for each in self.outputs[run["run_id"]]]
        return [{name: value for name, value in each.items() if name != "published_ts_ms"} for each in told]

    def lines(self) -> list[bytes]:
        return [*self.written()]

    def written(self) -> Iterator[bytes]:
        writer = Writer()
        cuts = {
            symbol: [min(r["cut_start_ingest_seq"] for r in runs), max(r["cut_end_ingest_seq"] for r in runs)]
            for symbol in (BTC, ETH)
            if (runs := [run for run in self.runs if run["symbol"] == symbol])
        }
        first = min((start for start, _ in cuts.values()), default=1)
        yield writer.line("header", {"format": FORMAT, "first_ingest_seq": first, "symbols": cuts})
        body = {"engine": {"hysteresis": {"step": 2}}}
        yield writer.line("config", {"version": 1, "digest": "0" * 64, "body": body})
        reached = first - 1
        for run in self.runs:
            for seq in range(reached + 1, run["cut_end_ingest_seq"] + 1):
                text = json.dumps(self.records[seq - 1])
                yield writer.line("record", {"ingest_seq": seq, "ingest_ts_ms": 10 * seq, "event": text})
            reached = max(reached, run["cut_end_ingest_seq"])
            yield writer.line("run", run)
            for each in self.outputs[run["run_id"]]:
                yield writer.line("output", {"event": each})
        yield writer.end(unfinished=0, dropped=0)


def failed(kind: str, detail: str) -> tuple[str, str, list[Any]]:
    return kind, detail, [("EngineRunFailed", {"error_kind": kind, "error_detail": detail})]


def small_day(mode: str = "truth") -> Day:
    """Three ticks of two symbols: a late snapshot, a duplicate, a missing part, an engine that fails."""
    day = Day(mode)
    day.come(
        event(), snapshot(TICK_MS, market={"price": 1.5}), snapshot(TICK_MS, market={"price": 2.5}, flow={"cvd": 1})
    )
    day.come(event("BookTop", ETH), snapshot(TICK_MS, ETH, market={"price": -1.0}))
    day.tick(TICK_MS)
    day.come(snapshot(TICK_MS, market={"price": 3.5}), snapshot(2 * TICK_MS, ETH))
    day.tick(2 * TICK_MS)
    day.come(event("SomethingNew"), snapshot(3 * TICK_MS), snapshot(3 * TICK_MS, ETH, market={"price": 7}))
    day.tick(3 * TICK_MS)
    return day
