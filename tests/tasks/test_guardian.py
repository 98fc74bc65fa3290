"""The guardian: every stop that is owed is sent until the driver has taken it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from models.tickets.operations import Outcome
from orchestrator_tasks import guardian
from orchestrator_tasks.tickets.drivers.base import DriverFailed
from orchestrator_tasks.tickets.tasks import settle
from tests.service.waiting import eventually
from tests.tasks.owed import Owed, change, rows


class Stopper:
    """A driver that only stops, or refuses to for robots named in `deaf`."""

    obeys_fences = True

    def __init__(self) -> None:
        self.stopped: list[tuple[str, int, str]] = []
        self.deaf: set[str] = set()

    def stop(self, target: str, fence: int, reason: str) -> None:
        if target in self.deaf:
            raise DriverFailed(f"{target} does not hear")
        self.stopped.append((target, fence, reason))


@pytest.fixture
def driver(database: str, monkeypatch: pytest.MonkeyPatch) -> Stopper:
    stopper = Stopper()
    monkeypatch.setattr(guardian, "driver", lambda: stopper)
    return stopper


@pytest.fixture
def guarding(driver: Stopper, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Starts a guardian of the given pace; it is told to end with the test."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        begun: list[Any] = []

        def begin(pace: float) -> None:
            monkeypatch.setattr(guardian, "PACE_SECONDS", pace)
            begun.append(pool.submit(guardian.run, over))

        yield begin
        over.set()
        change("SELECT pg_notify('orchestrator_stops', '')")
        for run in begun:
            run.result(20)


def cancelled_drive(owed: Owed, target: str) -> int:
    """A drive that was cancelled on the way; answers its fence."""
    job = owed("drive", target=target)
    attempt = job.take()
    owed.cancel(job.ticket_id)
    return attempt.fence


def sent() -> int:
    """How many of the stops that are due now were taken."""
    return sum(future.result(20) for future in guardian.give_due_stops(guardian.Crew()))


def orders() -> list[dict[str, Any]]:
    return rows("SELECT *, next_at - ordered_at AS after FROM stop_orders ORDER BY id")


def test_a_cancelled_drive_is_stopped_once_under_a_newer_fence(driver: Stopper, owed: Owed) -> None:
    fence = cancelled_drive(owed, "rover")
    assert sent() == 1
    assert sent() == 0
    ((target, stopped_under, reason),) = driver.stopped
    assert (target, reason) == ("rover", "cancelled")
    assert stopped_under > fence
    assert orders()[0]["done_at"] is not None


def test_what_never_moved_is_owed_no_stop(driver: Stopper, owed: Owed) -> None:
    for command in ("drive", "scan"):
        owed.cancel(owed(command, target=command).ticket_id)
    scanning = owed("scan")
    scanning.take()
    owed.cancel(scanning.ticket_id)
    assert sent() == 0
    assert orders() == []


def test_a_stop_that_was_not_taken_is_sent_again_ever_later_until_it_is(driver: Stopper, owed: Owed) -> None:
    cancelled_drive(owed, "rover")
    driver.deaf = {"rover"}
    waits = []
    for _ in range(3):
        change("UPDATE stop_orders SET next_at = clock_timestamp(), ordered_at = clock_timestamp()")
        assert sent() == 0
        (order,) = orders()
        assert (order["done_at"], order["error"]) == (None, "rover does not hear")
        waits.append(order["after"])
    assert waits == sorted(waits)
    assert waits[2] > 2 * waits[0]
    driver.deaf = set()
    change("UPDATE stop_orders SET next_at = clock_timestamp()")
    assert sent() == 1
    assert orders()[0]["error"] is None


def test_a_stop_that_its_robot_keeps_waiting_is_told_of_once_while_it_hangs(
    driver: Stopper, owed: Owed, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled_drive(owed, "rover")
    let_go = threading.Event()
    monkeypatch.setattr(driver, "stop", lambda *_: let_go.wait(20))
    crew, said = guardian.Crew(), "has not been taken yet"
    (hanging,) = guardian.give_due_stops(crew)
    assert said not in caplog.text
    change("UPDATE stop_orders SET ordered_at = ordered_at - interval '2 s'")
    for _ in range(3):
        assert guardian.give_due_stops(crew) == []
    let_go.set()
    assert hanging.result(20)
    (told,) = [record for record in caplog.records if said in record.message]
    assert (told.levelname, told.__dict__["target"]) == ("WARNING", "rover")


def test_a_robot_that_does_not_hear_holds_no_other_robots_stop_back(driver: Stopper, owed: Owed) -> None:
    driver.deaf = {"deaf"}
    for target in ("deaf", "rover"):
        cancelled_drive(owed, target)
    assert sent() == 1
    assert [target for target, _, _ in driver.stopped] == ["rover"]


def test_a_cancellation_wakes_the_guardian_at_once(
    driver: Stopper, owed: Owed, guarding: Callable[[float], None]
) -> None:
    guarding(60.0)
    listening = "SELECT FROM pg_stat_activity WHERE query ILIKE 'LISTEN%' AND datname = current_database()"
    eventually(lambda: rows(listening), what="the guardian listens")
    cancelled_drive(owed, "rover")
    eventually(lambda: driver.stopped, within=20, what="woken long before its pace")


def test_the_guardian_goes_on_after_the_database_was_away(
    driver: Stopper, owed: Owed, guarding: Callable[[float], None], away: threading.Event, caplog: Any
) -> None:
    cancelled_drive(owed, "rover")
    away.set()
    guarding(0.02)
    eventually(lambda: "a pass of the guardian failed" in caplog.text)
    assert driver.stopped == []
    away.clear()
    eventually(lambda: driver.stopped)


@pytest.mark.usefixtures("dead_broker")
def test_stops_need_no_broker(driver: Stopper, owed: Owed) -> None:
    cancelled_drive(owed, "rover")
    assert sent() == 1


def test_a_driver_with_a_bug_holds_no_other_robots_stop_back(
    driver: Stopper, owed: Owed, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = driver.stop

    def buggy(target: str, fence: int, reason: str) -> None:
        if target == "odd":
            raise ZeroDivisionError
        stop(target, fence, reason)

    monkeypatch.setattr(driver, "stop", buggy)
    for target in ("odd", "rover"):
        cancelled_drive(owed, target)
    assert sent() == 1
    assert [target for target, _, _ in driver.stopped] == ["rover"]


def test_a_stop_ticket_needs_no_worker_and_no_broker(
    owed: Owed, guarding: Callable[[float], None], environment: pytest.MonkeyPatch
) -> None:
    """Every I/O thread may be driving; a stop goes through none of them."""
    environment.setenv("BROKER_URL", "redis://127.0.0.1:1/0")
    guarding(60.0)
    listening = "SELECT FROM pg_stat_activity WHERE query ILIKE 'LISTEN%' AND datname = current_database()"
    eventually(lambda: rows(listening), what="the guardian listens")
    jobs = [owed(command, target="rover") for command in ("stop", "brake")]
    assert rows("SELECT DISTINCT queue FROM jobs") == [{"queue": "stops"}]
    eventually(lambda: all(job.ticket["state"] == "completed" for job in jobs), what="both have stopped the robot")


def test_a_drive_whose_outcome_is_unknown_owes_its_robot_a_stop(driver: Stopper, owed: Owed) -> None:
    attempt = owed("drive", target="rover").take()
    settle(attempt, Outcome("failed", error="nobody knows", error_code="outcome_unknown"))
    assert sent() == 1
    assert [target for target, _, _ in driver.stopped] == ["rover"]


def test_a_drive_that_was_stopped_by_its_worker_owes_none(driver: Stopper, owed: Owed) -> None:
    settle(owed("drive").take(), Outcome("failed", error="timed out", error_code="timeout"))
    assert sent() == 0
