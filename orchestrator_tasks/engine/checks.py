"""What an engine may answer, and how it can fail.

    OrchestratorError
    ├── EngineFailed    engine_failure: it raised, ended, or answered what its contract does not allow
    └── StateNotKept    hysteresis_state_failure: its state cannot be stored, or not be read again

The message of a failure is the run's `error_detail`: one short line, the same in each process
that comes to it, so that a replay fails with the same words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from models.kernel.errors import OrchestratorError

LONGEST_DETAIL = 300
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{4,}")  # of an object in memory: another one in each process
LISTS = ("drivers", "invalidations", "permissions")


class EngineFailed(OrchestratorError):
    """The engine failed, or answered what its contract does not allow."""

    code = "engine_failure"


class StateNotKept(OrchestratorError):
    """The hysteresis state cannot be stored, or cannot be read again."""

    code = "hysteresis_state_failure"


def described(error: BaseException) -> str:
    """`ValueError: what it says`, also of an error that cannot say what it is."""
    try:
        text = str(error)
    except BaseException:  # an engine's own class may do anything
        text = ""
    return detail(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def detail(text: str) -> str:
    """One short line without control characters, halves of surrogate pairs and addresses in memory."""
    line = " ".join(ADDRESS.sub("0x...", text[: 4 * LONGEST_DETAIL]).split())
    line = "".join(mark if mark.isprintable() else "?" for mark in line)
    return line if len(line) <= LONGEST_DETAIL else line[: LONGEST_DETAIL - 3] + "..."


def check_output(output: Any, symbol: str, timestamp: int) -> None:
    """A RegimeOutput for just this input; raises EngineFailed."""
    check_fields(output, "")
    if output["symbol"] != symbol:
        raise refused("symbol", f"is {output['symbol']!r}, not the input's {symbol!r}")
    if output["timestamp"] != timestamp:
        raise refused("timestamp", f"is {output['timestamp']}, not the input's {timestamp}")


def check_decision(decision: Any, symbol: str, timestamp: int) -> None:
    """A HysteresisDecision for this input; the output it selects may be an earlier one. Raises EngineFailed."""
    selected = decision.get("selected_output")
    check_fields(selected, "selected_output.")
    if selected["symbol"] != symbol:
        raise refused("selected_output.symbol", f"is {selected['symbol']!r}, not the input's {symbol!r}")
    if selected["timestamp"] > timestamp:
        raise refused("selected_output.timestamp", f"is {selected['timestamp']}, after the input's {timestamp}")
    check_number(decision.get("effective_confidence"), "effective_confidence")
    check_transition(decision.get("transition"))


def check_fields(output: Any, path: str) -> None:
    if not isinstance(output, Mapping):
        raise refused(path.rstrip(".") or "the answer", "is no object")
    for name in ("symbol", "regime"):
        if not isinstance(output.get(name), str):
            raise refused(path + name, "is no text")
    if type(output.get("timestamp")) is not int:
        raise refused(f"{path}timestamp", "is no whole number")
    check_number(output.get("confidence"), f"{path}confidence")
    for name in LISTS:
        items = output.get(name)
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise refused(path + name, "is no list of texts")


def check_transition(transition: Any) -> None:
    if not isinstance(transition, Mapping):
        raise refused("transition", "is no object")
    for name in ("stable_regime", "candidate_regime"):
        if not isinstance(transition.get(name), str | None):
            raise refused(f"transition.{name}", "is neither a text nor null")
    if type(transition.get("candidate_count")) is not int:
        raise refused("transition.candidate_count", "is no whole number")
    for name in ("transition_active", "flipped", "reset_due_to_gap"):
        if not isinstance(transition.get(name), bool):
            raise refused(f"transition.{name}", "is neither true nor false")


def check_number(value: Any, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise refused(path, "is no finite number")


def refused(path: str, why: str) -> EngineFailed:
    return EngineFailed(detail(f"what the engine answered: {path} {why}"))
