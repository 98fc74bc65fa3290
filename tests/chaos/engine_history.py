"""A sound history of an engine for the tests of its checks: three ticks of two symbols, told as it would be."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests.chaos.evidence import Evidence, Heard, Row
from tests.chaos.history import Call

BTC, ETH = "BTC-USD", "ETH-USD"
FIRST_MS, SECOND_MS, THIRD_MS = 1500, 2500, 3500
CONFIG = {
    "sources": [{"source_id": "binance", "symbols": [BTC, ETH]}],
    "scheduler": {"timer_interval_ms": 1000, "max_catch_up_ticks": 2},
    "engine": {"alignment_ms": 1000},
}
FAILED = "missing_snapshot_inputs"


def event(name: str, symbol: str, timestamp_ms: int | None = None) -> Row:
    kind = "TradeTick" if timestamp_ms is None else "SnapshotInputs"
    normalized = {} if timestamp_ms is None else {"timestamp_ms": timestamp_ms}
    return {"event_type": kind, "symbol": symbol, "source_event_id": name, "normalized": normalized}


def record(seq: int, at_ms: int, sent: Row) -> Row:
    timestamp = sent["normalized"].get("timestamp_ms")
    kept = {"symbol": sent["symbol"], "event_type": sent["event_type"], "snapshot_ts_ms": timestamp}
    return {"ingest_seq": seq, "ingest_ts_ms": at_ms, "source_id": "binance", "event": json.dumps(sent), **kept}


def run_of(number: int, symbol: str, tick_ms: int, cut: tuple[int, int], **others: Any) -> Row:
    timestamp = tick_ms // 1000 * 1000
    text = f"{symbol}|{timestamp}|{cut[1]}|hysteresis"
    has_inputs = others.get("snapshot_ingest_seq") is not None
    return {
        "id": hashlib.sha256(text.encode()).hexdigest(),
        "number": number,
        "symbol": symbol,
        "engine_timestamp_ms": timestamp,
        "engine_mode": "hysteresis",
        "cut_start_ingest_seq": cut[0],
        "cut_end_ingest_seq": cut[1],
        "counts_by_event_type": {},
        "planned_ts_ms": tick_ms,
        "attempts": 1,
        "snapshot_ingest_seq": None,
        "error_kind": None if has_inputs else FAILED,
        "error_detail": None,
        "state": "completed" if has_inputs else "failed",
        "revision": 3,
        **others,
    }


BATCHES = {"a": [event("a/0", BTC), event("a/1", BTC, 1000)], "b": [event("b/0", ETH, 2000)]}
PUSHED = event("p-1", BTC, 2000)
WRONG = event("p-2", "UNKNOWN")


def sound_runs() -> list[Row]:
    """Three ticks: ETH comes with the second, and before the third nothing does."""
    return [
        run_of(
            1,
            BTC,
            FIRST_MS,
            (1, 2),
            snapshot_ingest_seq=2,
            counts_by_event_type={"TradeTick": 1, "SnapshotInputs": 1},
        ),
        run_of(2, BTC, SECOND_MS, (3, 4), snapshot_ingest_seq=4, counts_by_event_type={"SnapshotInputs": 1}),
        run_of(3, ETH, SECOND_MS, (3, 4), snapshot_ingest_seq=3, counts_by_event_type={"SnapshotInputs": 1}),
        run_of(4, BTC, THIRD_MS, (5, 5)),
        run_of(5, ETH, THIRD_MS, (5, 5), counts_by_event_type={"TradeTick": 1}),
    ]


def told_of(runs: list[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Ledger, outputs and leases, had each run been carried out by itself."""
    ledger: list[Row] = []
    outputs: list[Row] = []
    leases: list[Row] = []
    for run in runs:
        lease = {"job_id": run["number"], "subject_kind": "engine_run", "subject_id": run["id"], "fence": run["number"]}
        for act in ("taken", "ended"):
            n = len(leases) + 1
            leases.append({**lease, "lane": f"symbol:{run['symbol']}", "n": n, "act": act, "at": float(n)})
        for revision, (state, topic, kinds) in enumerate(steps(run), start=1):
            for kind in kinds or [None]:
                seq = len(ledger) + 1
                moves = kind != "HysteresisDecisionPublished"
                ledger.append(row_of(seq, run, topic if moves else "hysteresis_decision_published", moves and state))
                ledger[-1]["revision"] = revision
                if kind:
                    same = {name: run[name] for name in ("symbol", "engine_timestamp_ms")}
                    told = {"seq": seq, "run_id": run["id"], "event_type": kind, **same}
                    outputs.append({**told, "event": f"{kind} of {run['number']}"})
    return ledger, outputs, leases


