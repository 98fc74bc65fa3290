"""The limits that every command is held to, at execution and again in the driver call.

Pure: `refusal` looks at one command and its parameters and says why it must not be
carried out, in the documented words. Only the first reason is given, in a fixed
order: what is missing, then the speed, the duration, the direction, then any other
parameter named `speed`, at whatever depth it hides, then the command itself. What
ends motion is never refused: only its parameters are left behind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

MAX_SAFE_SPEED_MS: Final = 3.0
"""The fastest that anything may be told to move, in m/s."""

MAX_DURATION_SECONDS: Final = 300
"""The longest that one drive may last, in seconds."""

MAX_DIRECTION_DEGREES: Final = 360
"""Directions lie in [0, 360), in degrees."""

COMMANDS: Final = frozenset({"drive", "stop", "brake", "scan"})
STOPPING: Final = frozenset({"stop", "brake"})
"""Commands that end motion: no lane, queue or latch may hold them back."""

REQUIRED_TO_DRIVE: Final = ("speed", "duration_seconds")
LONGEST_EXACT_BITS: Final = 128


def refusal(command: str, params: Mapping[str, Any]) -> str | None:
    """Why this command must not be carried out, or None when it keeps every limit."""
    if command == "drive":
        reason = drive_refusal(params)
        if reason:
            return reason
    if command in STOPPING:
        return None
    return nested_refusal(params) or (None if command in COMMANDS else f"Unknown command: {command}")


def safe_params(command: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """What goes to the robot with a command: a stop's own parameters only where they keep every limit."""
    return {} if command in STOPPING and nested_refusal(params) else params


def nested_refusal(params: Mapping[str, Any]) -> str | None:
    """What is wrong with the first speed that is, at whatever depth."""
    return next(filter(None, map(speed_refusal, speeds(params))), None)


def drive_refusal(params: Mapping[str, Any]) -> str | None:
    for name in REQUIRED_TO_DRIVE:
        if name not in params:
            return f"Missing required parameter: {name}"
    return (
        speed_refusal(params["speed"])
        or duration_refusal(params["duration_seconds"])
        or direction_refusal(params.get("direction", 0))
    )


def speed_refusal(value: Any) -> str | None:
    if not is_numeric(value):
        return f"Speed must be numeric, got {kind(value)}"
    if value > MAX_SAFE_SPEED_MS:
        return f"Speed {shown(value)} exceeds safety threshold of {MAX_SAFE_SPEED_MS} m/s"
    if value < 0:
        return f"Speed must be non-negative, got {shown(value)}"
    return None


def duration_refusal(value: Any) -> str | None:
    if not is_numeric(value):
        return f"Duration must be numeric, got {kind(value)}"
    if value > MAX_DURATION_SECONDS:
        return f"Duration {shown(value)}s exceeds maximum of {MAX_DURATION_SECONDS}s"
    if value < 0:
        return f"Duration must be non-negative, got {shown(value)}"
    return None


def direction_refusal(value: Any) -> str | None:
    if not is_numeric(value):
        return f"Direction must be numeric, got {kind(value)}"
    if not 0 <= value < MAX_DIRECTION_DEGREES:
        return f"Direction {shown(value)} must be in range [0, {MAX_DIRECTION_DEGREES})"
    return None


def speeds(params: Mapping[str, Any]) -> Iterator[Any]:
    """Every value called `speed`, nested ones too: a bus is sent the parameters whole."""
    waiting: list[Any] = [params]  # a stack of our own: deep nesting must not exhaust Python's
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping):
            if "speed" in node:
                yield node["speed"]
            waiting.extend(node.values())
        elif isinstance(node, list | tuple):
            waiting.extend(node)


def is_numeric(value: Any) -> bool:
    """A finite number. True and False are answers, not numbers."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def kind(value: Any) -> str:
    """The type's name; for NaN and the infinities, whose type is no news, their own."""
    return str(value) if isinstance(value, float) else type(value).__name__


def shown(value: float) -> str:
    """The number as it was given. A huge integer is rounded: str() refuses very long ones."""
    if isinstance(value, int) and value.bit_length() > LONGEST_EXACT_BITS:
        sign = "-" if value < 0 else ""
        return f"about {sign}1e{int(value.bit_length() * math.log10(2))}"
    return str(value)
