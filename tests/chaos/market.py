"""The market that feeds the engine while it burns: batches over HTTP, entries in the subscription's stream.

Each event has a name of its own, `source_event_id`, so that the log can be held against what was sent. SnapshotInputs
are for the tick that comes next; some symbols get none, so that some runs have nothing to ask the engine about.
"""

from __future__ import annotations

import time
from typing import Any

import orjson
import redis

from models.kernel.hints import redis_url
from tests.chaos.callers import TRIES, Caller, World
from tests.chaos.history import Call, History

SYMBOLS = ("BTC-USD", "ETH-USD", "SOL-USD")
NEVER = "NEVER-USD"  # configured, and nothing ever comes about it
INTERVAL_MS = 1000
MOST_CATCH_UP = 8
INPUTS, OUTPUTS = "chaos:inputs", "chaos:outputs"
ERA = "chaos:era"
SHARE_WITH_KEY, SHARE_WRONG, SHARE_WITHOUT_INPUTS = 0.5, 0.06, 0.1

CONFIG: dict[str, Any] = {
    "autostart": False,
    "sources": [{"source_id": "binance", "symbols": [*SYMBOLS, NEVER]}],
    "scheduler": {"mode": "timer", "timer_interval_ms": INTERVAL_MS, "max_catch_up_ticks": MOST_CATCH_UP},
    "engine": {
        "engine_mode": "hysteresis",
        "alignment_ms": INTERVAL_MS,
        "timeout_ms": 30_000,
        "hysteresis": {"update_interval_ms": INTERVAL_MS},
    },
    "engine_retry": {"min_delay_ms": 100, "max_delay_ms": 400, "max_attempts": 8},
    "publish_retry": {"min_delay_ms": 100, "max_delay_ms": 500, "max_attempts": 100},
    "ingestion_retry": {"min_delay_ms": 100, "max_delay_ms": 500, "max_attempts": 5},
    "buffer_retry": {"min_delay_ms": 100, "max_delay_ms": 500, "max_attempts": 5},
    "subscription": {"stream": INPUTS},
    "output_publish": {"stream": OUTPUTS, "max_block_ms": 1000},
}


def event(name: str, symbol: str, event_type: str, normalized: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": "raw_market_event",
        "schema_version": "1",
        "event_type": event_type,
        "source_id": "binance",
        "symbol": symbol,
        "exchange_ts_ms": None,
        "recv_ts_ms": time.time_ns() // 1_000_000,
        "raw_payload": name,
        "source_event_id": name,
        "normalized": normalized,
    }


def next_timestamp(first_tick_ms: int) -> int:
    """The engine's timestamp of the tick that comes next."""
    now = time.time_ns() // 1_000_000
    tick = now + (first_tick_ms - now) % INTERVAL_MS
    return tick // INTERVAL_MS * INTERVAL_MS


def batch_of(caller: Caller, name: str) -> list[dict[str, Any]]:
    """Trades, and SnapshotInputs of most symbols, now and then two of one."""
    chance, timestamp = caller.chance, next_timestamp(caller.world.first_tick_ms)
    drafts = [("TradeTick", chance.choice(SYMBOLS), {"price": chance.random()}) for _ in range(chance.randint(0, 3))]
    for symbol in SYMBOLS:
        if chance.random() > SHARE_WITHOUT_INPUTS:
            market = {"price": 100 + chance.uniform(-5, 5), "vwap": 100, "atr": chance.uniform(0.5, 3)}
            flow = {"cvd_slope": chance.uniform(-2, 2)}
            drafts.append(("SnapshotInputs", symbol, {"timestamp_ms": timestamp, "market": market, "flow": flow}))
    chance.shuffle(drafts)
    drafts = drafts or [("TradeTick", SYMBOLS[0], {"price": 1.0})]
    return [event(f"{name}/{n}", symbol, kind, body) for n, (kind, symbol, body) in enumerate(drafts)]


