"""What speaks for each regime, between 0 and 1, and why. Only arithmetic: the same everywhere, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from examples.regime_engine.contracts import MISSING, Regime, RegimeInputSnapshot

PARTS = ("market", "derivatives", "flow", "context")
LARGEST = 1e6
FAR = 0.5  # of what `squash` gives: one ATR from the VWAP
SWEPT = 0.6
QUIET = 0.55  # chop is believed when nothing else is stronger


@dataclass(frozen=True)
class Score:
    regime: Regime
    value: float
    driver: str


def number(value: Any) -> float:
    """The value, or 0 where there is none: what is missing speaks for nothing."""
    return float(value) if isinstance(value, int | float) else 0.0


def squash(value: float) -> float:
    """Any number into (-1, 1), keeping its sign."""
    bounded = max(-LARGEST, min(LARGEST, value))
    return bounded / (1.0 + abs(bounded))


def known_share(snapshot: RegimeInputSnapshot) -> float:
    """How much of the snapshot is there, from 0 to 1."""
    values = [value for part in PARTS for value in values_of(getattr(snapshot, part))]
    return sum(value is not MISSING for value in values) / len(values)


def values_of(part: Any) -> Iterator[Any]:
    return (getattr(part, item.name) for item in fields(part))


def stretch(snapshot: RegimeInputSnapshot) -> float:
    """How far the price is from the VWAP, in ATRs, squashed; 0 when one of them is not known."""
    market = snapshot.market
    price, vwap, atr = number(market.price), number(market.vwap), number(market.atr)
    return squash((price - vwap) / atr) if price > 0 and vwap > 0 and atr > 0 else 0.0


def scores(snapshot: RegimeInputSnapshot) -> list[Score]:
    """Every regime that something speaks for, the strongest first; the order of the rules decides between equals."""
    found = [*liquidation(snapshot), *squeeze(snapshot), *trend(snapshot), *chop(snapshot)]
    return sorted(found, key=lambda score: -score.value)


def liquidation(snapshot: RegimeInputSnapshot) -> Iterator[Score]:
    """Forced trades push the price away from its average."""
    intensity = squash(max(0.0, number(snapshot.derivatives.liquidation_intensity)))
    away = stretch(snapshot)
    if intensity and away:
        regime = Regime.LIQUIDATION_UP if away > 0 else Regime.LIQUIDATION_DOWN
        yield Score(regime, (2 * intensity + abs(away)) / 3, "forced liquidations away from the VWAP")


def squeeze(snapshot: RegimeInputSnapshot) -> Iterator[Score]:
    """Positions grow on the side that pays for it: they will have to be closed against it."""
    crowd = squash(number(snapshot.derivatives.funding_z))
    growth = squash(max(0.0, number(snapshot.derivatives.oi_slope_short)))
    if crowd and growth:
        regime = Regime.SQUEEZE_DOWN if crowd > 0 else Regime.SQUEEZE_UP
        yield Score(regime, (abs(crowd) + growth) / 2, "open interest grows while one side pays the funding")


def trend(snapshot: RegimeInputSnapshot) -> Iterator[Score]:
    """Price and flow on one side build a trend; a stretched price against the flow is running out."""
    away, flow = stretch(snapshot), squash(number(snapshot.flow.cvd_slope))
    if away * flow > 0:
        regime = Regime.TREND_BUILD_UP if away > 0 else Regime.TREND_BUILD_DOWN
        yield Score(regime, (abs(away) + abs(flow)) / 2, "price and cumulative volume delta on the same side")
    elif away * flow < 0 and abs(away) >= FAR:
        yield Score(Regime.TREND_EXHAUSTION, (abs(away) + abs(flow)) / 2, "a stretched price against the flow")


def chop(snapshot: RegimeInputSnapshot) -> Iterator[Score]:
    """What it is when nothing else is; with swept and not accepted levels somebody hunts stops."""
    swept = number(snapshot.market.sweep_score) - number(snapshot.market.acceptance_score)
    if swept >= SWEPT:
        yield Score(Regime.CHOP_STOPHUNT, min(swept, 1.0), "levels are swept and not accepted")
    yield Score(Regime.CHOP_BALANCED, QUIET * (1.0 - abs(stretch(snapshot))), "price near the VWAP")
