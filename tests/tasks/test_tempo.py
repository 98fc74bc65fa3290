"""How many jobs are on their way and share a message, over a clock that the test moves."""

from __future__ import annotations

import pytest

from orchestrator_tasks.tempo import MESSAGES, MOST_WINDOWS, PERIOD_SECONDS, WORTH_SECONDS, Tempo
from tests.tasks.conftest import Clock

WINDOW = 24


@pytest.fixture
def tempo(time: Clock) -> Tempo:
    return Tempo(most=32)


def drain(tempo: Tempo, time: Clock, per_second: float) -> tuple[int, int]:
    """The plan after a period at this rate."""
    tempo.note(int(per_second * PERIOD_SECONDS))
    time.now += PERIOD_SECONDS
    return tempo.plan(WINDOW)


def test_at_first_the_window_is_full_of_single_jobs(tempo: Tempo) -> None:
    assert tempo.plan(WINDOW) == (WINDOW, 1)


def test_a_fast_queue_has_its_worth_of_time_on_the_way_in_a_few_messages(tempo: Tempo, time: Clock) -> None:
    worth = int(600 * WORTH_SECONDS)
    assert drain(tempo, time, per_second=600) == (worth, worth // MESSAGES)


@pytest.mark.parametrize("per_second", [0, 1, 20, 39])
def test_what_drains_slowly_goes_one_by_one(tempo: Tempo, time: Clock, per_second: float) -> None:
    assert drain(tempo, time, per_second) == (WINDOW, 1)


def test_what_is_on_its_way_has_a_bound_and_so_has_a_message(tempo: Tempo, time: Clock) -> None:
    assert drain(tempo, time, per_second=1_000_000) == (MOST_WINDOWS * WINDOW, 32)


def test_a_kind_that_goes_one_by_one_never_has_more_than_its_window(time: Clock) -> None:
    assert drain(Tempo(most=1), time, per_second=1000) == (WINDOW, 1)


def test_a_queue_that_becomes_slow_goes_back_to_one_within_a_period(tempo: Tempo, time: Clock) -> None:
    assert drain(tempo, time, per_second=1000)[1] > 1
    assert drain(tempo, time, per_second=20) == (WINDOW, 1)


def test_an_idle_hour_is_no_rate(tempo: Tempo, time: Clock) -> None:
    tempo.note(1000)
    time.now += 3600
    assert tempo.plan(WINDOW) == (WINDOW, 1)
