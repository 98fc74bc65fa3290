"""An engine that does nothing, for measuring what is around it."""

from __future__ import annotations

from examples.regime_engine.contracts import (
    HysteresisConfig,
    HysteresisDecision,
    HysteresisStore,
    HysteresisTransition,
    Regime,
    RegimeInputSnapshot,
    RegimeOutput,
)

NO_TRANSITION = HysteresisTransition(None, None, 0, False, False, False)


def run(snapshot: RegimeInputSnapshot) -> RegimeOutput:
    return RegimeOutput(snapshot.symbol, snapshot.timestamp, Regime.CHOP_BALANCED, 0.5, [], [], [])


def run_with_hysteresis(
    snapshot: RegimeInputSnapshot,
    state: HysteresisStore,  # noqa: ARG001 - it remembers nothing
    config: HysteresisConfig | None = None,  # noqa: ARG001
) -> HysteresisDecision:
    return HysteresisDecision(run(snapshot), 0.5, NO_TRANSITION)
