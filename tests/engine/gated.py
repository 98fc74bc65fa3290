"""An engine that says when it begins and does not answer while its gate is shut: a file that the snapshot names."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from examples.regime_engine.contracts import (
    HysteresisConfig,
    HysteresisDecision,
    HysteresisStore,
    RegimeInputSnapshot,
    RegimeOutput,
)
from examples.regime_engine.engine import run as decide
from examples.regime_engine.engine import run_with_hysteresis as decide_with_hysteresis

NEVER = threading.Event()


def pass_gate(levels: Any) -> None:
    gate = Path(levels["gate"])
    with gate.with_suffix(".began").open("a") as began:
        began.write("x")
    while gate.exists():
        NEVER.wait(0.01)


def run(snapshot: RegimeInputSnapshot) -> RegimeOutput:
    pass_gate(snapshot.market.structure_levels)
    return decide(snapshot)


def run_with_hysteresis(
    snapshot: RegimeInputSnapshot, state: HysteresisStore, config: HysteresisConfig | None = None
) -> HysteresisDecision:
    pass_gate(snapshot.market.structure_levels)
    return decide_with_hysteresis(snapshot, state, config)
