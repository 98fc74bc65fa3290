"""A made-up market for the engine: python examples/market_feed.py [--seconds 60] [--seed 7] [--url http://127.0.0.1:8000]

It asks the running service which sources, symbols and cadence it is configured with, posts
events once a second (trades, books, marks, funding, open interest, liquidations, and the
SnapshotInputs of the coming run), and shows on stderr what the engine makes of them. Prices
walk at random from the seed; the service's clock decides which run they belong to.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACE_SECONDS = 1.0
SHOWN_BEFORE_SECONDS = 5.0  # so long before a boundary its SnapshotInputs are sent, anew each second
PRICES = {"BTC-USD": 64_000.0, "ETH-USD": 3_100.0, "SOL-USD": 150.0}
OFTEN = 0.8
MEMORY = 0.9  # of the averages, from second to second
MOODS = (  # (drift, funding, open interest, liquidations): what the market is in for, for a while
    (0.0, 0.0, 0.0, 0.0),
    (1.0, 0.5, 0.3, 0.0),
    (-1.0, -0.5, 0.3, 0.0),
    (0.2, 3.0, 4.0, 0.0),
    (-0.2, -3.0, 4.0, 0.0),
    (1.5, 0.0, 0.0, 6.0),
    (-1.5, 0.0, 0.0, 6.0),
)

log = logging.getLogger("market_feed")


@dataclass
class Market:
    """One symbol: a walk whose drift, funding and open interest follow moods that change by chance."""

    symbol: str
    chance: random.Random
    price: float
    vwap: float = 0.0
    atr: float = 0.0
    cvd: float = 0.0
    cvd_slope: float = 0.0
    open_interest: float = 50_000.0
    mood: tuple[float, float, float, float] = MOODS[0]
    trades: list[tuple[float, float, str]] = field(default_factory=list)

    def step(self) -> None:
        """One second passes."""
        if self.chance.random() < 1 / 15:
            self.mood = self.chance.choice(MOODS)
        self.trades = [self.trade() for _ in range(self.chance.randint(1, 4))]
        self.vwap = MEMORY * (self.vwap or self.price) + (1 - MEMORY) * self.price
        signed = sum(quantity if side == "buy" else -quantity for _, quantity, side in self.trades)
        self.cvd += signed
        self.cvd_slope = MEMORY * self.cvd_slope + (1 - MEMORY) * signed
        self.open_interest *= 1 + self.mood[2] / 10_000

    def trade(self) -> tuple[float, float, str]:
        move = self.chance.gauss(self.mood[0], 1.0) * self.price / 10_000
        self.price += move
        self.atr = MEMORY * (self.atr or self.price / 5_000) + (1 - MEMORY) * abs(move)
        return round(self.price, 2), round(self.chance.uniform(0.01, 2), 4), "buy" if move > 0 else "sell"

    def noisy(self, value: float) -> float:
        return round(value + self.chance.gauss(0, 0.2), 4)

    def snapshot(self, timestamp_ms: int) -> dict[str, Any]:
        """What is known of this moment. Now and then a part of it is not."""
        inputs: dict[str, Any] = {
            "timestamp_ms": timestamp_ms,
            "market": {
                "price": round(self.price, 2),
                "vwap": round(self.vwap, 2),
                "atr": round(self.atr * 3, 4),
                "atr_z": self.noisy(0.0),
                "range_expansion": self.noisy(1.0),
                "structure_levels": {"high": round(self.price * 1.01, 2), "low": round(self.price * 0.99, 2)},
                "acceptance_score": round(self.chance.uniform(0.2, 1), 3),
                "sweep_score": round(self.chance.uniform(0, 0.9), 3),
            },
            "derivatives": {
                "open_interest": round(self.open_interest, 2),
                "oi_slope_short": self.noisy(self.mood[2]),
                "oi_slope_med": self.noisy(self.mood[2] / 2),
                "oi_accel": self.noisy(0.0),
                "funding_rate": round(self.mood[1] / 10_000, 6),
                "funding_slope": self.noisy(0.0),
                "funding_z": self.noisy(self.mood[1]),
                "liquidation_intensity": max(0.0, self.noisy(self.mood[3])) if self.mood[3] else None,
            },
            "flow": {
                "cvd": round(self.cvd, 4),
                "cvd_slope": round(self.cvd_slope, 4),
                "cvd_efficiency": round(self.chance.uniform(0, 1), 3),
                "aggressive_volume_ratio": round(self.chance.uniform(0.3, 0.7), 3),
            },
        }
        if self.chance.random() < OFTEN:  # otherwise the context is missing
            inputs["context"] = {"rs_vs_btc": self.noisy(0.0), "beta_to_btc": 1.0, "btc_regime": None}
        return inputs

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(event_type, normalized) of what a source would tell of this second."""
        for price, quantity, side in self.trades:
            yield "TradeTick", {"price": price, "quantity": quantity, "side": side}
        spread = self.price / 20_000
        yield (
            "BookTop",
            {
                "best_bid_price": round(self.price - spread, 2),
                "best_bid_quantity": round(self.chance.uniform(0.1, 5), 3),
                "best_ask_price": round(self.price + spread, 2),
                "best_ask_quantity": round(self.chance.uniform(0.1, 5), 3),
            },
        )
        yield "MarkPrice", {"mark_price": round(self.price, 2)}
        yield "FundingRate", {"funding_rate": round(self.mood[1] / 10_000, 6)}
        yield "OpenInterest", {"open_interest": round(self.open_interest, 2)}
        if self.mood[3]:
            side = "buy" if self.mood[0] > 0 else "sell"
            yield "LiquidationPrint", {"price": round(self.price, 2), "quantity": self.mood[3], "side": side}


