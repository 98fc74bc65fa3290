"""Raw market events for tests: what a feed would send."""

from __future__ import annotations

import json
from typing import Any

SOURCES = {"binance": frozenset({"BTC-USD", "ETH-USD"}), "kraken": frozenset({"BTC-USD"})}
MINUTES_3 = 180_000


def event(event_type: str = "TradeTick", symbol: str = "BTC-USD", **members: Any) -> dict[str, Any]:
    """One whole event; `members` replace or add."""
    return {
        "schema": "raw_market_event",
        "schema_version": "1",
        "event_type": event_type,
        "source_id": "binance",
        "symbol": symbol,
        "exchange_ts_ms": 179_999,
        "recv_ts_ms": 180_001,
        "raw_payload": '{"x":1}',
        "raw_payload_encoding": "text",
        "normalized": {"price": 1.5, "quantity": 2, "side": "buy"},
        **members,
    }


def snapshot(timestamp_ms: int = MINUTES_3, symbol: str = "BTC-USD", **normalized: Any) -> dict[str, Any]:
    """SnapshotInputs for one timestamp."""
    return event("SnapshotInputs", symbol, normalized={"timestamp_ms": timestamp_ms, **normalized})


def text_of(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def lines_of(*events: Any) -> bytes:
    """NDJSON."""
    return b"".join(text_of(each) + b"\n" for each in events)
