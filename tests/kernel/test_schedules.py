"""Schedules: a due time fires once, whoever ticks and however often."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from models.kernel.schedules import claim, declare, finish, list_schedules, set_paused
from tests.kernel.races import alone, meanwhile, together


@pytest.fixture
def hourly(connection: Connection) -> Connection:
    """One schedule, due since this moment."""
    declare(connection, {"count": 3600.0})
    return connection


def due_since(connection: Connection, seconds: float) -> None:
    connection.execute(text(f"UPDATE schedules SET next_at = clock_timestamp() - interval '{seconds} s'"))


def only(connection: Connection) -> dict[str, object]:
    (row,) = list_schedules(connection)
    return row


def seconds_until_due(connection: Connection) -> float:
    return float(connection.scalar(text("SELECT extract(epoch FROM next_at - clock_timestamp()) FROM schedules")))


def test_a_due_time_fires_once(hourly: Connection) -> None:
    assert claim(hourly, "count")
    assert not claim(hourly, "count")
    row = only(hourly)
    assert (row["runs"], row["misses"]) == (1, 0)
    assert 3590 < seconds_until_due(hourly) <= 3600


def test_of_two_beats_that_claim_one_due_time_one_fires(hourly: Connection) -> None:
    assert meanwhile(lambda c: claim(c, "count"), lambda c: claim(c, "count")) == (True, False)


def test_of_eight_beats_at_once_one_fires(hourly: Connection) -> None:
    assert sum(together(*[lambda c: claim(c, "count")] * 8)) == 1
    assert only(hourly)["runs"] == 1


def test_due_times_missed_at_once_fire_once_and_are_counted(hourly: Connection) -> None:
    due_since(hourly, 3.5 * 3600)
    assert claim(hourly, "count")
    assert not claim(hourly, "count")
    row = only(hourly)
    assert (row["runs"], row["misses"]) == (1, 3)
    assert 1790 < seconds_until_due(hourly) <= 1800


def test_a_schedule_keeps_its_phase(hourly: Connection) -> None:
    due_since(hourly, 10)
    before = only(hourly)["next_at"]
    claim(hourly, "count")
    assert (only(hourly)["next_at"] - before).total_seconds() == 3600  # type: ignore[operator]


def test_a_schedule_that_is_not_due_or_not_known_does_not_fire(hourly: Connection) -> None:
    due_since(hourly, -1)
    assert not claim(hourly, "count")
    assert not claim(hourly, "unknown")


def test_a_paused_schedule_does_not_fire_and_counts_no_misses_when_resumed(hourly: Connection) -> None:
    assert set_paused(hourly, "count", True)
    due_since(hourly, 10 * 3600)
    assert not claim(hourly, "count")
    assert set_paused(hourly, "count", False)
    assert not claim(hourly, "count")
    assert 3590 < seconds_until_due(hourly) <= 3600
    due_since(hourly, 0)
    assert claim(hourly, "count")
    assert only(hourly)["misses"] == 0


def test_an_unknown_schedule_cannot_be_paused(hourly: Connection) -> None:
    assert not set_paused(hourly, "unknown", True)


def test_declaring_again_sets_the_pace_and_keeps_pause_and_due_time(hourly: Connection) -> None:
    set_paused(hourly, "count", True)
    before = only(hourly)
    declare(hourly, {"count": 60.0})
    after = only(hourly)
    assert after["every_seconds"] == 60.0
    assert (after["paused"], after["next_at"]) == (True, before["next_at"])


def test_two_beats_that_start_at_once_declare_once(road: str) -> None:
    together(*[lambda c: declare(c, {"a": 1.0, "b": 2.0})] * 4)
    assert [row["name"] for row in alone(list_schedules)] == ["a", "b"]


def test_how_a_run_ended_can_be_read(hourly: Connection) -> None:
    claim(hourly, "count")
    finish(hourly, "count", "OSError: disk")
    row = only(hourly)
    assert row["last_error"] == "OSError: disk"
    assert row["last_started_at"] <= row["last_finished_at"]  # type: ignore[operator]
    finish(hourly, "count")
    assert only(hourly)["last_error"] is None


def test_a_pace_of_nothing_is_refused(connection: Connection) -> None:
    with pytest.raises(IntegrityError, match="schedules_every_check"):
        declare(connection, {"count": 0.0})
