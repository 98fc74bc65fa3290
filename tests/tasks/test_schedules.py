"""Ticks: the rows decide what each of them runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

import celeryconfig
from models.kernel.clients import Caller
from models.kernel.schedules import declare, set_paused
from models.kernel.session import statement
from orchestrator_tasks import schedules
from orchestrator_tasks.engine import planner
from orchestrator_tasks.schedules import DUTIES, tick
from tests.tasks.owed import change, rows

TICKS = 6
HOUR = 3600.0
ADMIN = Caller("root", "default", frozenset({"admin"}), "asked-1")


@pytest.fixture(autouse=True)
def declared(database: str) -> None:
    """Once an hour each, so that none becomes due again while a test runs, however slow the machine."""
    with statement() as connection:
        declare(connection, dict.fromkeys(celeryconfig.SCHEDULES, HOUR))


@pytest.fixture
def fired(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The duties that were done; they do nothing else."""
    done: list[str] = []
    for name in DUTIES:
        monkeypatch.setitem(DUTIES, name, lambda name=name: done.append(name))
    return done  # type: ignore[return-value]


def row(name: str = "tallies") -> dict[str, Any]:
    (found,) = rows("SELECT * FROM schedules WHERE name = :name", name=name)
    return found


def make_due(name: str = "tallies") -> None:
    change("UPDATE schedules SET next_at = clock_timestamp() WHERE name = :name", name=name)


def test_every_schedule_of_the_beat_has_a_duty() -> None:
    assert celeryconfig.SCHEDULES.keys() <= DUTIES.keys()


def test_a_tick_runs_all_that_is_due_and_says_so() -> None:
    assert tick() == len(celeryconfig.SCHEDULES)
    for name in celeryconfig.SCHEDULES:
        assert row(name)["runs"] == 1
        assert row(name)["last_error"] is None
        assert row(name)["last_finished_at"] >= row(name)["last_started_at"]
        assert row(name)["running_until"] is None


def test_a_planner_that_died_is_followed_by_another_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Died(BaseException):
        pass

    def die() -> None:
        raise Died

    monkeypatch.setitem(DUTIES, "engine", die)
    with pytest.raises(Died):
        tick()
    assert row("engine")["running_until"] - row("engine")["last_started_at"] < timedelta(seconds=11)
    assert schedules.BOUNDS["engine"] > planner.LONGEST_SECONDS


def test_of_ticks_at_the_same_moment_each_schedule_fires_in_one(fired: list[str]) -> None:
    together = threading.Barrier(TICKS)

    def one() -> int:
        together.wait(20)
        return int(tick())

    with ThreadPoolExecutor(TICKS) as pool:
        answers = [future.result(20) for future in [pool.submit(one) for _ in range(TICKS)]]
    assert sum(answers) == len(celeryconfig.SCHEDULES)
    assert sorted(fired) == sorted(celeryconfig.SCHEDULES)


def test_a_tick_before_the_time_does_nothing(fired: list[str]) -> None:
    tick()
    assert tick() == 0
    make_due()
    assert tick() == 1
    assert row()["runs"] == 2
    assert fired.count("tallies") == 2


def test_a_slow_duty_holds_up_no_other_and_does_not_run_beside_itself(
    fired: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        assert go_on.wait(20)
        fired.append("slow")

    monkeypatch.setitem(DUTIES, "tallies", slow)
    change("UPDATE schedules SET next_at = next_at - interval '1 s' WHERE name = 'tallies'")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(tick)
        assert began.wait(20)
        make_due()
        tick()
        assert sorted(fired) == sorted(celeryconfig.SCHEDULES.keys() - {"tallies"})
        go_on.set()
        first.result(20)
    assert fired.count("slow") == 2  # the due time that came meanwhile follows at once


def test_due_times_that_were_missed_fire_once_and_are_counted(fired: list[str]) -> None:
    change("UPDATE schedules SET next_at = clock_timestamp() - 3.5 * make_interval(secs => every_seconds)")
    tick()
    assert tick() == 0
    assert (row()["runs"], row()["misses"]) == (1, 3)


def test_a_paused_schedule_does_not_fire(fired: list[str]) -> None:
    with statement() as connection:
        set_paused(connection, "tallies", True, ADMIN)
    tick()
    assert "tallies" not in fired
    assert row()["runs"] == 0


def test_a_duty_that_fails_is_recorded_goes_on_and_holds_up_no_other(
    fired: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ValueError("no such luck \x00")

    with monkeypatch.context() as broken:
        broken.setitem(schedules.DUTIES, "tallies", fail)
        assert tick() == len(celeryconfig.SCHEDULES)
        assert row()["last_error"] == "ValueError: no such luck \\x00"
        assert row()["last_finished_at"] is not None
        assert len(fired) == len(celeryconfig.SCHEDULES) - 1
    make_due()
    assert tick() == 1
    assert row()["last_error"] is None


def test_the_duty_of_a_schedule_with_a_subject_is_told_the_subject(
    fired: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DUTIES, "cut", fired.append)
    with statement() as connection:
        declare(connection, {"cut:BTC:1m": 60.0, "cut:ETH": 60.0}, source="engine")
    tick()
    assert {"BTC:1m", "ETH"} <= set(fired)


def test_a_schedule_that_this_worker_has_no_duty_for_is_left_to_others(fired: list[str]) -> None:
    with statement() as connection:
        declare(connection, {"newer": 60.0}, source="newer")
    tick()
    assert row("newer")["runs"] == 0


def test_a_chore_that_fails_keeps_no_other_from_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def fail(_connection: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(schedules, "CHORES", [fail, lambda _connection: done.append("second")])
    tick()
    assert done == ["second"]
    assert row("housekeeping")["last_error"] == "RuntimeError: fail: full"


def test_a_tick_without_a_database_does_nothing_and_fails_nothing(away: threading.Event, fired: list[str]) -> None:
    away.set()
    assert tick() == 0
    away.clear()
    assert tick() == len(celeryconfig.SCHEDULES)


def test_a_database_that_goes_during_a_duty_leaves_the_run_to_its_bound(
    away: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.kernel import session
    from models.kernel.errors import Unavailable

    def gone() -> object:
        raise Unavailable("The database cannot answer right now")

    with monkeypatch.context() as broken:
        broken.setattr(session, "engine", gone)
        tick()
    assert row()["running_until"] is not None
    make_due()
    assert tick() == 0
    change("UPDATE schedules SET running_until = clock_timestamp()")
    assert tick() >= 1
    topics = rows("SELECT topic FROM ledger WHERE subject_kind = 'schedule' AND subject_id = 'tallies'")
    assert topics == [{"topic": "schedule_abandoned"}]