def steps(run: Row) -> list[tuple[tuple[str | None, str], str, list[str]]]:
    decided = ["HysteresisDecisionPublished", "EngineRunCompleted"]
    ends = decided if run["state"] == "completed" else ["EngineRunFailed"]
    return [
        ((None, "planned"), "engine_run_planned", []),
        (("planned", "started"), "engine_run_started", ["EngineRunStarted"]),
        (("started", run["state"]), f"engine_run_{run['state']}", ends),
    ]


def row_of(seq: int, run: Row, topic: str, step: Any) -> Row:
    before, after = step or (None, None)
    row = {"seq": seq, "subject_kind": "engine_run", "subject_id": run["id"], "topic": topic, "at": float(seq)}
    more = {"actor": "worker:here", "reason": run["error_kind"], "correlation_id": run["id"], "body": {}}
    return {**row, **more, "from_state": before, "to_state": after}


def sound_calls() -> list[Call]:
    def append(batch: str, number: int, key: str | None, status: int | None, answer: Any) -> Call:
        request = {"batch": batch, "body": BATCHES[batch]}
        return Call("feeder", "append", f"feeder.{number}", request, 1.0, key, 1.1, status, answer)

    def push(number: int, sent: Row, is_wrong: bool) -> Call:
        return Call("pusher", "push", f"pusher.{number}", {"event": sent, "is_wrong": is_wrong}, 2.0, None, 2.1, 201)

    first, second = ({"accepted": n, "first_ingest_seq": a, "last_ingest_seq": b} for n, a, b in ((2, 1, 2), (1, 3, 3)))
    return [
        append("a", 1, "a", None, None),
        append("a", 2, "a", 201, first),
        append("b", 3, None, 201, second),
        Call("feeder", "append", "feeder.4", {"batch": "c", "body": [event("c/0", ETH)]}, 3.0),
        Call("feeder", "append", "feeder.5", {"batch": "d", "body": [event("d/0", "?")]}, 3.0, None, 3.1, 422, {}),
        push(1, PUSHED, False),
        push(2, WRONG, True),
        Call("pusher", "taken", "pusher.3", {"names": ["p-1", "p-2"]}, 3.0, None, 3.1, 200),
    ]


def sound() -> Evidence:
    """Two batches and an entry of the stream, one batch that nobody was told of, one that was refused."""
    runs = sound_runs()
    ledger, outputs, leases = told_of(runs)
    sent = [*BATCHES["a"], *BATCHES["b"], PUSHED, event("c/0", ETH)]
    texts = [{"event": output["event"]} for output in outputs]
    engine = {"state": "drained", "next_tick_ms": 4500, "first_seq": 1, "last_seq": 5, "config": CONFIG}
    return Evidence(
        calls=sound_calls(),
        listeners=[
            Heard("all", events=texts),
            Heard("eth", ETH, [text for text, output in zip(texts, outputs, strict=True) if output["symbol"] == ETH]),
        ],
        ledger=ledger,
        leases=leases,
        records=[
            record(n, at, each) for n, at, each in zip(range(1, 6), (1400, 1400, 1600, 1700, 2600), sent, strict=True)
        ],
        totals=[
            {"source_id": "binance", "event_type": "TradeTick", "events": 2},
            {"source_id": "binance", "event_type": "SnapshotInputs", "events": 3},
        ],
        runs=runs,
        outputs=outputs,
        told_outputs=[{"seq": output["seq"], "event": output["event"]} for output in outputs],
        cadences=[{"n": 1, "first_tick_ms": FIRST_MS, "at": 1.5}],
        engine=[{**engine, "ticks": 3, "skipped_ticks": 1, "missed_ticks": 0}],
        pushed=[output["seq"] for output in outputs][2:],
        replayed={"verified": True, "runs": len(runs), "events": len(outputs)},
        now=20.0,
    )
