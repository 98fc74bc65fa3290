"""How fast runs are replayed, against reading alone: `python -m benchmarks.engine_replay [ticks] [symbols] [records]`.

One export is made in memory: so many ticks of so many symbols, each with so many records and one SnapshotInputs. In
each round its lines are parsed with orjson and nothing else (the measure of it all), read with all their checks,
replayed with an engine that answers one thing, and replayed and verified with the example engine. Three rounds, each
beginning with another way; medians, and the ratio to parsing alone of the same round.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from models.engine.cuts import run_id
from models.engine.divergence import verify
from models.engine.lines import FORMAT, Writer, read_lines
from models.engine.replay import replay
from orchestrator_tasks.engine.adapter import Engine, answer

ROUNDS = 3
TICK_MS = 180_000
PAYLOAD = '{"e":"trade","E":1700000000123,"s":"BTCUSDT","t":12345,"p":"43250.10","q":"0.002","m":true}'
CONFIG = {"version": 1, "digest": "0" * 64, "body": {"engine": {"engine_mode": "truth"}}}
Bodies = Iterator[tuple[str, dict[str, Any]]]


def make_event(symbol: str, event_type: str, normalized: Mapping[str, Any]) -> str:
    return orjson.dumps(
        {
            "schema": "raw_market_event",
            "schema_version": "1",
            "event_type": event_type,
            "source_id": "feed",
            "symbol": symbol,
            "exchange_ts_ms": 1_700_000_000_123,
            "recv_ts_ms": 1_700_000_000_125,
            "raw_payload": PAYLOAD,
            "raw_payload_encoding": "text",
            "normalized": normalized,
        }
    ).decode()


def records_of(tick: int, symbol: str, records: int) -> Iterator[str]:
    trade = {"price": 43250.1 + tick, "quantity": 0.002, "side": "buy"}
    for _ in range(records):
        yield make_event(symbol, "TradeTick", trade)
    market = {"price": 100 + tick % 9, "vwap": 100.0, "atr": 2.0, "atr_z": tick / 7, "sweep_score": 0.1}
    flow = {"cvd": tick % 13, "cvd_slope": 0.3, "cvd_efficiency": 0.5, "aggressive_volume_ratio": 0.6}
    yield make_event(symbol, "SnapshotInputs", {"timestamp_ms": tick * TICK_MS, "market": market, "flow": flow})


def make_run(number: int, tick: int, symbol: str, cut: tuple[int, int], records: int) -> dict[str, Any]:
    symbols_seq = cut[0] + (number - 1) % ((cut[1] - cut[0] + 1) // (records + 1)) * (records + 1) + records
    return {
        "run_id": run_id(symbol, tick * TICK_MS, cut[1], "truth"),
        "number": number,
        "symbol": symbol,
        "engine_timestamp_ms": tick * TICK_MS,
        "engine_mode": "truth",
        "cut_kind": "boundary",
        "cut_start_ingest_seq": cut[0],
        "cut_end_ingest_seq": cut[1],
        "status": "completed",
        "attempts": 1,
        "error_kind": None,
        "error_detail": None,
        "counts_by_event_type": {"TradeTick": records, "SnapshotInputs": 1},
        "snapshot_ingest_seq": symbols_seq,
        "config_version": 1,
    }


def make_bodies(ticks: int, symbols: list[str], records: int) -> Bodies:
    """Everything between the header and the end, but for the outputs."""
    seq, number = 0, 0
    for tick in range(1, ticks + 1):
        start = 1 if tick == 1 else seq + 1
        for text in (text for symbol in symbols for text in records_of(tick, symbol, records)):
            seq += 1
            yield "record", {"ingest_seq": seq, "ingest_ts_ms": tick * TICK_MS, "event": text}
        for symbol in symbols:
            number += 1
            yield "run", make_run(number, tick, symbol, (start, seq), records)


def make_lines(ticks: int, symbols: list[str], records: int, outputs: Mapping[str, list[Any]]) -> list[bytes]:
    writer, last = Writer(), ticks * len(symbols) * (records + 1)
    cuts = {symbol: [1, last] for symbol in symbols}
    lines = [writer.line("header", {"format": FORMAT, "first_ingest_seq": 1, "symbols": cuts})]
    lines.append(writer.line("config", CONFIG))
    for kind, body in make_bodies(ticks, symbols, records):
        lines.append(writer.line(kind, body))
        lines += [writer.line("output", {"event": event}) for event in outputs.get(body.get("run_id", ""), ())]
    return [*lines, writer.end(unfinished=0, dropped=0)]


def constant(_request: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"ok": {"regime_output": {"regime": "CHOP_BALANCED", "confidence": 0.5}}}


def count(items: Any) -> None:
    for _ in items:
        pass


def timed(act: Callable[[], None]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def main() -> None:
    ticks, n, records = (int(word) for word in (*sys.argv[1:], *("480", "50", "4")[len(sys.argv) - 1 :]))
    symbols = [f"SYM{number}-USD" for number in range(n)]
    engine = functools.partial(answer, Engine.load("examples.regime_engine.engine"))
    told = {run.run["run_id"]: run.events for run in replay(make_lines(ticks, symbols, records, {}), engine)}
    lines = make_lines(ticks, symbols, records, told)
    if found := verify(lines, engine):
        raise SystemExit(f"the export does not verify: {found}")
    ways: dict[str, Callable[[], None]] = {
        "parsed with orjson alone": lambda: count(map(orjson.loads, lines)),
        "read with all checks": lambda: count(read_lines(lines)),
        "replayed, constant engine": lambda: count(replay(lines, constant)),
        "replayed and verified, example engine": lambda: count([verify(lines, engine)]),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS):
        names = [*ways][turn % len(ways) :] + [*ways][: turn % len(ways)]
        for name in names:
            took[name].append(timed(ways[name]))
    kinds = Counter(orjson.loads(line)["kind"] for line in lines)
    size = sum(map(len, lines)) / 2**20
    print(f"{kinds['run']} runs, {kinds['record']} records, {kinds['output']} outputs, {size:.0f} MiB")
    base = took["parsed with orjson alone"]
    for name, seconds in took.items():
        median = statistics.median(seconds)
        ratio = statistics.median(mine / alone for mine, alone in zip(seconds, base, strict=True))
        rates = f"{kinds['run'] / median:>9,.0f} runs/s  {kinds['record'] / median:>9,.0f} records/s"
        print(f"{name:<38} {median:6.2f} s  {rates}  x{ratio:.1f}")


if __name__ == "__main__":
    main()