def feed(caller: Caller) -> None:
    """Append a batch: with a key until it is answered, and sometimes after that, or without one and once."""
    caller.keys += 1
    name = f"{caller.name}-{caller.world.seed}-{caller.keys}"
    body = batch_of(caller, name)
    if caller.chance.random() < SHARE_WRONG:
        body[-1]["symbol"] = "UNKNOWN"
    has_key = caller.chance.random() < SHARE_WITH_KEY
    for attempt in range(TRIES if has_key else 1):
        key = name if has_key else None
        call = caller.ask("append", "POST", "/engine/events", body, key=key, about={"batch": name})
        answered = call.status is not None and call.status not in (409, 503)
        if answered and (attempt or caller.chance.random() > SHARE_WRONG):
            break
    caller.rest(0.15, 0.4)


class Stream:
    """The subscription's stream, seen past the proxies: what was pushed, and what has been taken from it since.

    A key tells the eras apart: it is gone, like everything else, once the memory is lost. Within an era nobody but the
    subscription removes entries, and it does so once it has appended them.
    """

    def __init__(self, broker_url: str, history: History) -> None:
        self.client = redis.Redis.from_url(redis_url(broker_url), socket_timeout=5.0)
        self.history = history
        self.era = 0
        self.there: dict[bytes, str] = {}

    def push(self, who: str, entry: dict[str, Any], *, is_wrong: bool = False) -> Call:
        call = self.history.begin(who, "push", {"event": entry, "is_wrong": is_wrong})
        try:
            self.begin_era_if_lost()
            pipeline = self.client.pipeline(transaction=True)
            pipeline.get(ERA)
            pipeline.xadd(INPUTS, {"event": orjson.dumps(entry)})
            era, made = pipeline.execute()
        except (redis.RedisError, OSError):
            return self.history.end(call, None)
        if era == str(self.era).encode():
            self.there[made] = entry["source_event_id"]
        return self.history.end(call, 201, made.decode())

    def begin_era_if_lost(self) -> None:
        """Nothing is known any more of what was there."""
        if self.client.get(ERA) != str(self.era).encode():
            self.era += 1
            self.there.clear()
            self.client.set(ERA, self.era)

    def look(self, who: str) -> bool:
        """Write down what was taken since the last look; whether all was."""
        call = self.history.begin(who, "taken", {"names": []})
        try:
            pipeline = self.client.pipeline(transaction=True)
            pipeline.get(ERA)
            pipeline.xrange(INPUTS)
            era, left = pipeline.execute()
        except (redis.RedisError, OSError):
            return False
        if era != str(self.era).encode():
            self.there.clear()
        gone = self.there.keys() - {entry for entry, _ in left}
        call.request["names"] = [self.there.pop(entry) for entry in sorted(gone)]
        if gone:
            self.history.end(call, 200)
        return not left

    def pushed_outputs(self) -> list[int]:
        """The numbers in the stream of outputs, in its order."""
        return [int(fields[b"seq"]) for _, fields in self.client.xrange(OUTPUTS)]


class Pusher:
    """Pushes entries into the stream, a few a second, some of them no events."""

    def __init__(self, world: World, stream: Stream) -> None:
        self.world, self.stream, self.count = world, stream, 0

    def act(self, caller: Caller) -> None:
        self.count += 1
        name = f"{caller.name}-{caller.world.seed}-{self.count}"
        symbol = caller.chance.choice(SYMBOLS)
        timestamp = next_timestamp(caller.world.first_tick_ms)
        is_wrong = caller.chance.random() < SHARE_WRONG
        entry = event(name, "UNKNOWN" if is_wrong else symbol, "SnapshotInputs", {"timestamp_ms": timestamp})
        self.stream.push(caller.name, entry, is_wrong=is_wrong)
        self.stream.look(caller.name)
        caller.rest(0.1, 0.5)
