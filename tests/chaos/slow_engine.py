"""The example engine, which takes its time, so that what is killed is killed in the midst of a run.

It answers the same: a replay asks the example engine itself, and need not wait.
"""

from __future__ import annotations

import threading

from examples.regime_engine import engine
from examples.regime_engine.contracts import (
    HysteresisConfig,
    HysteresisDecision,
    HysteresisStore,
    RegimeInputSnapshot,
    RegimeOutput,
)

TAKES_SECONDS = 0.25
NEVER = threading.Event()


def run(snapshot: RegimeInputSnapshot) -> RegimeOutput:
    NEVER.wait(TAKES_SECONDS)
    return engine.run(snapshot)


def run_with_hysteresis(
    snapshot: RegimeInputSnapshot, state: HysteresisStore, config: HysteresisConfig | None = None
) -> HysteresisDecision:
    NEVER.wait(TAKES_SECONDS)
    return engine.run_with_hysteresis(snapshot, state, config)
