"""The engine's two functions. Both are pure but for the store that the second is given."""

from __future__ import annotations

from examples.regime_engine.contracts import (
    HysteresisConfig,
    HysteresisDecision,
    HysteresisState,
    HysteresisStore,
    Regime,
    RegimeInputSnapshot,
    RegimeOutput,
)
from examples.regime_engine.hysteresis import step
from examples.regime_engine.scoring import known_share, scores

INVALIDATIONS = {
    "CHOP": "the price leaves the VWAP by more than one ATR",
    "LIQUIDATION": "forced liquidations end",
    "SQUEEZE": "open interest falls or the funding turns",
    "TREND": "price and flow part, or meet again",
}
WORTH_NAMING = 0.25


def run(snapshot: RegimeInputSnapshot) -> RegimeOutput:
    """The regime that most speaks for; what is missing lowers the confidence in it."""
    ranked = scores(snapshot)
    best = ranked[0]
    return RegimeOutput(
        symbol=snapshot.symbol,
        timestamp=snapshot.timestamp,
        regime=best.regime,
        confidence=round(best.value * (0.4 + 0.6 * known_share(snapshot)), 6),
        drivers=[score.driver for score in ranked if score is best or score.value >= WORTH_NAMING],
        invalidations=[INVALIDATIONS[best.regime.value.partition("_")[0]]],
        permissions=permissions_for(best.regime),
    )


def run_with_hysteresis(
    snapshot: RegimeInputSnapshot, state: HysteresisStore, config: HysteresisConfig | None = None
) -> HysteresisDecision:
    """What is decided about the symbol, given what `state` remembers of it, which is brought up to date."""
    before = state.states.get(snapshot.symbol, HysteresisState())
    decision, state.states[snapshot.symbol] = step(run(snapshot), before, config or HysteresisConfig())
    return decision


def permissions_for(regime: Regime) -> list[str]:
    """What somebody who listens may do, in words of this example's own."""
    if regime in {Regime.TREND_BUILD_UP, Regime.TREND_BUILD_DOWN}:
        return ["follow"]
    if regime in {Regime.SQUEEZE_UP, Regime.SQUEEZE_DOWN, Regime.TREND_EXHAUSTION}:
        return ["follow", "take_profit"]
    return ["stand_aside"] if regime is not Regime.CHOP_BALANCED else ["fade_extremes"]
