"""Ticks: the row decides which of them fires."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import celeryconfig
from models.kernel.schedules import declare, set_paused
from models.kernel.session import statement
from orchestrator_tasks import schedules
from orchestrator_tasks.schedules import DUTIES, tick
from tests.tasks.owed import change, rows

TICKS = 6


@pytest.fixture(autouse=True)
def declared(database: str) -> None:
    with statement() as connection:
        declare(connection, celeryconfig.SCHEDULES)


def row(name: str = "tallies") -> dict[str, Any]:
    (found,) = rows("SELECT * FROM schedules WHERE name = :name", name=name)
    return found


def test_every_schedule_of_the_beat_has_a_duty() -> None:
    assert celeryconfig.SCHEDULES.keys() == DUTIES.keys()


@pytest.mark.parametrize("name", sorted(DUTIES))
def test_a_due_schedule_fires_and_says_so(name: str) -> None:
    assert tick(name) is True
    assert row(name)["runs"] == 1
    assert row(name)["last_error"] is None
    assert row(name)["last_finished_at"] >= row(name)["last_started_at"]


def test_of_ticks_at_the_same_moment_one_fires(monkeypatch: pytest.MonkeyPatch) -> None:
    fired: list[int] = []
    monkeypatch.setitem(DUTIES, "tallies", lambda: fired.append(1))
    together = threading.Barrier(TICKS)

    def one() -> bool:
        together.wait(20)
        return bool(tick("tallies"))

    with ThreadPoolExecutor(TICKS) as pool:
        answers = [future.result(20) for future in [pool.submit(one) for _ in range(TICKS)]]
    assert sorted(answers) == [False] * (TICKS - 1) + [True]
    assert fired == [1]


def test_a_tick_before_the_time_does_nothing() -> None:
    assert tick("tallies") is True
    assert tick("tallies") is False
    change("UPDATE schedules SET next_at = clock_timestamp()")
    assert tick("tallies") is True
    assert row()["runs"] == 2


def test_due_times_that_were_missed_fire_once_and_are_counted() -> None:
    change("UPDATE schedules SET next_at = clock_timestamp() - 3.5 * make_interval(secs => every_seconds)")
    assert tick("tallies") is True
    assert tick("tallies") is False
    assert (row()["runs"], row()["misses"]) == (1, 3)


def test_a_paused_schedule_does_not_fire() -> None:
    with statement() as connection:
        set_paused(connection, "tallies", True)
    assert tick("tallies") is False
    assert row()["runs"] == 0


def test_a_duty_that_fails_is_recorded_and_the_next_success_clears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("no such luck")

    with monkeypatch.context() as broken:
        broken.setitem(schedules.DUTIES, "tallies", fail)
        assert tick("tallies") is False
    assert row()["last_error"] == "ValueError: no such luck"
    assert row()["last_finished_at"] is not None
    change("UPDATE schedules SET next_at = clock_timestamp()")
    assert tick("tallies") is True
    assert row()["last_error"] is None
