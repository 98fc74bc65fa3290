"""Holding on to a regime until another one has shown itself often and clearly enough."""

from __future__ import annotations

from examples.regime_engine.contracts import (
    HysteresisConfig,
    HysteresisDecision,
    HysteresisState,
    HysteresisTransition,
    RegimeOutput,
)

Step = tuple[HysteresisDecision, HysteresisState]


class HysteresisError(ValueError):
    """The outputs of a symbol did not come in rising order of time."""


def step(output: RegimeOutput, state: HysteresisState, config: HysteresisConfig) -> Step:
    """What is decided about one new output, and what to remember; raises HysteresisError."""
    last, stable = state.last_timestamp, state.stable_output
    if last is not None and output.timestamp <= last:
        raise HysteresisError("Non-increasing timestamp for hysteresis input.")
    if last is not None and output.timestamp - last > config.update_interval_ms:
        return accept(output, reset_due_to_gap=True)
    if stable is None or stable.regime is output.regime:
        return accept(output)
    count = state.candidate_count + 1 if state.candidate_regime is output.regime else 1
    if count >= config.min_persistence_updates and output.confidence >= config.min_confidence_for_flip:
        return accept(output, flipped=True)
    return hold(stable, output, count, config)


def accept(output: RegimeOutput, *, flipped: bool = False, reset_due_to_gap: bool = False) -> Step:
    """The output is the stable one from now on."""
    transition = HysteresisTransition(
        stable_regime=output.regime,
        candidate_regime=None,
        candidate_count=0,
        transition_active=False,
        flipped=flipped,
        reset_due_to_gap=reset_due_to_gap,
    )
    return (
        HysteresisDecision(output, output.confidence, transition),
        HysteresisState(stable_output=output, last_timestamp=output.timestamp),
    )


def hold(stable: RegimeOutput, output: RegimeOutput, count: int, config: HysteresisConfig) -> Step:
    """The stable output stays, less and less believed; the other regime is counted."""
    transition = HysteresisTransition(
        stable_regime=stable.regime,
        candidate_regime=output.regime,
        candidate_count=count,
        transition_active=True,
        flipped=False,
        reset_due_to_gap=False,
    )
    decayed = stable.confidence * config.decay_factor**count
    return (
        HysteresisDecision(stable, max(decayed, config.min_confidence_floor), transition),
        HysteresisState(stable, output.regime, count, output.timestamp),
    )
