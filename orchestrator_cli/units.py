"""Moments and durations as a person reads them; the API tells whole milliseconds, and a name's end says of what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SINCE_EPOCH = ("ts_ms", "timestamp_ms", "tick_ms")
MS = {"ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
FEWEST = 10  # of a unit before it is taken, so that rounding to tenths takes little away


def label(name: str) -> str:
    """A field's name without the unit, which its value is shown with: planned_ts_ms is `planned at`."""
    bare = name.replace("_ts_ms", "_at").removesuffix("_ms").removesuffix("_seconds")
    return (bare or name).replace("_", " ")


def readable(name: str, value: Any) -> Any:
    """A field's value, as text when it is a moment or a duration."""
    if isinstance(value, str):
        return utc(value) if name == "at" or name.endswith("_at") else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if name.endswith(SINCE_EPOCH):
        return since_epoch(value)
    if name.endswith("_ms"):
        return duration(value)
    return seconds(value) if name.endswith("_seconds") else value


def utc(text: str) -> str:
    """A time of the API, to the millisecond; what is none stays as it is."""
    try:
        return shown(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return text


def since_epoch(ms: float) -> str:
    """Milliseconds since 1970; those beyond the year 9999 stay a number."""
    try:
        return shown(EPOCH + timedelta(milliseconds=ms))
    except OverflowError:
        return f"{ms} ms since 1970"


def shown(at: datetime) -> str:
    """2026-11-21T12:00:00Z, with milliseconds where there are some."""
    at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    return at.isoformat(timespec="milliseconds" if at.microsecond >= 1000 else "seconds").replace("+00:00", "Z")  # noqa: PLR2004


def seconds(number: float) -> str:
    return f"{number:g} s" if abs(number) < FEWEST else duration(1000 * number)


def duration(ms: float) -> str:
    """In the largest unit of which there are ten: 9999 ms, 12.3 s, 36 h."""
    unit = max((each for each in MS if abs(ms) >= FEWEST * MS[each]), key=MS.__getitem__, default="ms")
    return f"{round(ms / MS[unit], 1):g} {unit}"
