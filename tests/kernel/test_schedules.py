"""Schedules: a due time fires once, whoever ticks and however often, and none runs beside itself."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from models.kernel.clients import Caller
from models.kernel.errors import Conflict, NotFound
from models.kernel.ledger import list_history
from models.kernel.schedules import (
    LONGEST_ERROR,
    LONGEST_RUN_SECONDS,
    Run,
    claim,
    declare,
    finish,
    get_schedule,
    list_schedules,
    run_now,
    set_paused,
)
from tests.kernel.races import alone, meanwhile, together

COUNT = frozenset({"count"})
ALL = frozenset({"a", "b", "count", "cut"})
ADMIN = Caller("root", "default", frozenset({"admin"}), "asked-1")


@pytest.fixture
def hourly(connection: Connection) -> Connection:
    """One schedule, due since this moment."""
    declare(connection, {"count": 3600.0})
    return connection


def due_since(connection: Connection, seconds: float) -> None:
    connection.execute(text(f"UPDATE schedules SET next_at = clock_timestamp() - interval '{seconds} s'"))


def claimed(connection: Connection) -> Run:
    run = claim(connection, COUNT)
    assert run is not None
    return run


def run_once(connection: Connection, error: str | None = None) -> Run:
    """A run from its claim to its end."""
    due_since(connection, 0)
    run = claimed(connection)
    assert finish(connection, run, error)
    return run


def die(connection: Connection) -> None:
    """Whoever runs it has been silent for longer than a run may take."""
    connection.execute(text("UPDATE schedules SET running_until = clock_timestamp() - interval '1 ms'"))


def only(connection: Connection) -> dict[str, Any]:
    (row,) = list_schedules(connection)
    return row


def seconds_until_due(connection: Connection) -> float:
    return float(connection.scalar(text("SELECT extract(epoch FROM next_at - clock_timestamp()) FROM schedules")))


def topics(connection: Connection) -> list[str]:
    return [row["topic"] for row in list_history(connection, "schedule", "count")]


def test_a_due_time_fires_once(hourly: Connection) -> None:
    run_once(hourly)
    assert claim(hourly, COUNT) is None
    row = only(hourly)
    assert (row["runs"], row["misses"], row["running"]) == (1, 0, False)
    assert 3590 < seconds_until_due(hourly) <= 3600


def test_of_two_beats_that_claim_one_due_time_one_fires(hourly: Connection) -> None:
    first, second = meanwhile(lambda c: claim(c, COUNT), lambda c: claim(c, COUNT))
    assert first is not None
    assert second is None


def test_of_eight_beats_at_once_one_fires(hourly: Connection) -> None:
    runs = together(*[lambda c: claim(c, COUNT)] * 8)
    assert len([run for run in runs if run is not None]) == 1
    assert only(hourly)["runs"] == 1


def test_two_due_schedules_are_claimed_side_by_side_and_the_longer_due_first(connection: Connection) -> None:
    declare(connection, {"a": 60.0, "b": 60.0})
    connection.execute(text("UPDATE schedules SET next_at = next_at - interval '5 s' WHERE name = 'b'"))
    first, second = meanwhile(lambda c: claim(c, ALL), lambda c: claim(c, ALL))
    assert (first.name, second.name) == ("b", "a")


def test_due_times_missed_at_once_fire_once_and_are_counted(hourly: Connection) -> None:
    due_since(hourly, 3.5 * 3600)
    run = claimed(hourly)
    assert run.missed == 3
    finish(hourly, run)
    assert claim(hourly, COUNT) is None
    row = only(hourly)
    assert (row["runs"], row["misses"]) == (1, 3)
    assert 1790 < seconds_until_due(hourly) <= 1800
    (told,) = list_history(hourly, "schedule", "count")
    assert (told["topic"], told["body"]["missed"]) == ("schedule_missed", 3)


def test_a_schedule_keeps_its_phase(hourly: Connection) -> None:
    due_since(hourly, 10)
    before = only(hourly)["next_at"]
    claim(hourly, COUNT)
    assert (only(hourly)["next_at"] - before).total_seconds() == 3600


def test_a_schedule_that_is_not_due_or_whose_duty_is_not_known_does_not_fire(hourly: Connection) -> None:
    assert claim(hourly, {"unknown"}) is None
    assert claim(hourly, set()) is None
    due_since(hourly, -1)
    assert claim(hourly, COUNT) is None


def test_a_schedule_that_still_runs_is_not_claimed_again(hourly: Connection) -> None:
    run = claimed(hourly)
    due_since(hourly, 0)
    assert claim(hourly, COUNT) is None
    assert only(hourly)["running"] is True
    finish(hourly, run)
    assert claimed(hourly).abandoned is False


def test_a_duty_whose_worker_must_be_missed_soon_has_a_shorter_bound(hourly: Connection) -> None:
    assert claim(hourly, COUNT, {"count": 5.0, "another": 1.0}) is not None
    left = hourly.scalar(text("SELECT extract(epoch FROM running_until - clock_timestamp()) FROM schedules"))
    assert 0 < left <= 5


def test_a_schedule_whose_worker_died_is_claimed_again_after_the_bound(hourly: Connection) -> None:
    dead = claimed(hourly)
    left = hourly.scalar(text("SELECT extract(epoch FROM running_until - clock_timestamp()) FROM schedules"))
    assert LONGEST_RUN_SECONDS - 5 < left <= LONGEST_RUN_SECONDS
    die(hourly)
    due_since(hourly, 0)
    second = claimed(hourly)
    assert second.abandoned is True
    assert finish(hourly, dead, "too late") is False
    assert only(hourly)["running"] is True
    assert finish(hourly, second) is True
    row = only(hourly)
    assert (row["runs"], row["last_error"], row["running"]) == (2, None, False)
    assert topics(hourly) == ["schedule_abandoned"]


def test_a_run_that_outlasts_its_bound_unchallenged_still_counts(hourly: Connection) -> None:
    run = claimed(hourly)
    die(hourly)
    assert finish(hourly, run, "slow") is True
    assert only(hourly)["last_error"] == "slow"


def test_a_paused_schedule_does_not_fire_and_counts_no_misses_when_resumed(hourly: Connection) -> None:
    set_paused(hourly, "count", True, ADMIN)
    due_since(hourly, 10 * 3600)
    assert claim(hourly, COUNT) is None
    set_paused(hourly, "count", False, ADMIN)
    assert claim(hourly, COUNT) is None
    assert 3590 < seconds_until_due(hourly) <= 3600
    run_once(hourly)
    assert only(hourly)["misses"] == 0


def test_pausing_and_resuming_twice_changes_and_tells_it_once(hourly: Connection) -> None:
    for paused in (False, True, True, False, False):
        assert set_paused(hourly, "count", paused, ADMIN)["paused"] is paused
        due_since(hourly, -100)
    before = only(hourly)["next_at"]
    assert set_paused(hourly, "count", False, ADMIN)["next_at"] == before
    assert topics(hourly) == ["schedule_paused", "schedule_resumed"]
    (told, _) = list_history(hourly, "schedule", "count")
    assert (told["actor"], told["correlation_id"]) == ("root", "asked-1")


@pytest.mark.parametrize("name", ["unknown", "", "nul\x00", "half \ud800", "x" * 65, "count\n"])
def test_an_unknown_schedule_cannot_be_read_paused_or_run(hourly: Connection, name: str) -> None:
    with pytest.raises(NotFound):
        get_schedule(hourly, name)
    with pytest.raises(NotFound):
        set_paused(hourly, name, True, ADMIN)
    with pytest.raises(NotFound):
        run_now(hourly, name, ADMIN)


def test_a_run_that_is_asked_for_is_due_at_once_and_the_pace_starts_anew(hourly: Connection) -> None:
    run_once(hourly)
    run_now(hourly, "count", ADMIN)
    assert claimed(hourly).missed == 0
    assert 3590 < seconds_until_due(hourly) <= 3600
    assert topics(hourly) == ["schedule_run_requested"]


def test_a_run_that_is_asked_for_hides_no_misses(hourly: Connection) -> None:
    due_since(hourly, 2.5 * 3600)
    run_now(hourly, "count", ADMIN)
    assert claimed(hourly).missed == 2


def test_what_is_paused_or_runs_is_not_run_on_request(hourly: Connection) -> None:
    run = claimed(hourly)
    with pytest.raises(Conflict) as refused:
        run_now(hourly, "count", ADMIN)
    assert refused.value.code == "schedule_running"
    finish(hourly, run)
    set_paused(hourly, "count", True, ADMIN)
    with pytest.raises(Conflict) as refused:
        run_now(hourly, "count", ADMIN)
    assert refused.value.code == "schedule_paused"
    assert topics(hourly) == ["schedule_paused"]


def test_a_request_to_run_that_waited_for_a_claim_is_refused(hourly: Connection) -> None:
    def ask(connection: Connection) -> str:
        try:
            return str(run_now(connection, "count", ADMIN)["name"])
        except Conflict as error:
            return error.code

    assert meanwhile(lambda c: claim(c, COUNT), ask)[1] == "schedule_running"


def test_declaring_again_sets_the_pace_and_keeps_pause_and_due_time(hourly: Connection) -> None:
    set_paused(hourly, "count", True, ADMIN)
    before = only(hourly)
    declare(hourly, {"count": 60.0})
    after = only(hourly)
    assert after["every_seconds"] == 60.0
    assert (after["paused"], after["next_at"]) == (True, before["next_at"])


def test_what_is_declared_no_more_goes_and_what_others_declare_stays(connection: Connection) -> None:
    declare(connection, {"count": 60.0, "old": 60.0})
    declare(connection, {"cut:BTC": 5.0, "cut:ETH": 5.0}, source="engine")
    declare(connection, {"count": 60.0})
    assert [row["name"] for row in list_schedules(connection)] == ["count", "cut:BTC", "cut:ETH"]
    declare(connection, {}, source="engine")
    assert [row["name"] for row in list_schedules(connection)] == ["count"]


def test_one_duty_has_as_many_schedules_as_subjects(connection: Connection) -> None:
    declare(connection, {"cut:BTC": 5.0, "cut:ETH": 5.0}, source="engine")
    runs = [claim(connection, ALL), claim(connection, ALL), claim(connection, ALL)]
    assert sorted(run.name for run in runs if run) == ["cut:BTC", "cut:ETH"]


def test_a_run_of_a_schedule_that_was_removed_ends_without_a_trace(hourly: Connection) -> None:
    run = claimed(hourly)
    declare(hourly, {})
    assert finish(hourly, run) is False


def test_two_beats_that_start_at_once_declare_once(road: str) -> None:
    together(*[lambda c: declare(c, {"a": 1.0, "b": 2.0})] * 4)
    assert [row["name"] for row in alone(list_schedules)] == ["a", "b"]


def test_how_a_run_ended_can_be_read(hourly: Connection) -> None:
    run_once(hourly, "OSError: disk")
    row = only(hourly)
    assert row["last_error"] == "OSError: disk"
    assert row["last_started_at"] <= row["last_finished_at"]
    assert row["last_duration_ms"] == pytest.approx(
        (row["last_finished_at"] - row["last_started_at"]).total_seconds() * 1000, abs=5
    )
    run_once(hourly)
    assert only(hourly)["last_error"] is None


def test_the_ledger_is_told_of_the_first_failure_and_of_the_recovery(hourly: Connection) -> None:
    for error in (None, "OSError: disk", "OSError: disk", None, None):
        run_once(hourly, error)
    assert topics(hourly) == ["schedule_failed", "schedule_recovered"]


def test_an_error_of_any_text_can_be_kept(hourly: Connection) -> None:
    run_once(hourly, "nul \x00, half \ud800, long " + "x" * 10_000)
    assert only(hourly)["last_error"].startswith("nul \\x00, half \\ud800, long xx")
    assert len(only(hourly)["last_error"]) < LONGEST_ERROR + 20


@pytest.mark.parametrize("pace", [0.0, 0.5, -1.0, 1e9, float("nan"), float("inf")])
def test_a_pace_that_no_tick_can_keep_is_refused(connection: Connection, pace: float) -> None:
    with pytest.raises(IntegrityError, match="schedules_every_check"):
        declare(connection, {"count": pace})


def test_a_name_that_no_address_can_hold_is_refused(connection: Connection) -> None:
    with pytest.raises(IntegrityError, match="schedules_name_check"):
        declare(connection, {"with space": 5.0})
