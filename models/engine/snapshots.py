"""What an engine is given: the fields of one SnapshotInputs event, and a mark wherever one was omitted.

Nothing is computed and nothing filled in. `null` is a value of its own; what is absent is MISSING.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from models.kernel.errors import OrchestratorError

MISSING: dict[str, bool] = {"__xray_missing__": True}
"""The JSON of a missing value."""

FIELDS: dict[str, tuple[str, ...]] = {
    "market": (
        "price",
        "vwap",
        "atr",
        "atr_z",
        "range_expansion",
        "structure_levels",
        "acceptance_score",
        "sweep_score",
    ),
    "derivatives": (
        "open_interest",
        "oi_slope_short",
        "oi_slope_med",
        "oi_accel",
        "funding_rate",
        "funding_slope",
        "funding_z",
        "liquidation_intensity",
    ),
    "flow": ("cvd", "cvd_slope", "cvd_efficiency", "aggressive_volume_ratio"),
    "context": ("rs_vs_btc", "beta_to_btc", "alt_breadth", "btc_regime", "eth_regime"),
}
"""The fields of each part, in the order of the engine's contract."""


class SnapshotNotBuilt(OrchestratorError):
    """The selected event does not say what an engine can be given."""

    code = "snapshot_build_failure"


def engine_input(event_text: str, engine_timestamp_ms: int) -> dict[str, Any]:
    """The engine's input as plain JSON values, from the text of a SnapshotInputs event.

    Unknown keys are dropped, omitted fields are MISSING, and so is every field of an omitted part.
    Raises SnapshotNotBuilt.
    """
    event = read_object(event_text)
    normalized = event.get("normalized")
    if not isinstance(normalized, Mapping):
        raise SnapshotNotBuilt("normalized is no object")
    if not isinstance(event.get("symbol"), str):
        raise SnapshotNotBuilt("symbol is no text")
    parts = {part: part_of(normalized, part) for part in FIELDS}
    return {"symbol": event["symbol"], "timestamp": engine_timestamp_ms, **parts}


def read_object(text: str) -> Mapping[str, Any]:
    try:
        event = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise SnapshotNotBuilt(f"the event is no JSON: {error}") from None
    if not isinstance(event, Mapping):
        raise SnapshotNotBuilt("the event is no object")
    return event


def part_of(normalized: Mapping[str, Any], part: str) -> dict[str, Any]:
    given = normalized.get(part)
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise SnapshotNotBuilt(f"normalized.{part} is no object")
    return {name: given.get(name, MISSING) for name in FIELDS[part]}
