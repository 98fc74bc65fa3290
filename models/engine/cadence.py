"""Which moments runs are planned for. Times are whole milliseconds since 1970, in UTC.

A timer begins with the moment it is started at; boundaries are the multiples of the interval, each with
the same delay. Either then goes on by its interval alone, however late it is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.engine.config import BOUNDARY, TIMER, Scheduler


def first_tick(schedule: Scheduler, now_ms: int) -> int:
    """The tick that a cadence begins with."""
    if schedule.mode == TIMER:
        return now_ms
    interval, delay = schedule.interval_ms, schedule.delay_ms
    return ((now_ms - delay) // interval + 1) * interval + delay


def following_tick(schedule: Scheduler, tick_ms: int) -> int:
    return tick_ms + schedule.interval_ms


def count_due(schedule: Scheduler, next_tick_ms: int, now_ms: int) -> int:
    """How many ticks lie before now: the present millisecond is not over, and records may still come in it."""
    return max(0, (now_ms - 1 - next_tick_ms) // schedule.interval_ms + 1)


def engine_timestamp(schedule: Scheduler, tick_ms: int, alignment_ms: int) -> int:
    """The timestamp that the engine is given: of a boundary, without its delay; of a timer, aligned downwards."""
    if schedule.mode == TIMER:
        return tick_ms // alignment_ms * alignment_ms
    return tick_ms - schedule.delay_ms


def planned_time(config: Mapping[str, Any], run: Mapping[str, Any], last_ts_ms: int) -> int | None:
    """What a run was planned for, as its timestamp and the time of its cut's last record have it.

    That is the recorded time where it fits both, else the nearest that does; None where the configuration, which may
    have been written by hand, does not say how it is planned.
    """
    bounds = bounds_of(config, run["engine_timestamp_ms"])
    if bounds is None:
        return None
    planned = run.get("planned_ts_ms")
    return max(min(planned, bounds[1]) if type(planned) is int else bounds[0], bounds[0], last_ts_ms)


def bounds_of(config: Mapping[str, Any], timestamp_ms: int) -> tuple[int, int] | None:
    """The first and the last tick that have this timestamp."""
    schedule, engine = config.get("scheduler"), config.get("engine")
    if not isinstance(schedule, Mapping) or not isinstance(engine, Mapping):
        return None
    delay, alignment = schedule.get("boundary_delay_ms"), engine.get("alignment_ms")
    if schedule.get("mode") == BOUNDARY and type(delay) is int:
        return timestamp_ms + delay, timestamp_ms + delay
    if schedule.get("mode") == TIMER and type(alignment) is int:
        return timestamp_ms, timestamp_ms + alignment - 1
    return None
