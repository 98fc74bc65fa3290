"""The example engine, which also does what a snapshot's structure levels ask of it: wait, loop, answer nonsense.

What it answers does not depend on how long it waited, so that a replay answers the same.
"""

from __future__ import annotations

import dataclasses
import os
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


def pass_gate(path: str) -> None:
    """Say which process is the host of the one that waits, until the gate's file is gone."""
    gate = Path(path)
    if gate.exists():
        began = gate.with_suffix(".starting")
        began.write_text(str(os.getppid()))
        began.rename(gate.with_suffix(".began"))
    while gate.exists():
        NEVER.wait(0.01)


def obey(snapshot: RegimeInputSnapshot) -> str:
    """What is asked for that the answer shall be, after what has to be done before it."""
    levels = snapshot.market.structure_levels
    asked = levels if isinstance(levels, dict) else {}
    if "gate" in asked:
        pass_gate(asked["gate"])
    while asked.get("loops"):
        pass
    return str(asked.get("answers", ""))


def odd(output: RegimeOutput, answers: str) -> RegimeOutput:
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    nonsense: dict[str, dict[str, Any]] = {
        "nan": {"confidence": float("nan")},
        "object": {"drivers": [object()]},
        "cyclic": {"drivers": cyclic},
    }
    return dataclasses.replace(output, **nonsense.get(answers, {}))


def run(snapshot: RegimeInputSnapshot) -> RegimeOutput:
    answers = obey(snapshot)
    return odd(decide(snapshot), answers)


def run_with_hysteresis(
    snapshot: RegimeInputSnapshot, state: HysteresisStore, config: HysteresisConfig | None = None
) -> HysteresisDecision:
    answers = obey(snapshot)
    decision = decide_with_hysteresis(snapshot, state, config)
    return dataclasses.replace(decision, selected_output=odd(decision.selected_output, answers))
