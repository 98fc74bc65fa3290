"""How many jobs a message carries, over a clock that the test moves."""

from __future__ import annotations

import pytest

from orchestrator_tasks.tempo import PERIOD_SECONDS, WORTH_SECONDS, Tempo
from tests.tasks.conftest import Clock

WINDOW = 24


@pytest.fixture
def tempo(time: Clock) -> Tempo:
    return Tempo(most=32)


def drain(tempo: Tempo, time: Clock, per_second: float, periods: int = 1) -> int:
    """Jobs a message after so many periods at this rate."""
    for _ in range(periods):
        tempo.note(int(per_second * PERIOD_SECONDS))
        time.now += PERIOD_SECONDS
        answer = tempo.jobs_per_message(WINDOW)
    return answer


def test_at_first_a_message_carries_one_job(tempo: Tempo) -> None:
    assert tempo.jobs_per_message(WINDOW) == 1


def test_a_window_of_messages_is_worth_half_a_second(tempo: Tempo, time: Clock) -> None:
    assert drain(tempo, time, per_second=1000) == int(1000 * WORTH_SECONDS / WINDOW) == 20


@pytest.mark.parametrize("per_second", [0, 1, 40, 90])
def test_what_drains_slowly_goes_one_by_one(tempo: Tempo, time: Clock, per_second: float) -> None:
    assert drain(tempo, time, per_second) == 1


def test_a_message_has_a_bound(tempo: Tempo, time: Clock) -> None:
    assert drain(tempo, time, per_second=1_000_000) == 32


def test_a_queue_that_becomes_slow_goes_back_to_one_within_a_period(tempo: Tempo, time: Clock) -> None:
    assert drain(tempo, time, per_second=1000) > 1
    assert drain(tempo, time, per_second=20) == 1


def test_an_idle_hour_is_no_rate(tempo: Tempo, time: Clock) -> None:
    tempo.note(1000)
    time.now += 3600
    assert tempo.jobs_per_message(WINDOW) == 1