class Service:
    """The running service, by its HTTP interface."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token

    def ask(self, path: str, body: bytes | None = None, timeout: float | None = 30) -> Any:
        """An open answer; without a body it is a GET."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/x-ndjson"}
        request = urllib.request.Request(self.url + path, body, headers)  # noqa: S310 - the user's own address
        return urllib.request.urlopen(request, timeout=timeout)  # noqa: S310

    def config(self) -> dict[str, Any]:
        with self.ask("/engine/config") as answer:
            return dict(json.load(answer)["config"])

    def post(self, events: list[dict[str, Any]]) -> int:
        """Append them; a full buffer is waited for as it asks. Answers the number of the last one in the log."""
        body = "\n".join(json.dumps(event, separators=(",", ":")) for event in events).encode()
        while True:
            try:
                with self.ask("/engine/events", body) as answer:
                    return int(json.load(answer)["last_ingest_seq"])
            except urllib.error.HTTPError as error:
                if error.code not in {429, 503}:
                    raise
                log.info("%s; again in %s s", json.load(error)["detail"], error.headers["Retry-After"])
                time.sleep(float(error.headers["Retry-After"] or 1))

    def follow(self) -> None:
        """Show each regime as it is published; a stream that ends is gone on with where it ended."""
        place = ""
        while True:
            with contextlib.suppress(OSError), self.ask(f"/engine/outputs/events{place}", timeout=None) as lines:
                for line in lines:
                    name, _, text = line.decode().strip().partition(": ")
                    if name == "id":
                        place = f"?after={text}"
                    elif name == "data":
                        show(json.loads(text))
            time.sleep(PACE_SECONDS)


def show(event: dict[str, Any]) -> None:
    """One line for what came of a run; the stream's own messages have no event_type."""
    if event.get("event_type") not in {"EngineRunCompleted", "EngineRunFailed"}:
        return
    at = time.strftime("%H:%M:%S", time.localtime(event["engine_timestamp_ms"] / 1000))
    if event["event_type"] == "EngineRunCompleted":
        found = event["payload"]["regime_output"]
        log.info(
            "%s  %-8s %-17s %.2f  %s", at, event["symbol"], found["regime"], found["confidence"], found["drivers"][0]
        )
    else:
        log.info("%s  %-8s failed: %s", at, event["symbol"], event["payload"]["error_detail"])


def wanted_timestamps(config: dict[str, Any], now_ms: int) -> list[int]:
    """The engine timestamps whose SnapshotInputs are to be sent now."""
    scheduler, step = config["scheduler"], config["engine"]["alignment_ms"]
    if scheduler["mode"] == "timer":
        return [now_ms // step * step]
    interval, last_moment = scheduler["boundary_interval_ms"], scheduler["boundary_delay_ms"] / 2
    last = now_ms // interval * interval
    late = [last] if now_ms - last < last_moment else []
    return [*late, last + interval] if last + interval - now_ms <= SHOWN_BEFORE_SECONDS * 1000 else late


def wrap(source: str, symbol: str, event_type: str, normalized: dict[str, Any], now_ms: int) -> dict[str, Any]:
    """A RawMarketEvent; what the source sent is kept as its text."""
    return {
        "schema": "raw_market_event",
        "schema_version": "1",
        "event_type": event_type,
        "source_id": source,
        "symbol": symbol,
        "exchange_ts_ms": now_ms - 5,
        "recv_ts_ms": now_ms,
        "raw_payload": json.dumps({"e": event_type, **normalized}),
        "raw_payload_encoding": "text",
        "normalized": normalized,
    }


def second(markets: dict[str, Market], config: dict[str, Any], now_ms: int) -> list[dict[str, Any]]:
    """All events of one second: each source tells of its symbols, the first of each symbol of the snapshot as well."""
    for market in markets.values():
        market.step()
    events = [
        wrap(source["source_id"], symbol, kind, normalized, now_ms)
        for source in config["sources"]
        for symbol in source["symbols"]
        for kind, normalized in markets[symbol].events()
    ]
    first = {symbol: source["source_id"] for source in reversed(config["sources"]) for symbol in source["symbols"]}
    for timestamp in wanted_timestamps(config, now_ms):
        for name, source in first.items():
            events.append(wrap(source, name, "SnapshotInputs", markets[name].snapshot(timestamp), now_ms))
    return events


def feed(service: Service, seconds: float, seed: int) -> None:
    config = service.config()
    symbols = sorted({symbol for source in config["sources"] for symbol in source["symbols"]})
    markets = {name: Market(name, random.Random(f"{seed} {name}"), PRICES.get(name, 100.0)) for name in symbols}  # noqa: S311
    log.info("feeding %s to %s", ", ".join(symbols), service.url)
    threading.Thread(target=service.follow, daemon=True).start()
    began = due = time.monotonic()
    while due - began < seconds:
        service.post(second(markets, config, int(time.time() * 1000)))
        due += PACE_SECONDS
        time.sleep(max(0.0, due - time.monotonic()))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('PORT', '8000')}")
    given = parser.parse_args()
    token = Path(os.environ.get("ORCHESTRATOR_HOME", ".orchestrator")) / "admin.token"
    try:
        feed(Service(given.url, token.read_text().strip()), given.seconds, given.seed)
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.url} answered {error.code}: {error.read().decode()}")
    except OSError as error:
        sys.exit(f"the service does not answer; is `make up` running? ({error})")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
