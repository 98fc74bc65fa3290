"""When runs are planned: the golden ticks, and what holds of every cadence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.cadence import count_due, engine_timestamp, first_tick, following_tick
from models.engine.config import Scheduler

GOLDEN = json.loads((Path(__file__).parent / "data/golden_scheduler_ticks.json").read_text())

timers = st.builds(Scheduler, mode=st.just("timer"), timer_interval_ms=st.integers(1, 10**7))
boundaries = st.builds(
    Scheduler,
    mode=st.just("boundary"),
    boundary_interval_ms=st.integers(1, 10**7),
    boundary_delay_ms=st.integers(0, 10**7),
)
moments = st.integers(0, 2 * 10**12)


@pytest.mark.parametrize("vector", GOLDEN)
def test_the_golden_ticks_are_ours(vector: dict[str, Any]) -> None:
    schedule = Scheduler(**vector["config"])
    ticks = [first_tick(schedule, vector["now_ms"][0])]
    while len(ticks) < len(vector["ticks"]):
        ticks.append(following_tick(schedule, ticks[-1]))
    assert ticks == vector["ticks"]
    stamps = [engine_timestamp(schedule, tick, 1) for tick in ticks]
    assert stamps == [tick - schedule.delay_ms for tick in ticks]


@given(boundaries, moments)
def test_a_boundary_s_first_tick_is_the_next_one_after_now(schedule: Scheduler, now_ms: int) -> None:
    tick = first_tick(schedule, now_ms)
    assert now_ms < tick <= now_ms + schedule.interval_ms
    assert engine_timestamp(schedule, tick, 1) % schedule.interval_ms == 0


@given(timers, moments)
def test_a_timer_s_first_tick_is_now(schedule: Scheduler, now_ms: int) -> None:
    assert first_tick(schedule, now_ms) == now_ms


@given(timers | boundaries, moments, st.integers(0, 50), st.integers(0, 10**7))
def test_what_is_due_are_the_ticks_whose_millisecond_is_over(
    schedule: Scheduler, begin: int, ticks: int, rest: int
) -> None:
    last = begin + ticks * schedule.interval_ms
    now_ms = last + 1 + rest % schedule.interval_ms
    assert count_due(schedule, begin, now_ms) == ticks + 1
    assert count_due(schedule, begin, last) == ticks
    assert count_due(schedule, begin, begin) == 0


@given(timers, moments, st.integers(1, 10**6))
def test_a_timer_s_timestamp_is_aligned_and_never_after_the_tick(schedule: Scheduler, tick: int, align: int) -> None:
    stamp = engine_timestamp(schedule, tick, align)
    assert stamp % align == 0
    assert tick - align < stamp <= tick


@given(timers | boundaries, moments, st.integers(1, 10**6))
def test_timestamps_never_go_back(schedule: Scheduler, tick: int, align: int) -> None:
    following = following_tick(schedule, tick)
    assert engine_timestamp(schedule, tick, align) <= engine_timestamp(schedule, following, align)
