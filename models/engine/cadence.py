"""Which moments runs are planned for. Times are whole milliseconds since 1970, in UTC.

A timer begins with the moment it is started at; boundaries are the multiples of the interval, each with
the same delay. Either then goes on by its interval alone, however late it is looked at.
"""

from __future__ import annotations

from models.engine.config import TIMER, Scheduler


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
