"""The e-stop in the worker and the guardian: the last look before the driver, sweeps, stops that are repeated."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from models.kernel.clients import Caller
from models.kernel.jobs import Held
from models.kernel.session import statement
from models.kernel.settings import settings
from models.tickets import estop
from orchestrator_tasks import guardian, hints
from orchestrator_tasks.keeper import Keeper
from orchestrator_tasks.tickets import tasks
from orchestrator_tasks.tickets.drivers.base import Command, Interrupt
from orchestrator_tasks.tickets.tasks import give_back, perform
from tests.service.waiting import eventually
from tests.tasks.owed import Job, Owed, change, rows, run_out


class Deaf:
    """A driver whose robots know no fences: it keeps what it was told."""

    obeys_fences = False

    def __init__(self) -> None:
        self.driven: list[str] = []
        self.stopped: list[tuple[str, str]] = []

    def carry_out(self, command: Command, interrupt: Interrupt) -> dict[str, Any]:
        self.driven.append(command.ticket_id)
        return {"executed": True}

    def stop(self, target: str, fence: int, reason: str) -> None:
        self.stopped.append((target, reason))


@pytest.fixture
def driver(database: str, monkeypatch: pytest.MonkeyPatch) -> Deaf:
    deaf = Deaf()
    for module in (guardian, tasks):
        monkeypatch.setattr(module, "driver", lambda: deaf)
    monkeypatch.setattr(hints, "send", lambda *_: None)
    monkeypatch.setattr(tasks, "keeper", Keeper())
    return deaf


@pytest.fixture
def engage(writer: Caller) -> Callable[..., None]:
    def act(scope: str = "all") -> None:
        with statement() as connection:
            estop.engage_estop(connection, scope, "smoke", writer)

    return act


@pytest.fixture
def release(writer: Caller) -> Callable[[], bool]:
    def act() -> bool:
        with statement() as connection:
            return estop.release_estop(connection, "all", "clear", writer)[0]

    return act


def execute(job: Job) -> str:
    return perform(job.id, job.ticket_id, None)


def order() -> dict[str, Any]:
    (only,) = rows("SELECT * FROM stop_orders")
    return only


def pass_by() -> None:
    """One pass of the guardian over the stops, as if their time had come."""
    change("UPDATE stop_orders SET next_at = clock_timestamp() WHERE done_at IS NULL")
    for future in guardian.give_due_stops(guardian.Crew()):
        future.result(20)


class TestTheWorker:
    @pytest.mark.parametrize("command", ["drive", "scan"])
    def test_what_it_took_as_an_estop_was_engaged_never_reaches_the_driver(
        self, driver: Deaf, owed: Owed, engage: Any, command: str
    ) -> None:
        job = owed(command)
        engage()
        assert execute(job) == "failed"
        assert driver.driven == []
        assert (job.ticket["error_code"], job.ticket["error"]) == (
            "emergency_stop",
            "Emergency stop of everything: smoke",
        )
        assert rows("SELECT code FROM dead_letters") == [{"code": "emergency_stop"}]

    def test_what_was_accepted_before_a_release_never_reaches_the_driver(
        self, driver: Deaf, owed: Owed, engage: Any, release: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its acceptance may have committed too late for any sweep to see."""
        job = owed("drive")
        monkeypatch.setattr(estop, "list_latched_tickets", lambda *_, **__: [])
        monkeypatch.setattr(estop, "count_latched_tickets", lambda *_, **__: 0)
        engage()
        assert release()
        assert execute(job) == "failed"
        assert driver.driven == []
        later = owed("drive")
        assert execute(later) == "completed"

    def test_it_carries_out_what_a_stop_over_another_robot_leaves_alone(
        self, driver: Deaf, owed: Owed, engage: Any
    ) -> None:
        engage("another")
        assert execute(owed("drive")) == "completed"

    @pytest.mark.parametrize("command", ["stop", "brake"])
    def test_a_stop_and_a_brake_reach_the_driver(self, driver: Deaf, owed: Owed, engage: Any, command: str) -> None:
        engage()
        job = owed(command)
        assert execute(job) == "completed"
        assert driver.driven == [job.ticket_id]

    @pytest.mark.parametrize("command", ["stop", "brake"])
    def test_a_stop_with_a_speed_that_is_too_high_reaches_the_driver_too(
        self, driver: Deaf, owed: Owed, command: str
    ) -> None:
        moving = owed("drive")
        moving.take()
        job = owed(command, {"speed": 5})
        assert execute(job) == "completed"
        assert driver.driven == [job.ticket_id]
        assert moving.ticket["error_code"] == command


class TestTheGuardian:
    def test_it_sweeps_for_whoever_engaged_and_died(self, driver: Deaf, owed: Owed, engage: Any) -> None:
        moving, queued = owed("drive", target="a"), owed("drive", target="b")
        moving.take()
        engage()
        guardian.sweep()
        assert [job.ticket["error_code"] for job in (moving, queued)] == ["emergency_stop"] * 2
        pass_by()
        assert driver.stopped == [("a", "emergency_stop")]

    def test_it_does_so_by_itself_and_needs_no_broker(
        self, driver: Deaf, owed: Owed, engage: Any, dead_broker: None
    ) -> None:
        job = owed("drive", target="a")
        job.take()
        over = threading.Event()
        guarding = threading.Thread(target=guardian.run, args=(over,))
        guarding.start()
        try:
            engage()
            eventually(lambda: driver.stopped, what="the robot is stopped")
        finally:
            over.set()
            change("SELECT pg_notify('orchestrator_stops', '')")
            guarding.join(20)
        assert job.ticket["error_code"] == "emergency_stop"

    def test_a_database_that_is_away_fails_one_sweep_only(
        self, driver: Deaf, owed: Owed, engage: Any, away: threading.Event
    ) -> None:
        job = owed("drive")
        engage()
        away.set()
        guardian.sweep()
        away.clear()
        guardian.sweep()
        assert job.ticket["state"] == "failed"


class TestRepeatedStops:
    """To robots that know no fences: a command that was revoked may still be on its way to them."""

    @pytest.fixture
    def revoked(self, driver: Deaf, owed: Owed, engage: Any) -> Any:
        """An attempt that an e-stop ended on its way."""
        attempt = owed("drive", target="a").take()
        engage()
        guardian.sweep()
        return attempt

    def test_a_stop_is_repeated_until_the_worker_has_let_go_and_then_once_more(
        self, driver: Deaf, revoked: Any
    ) -> None:
        for _ in range(3):
            pass_by()
        assert (len(driver.stopped), order()["done_at"]) == (3, None)
        assert tasks.settle(revoked, tasks.Outcome("completed", result={})) == "lease lost"
        assert order()["settled_at"] is not None
        pass_by()
        assert order()["done_at"] is not None
        pass_by()
        assert len(driver.stopped) == 4

    def test_a_stop_that_was_on_its_way_as_the_worker_let_go_is_not_the_last(
        self, driver: Deaf, revoked: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop = driver.stop

        def stop_and_settle(*order: Any) -> None:
            stop(*order)
            tasks.settle(revoked, tasks.Outcome("completed", result={}))

        monkeypatch.setattr(driver, "stop", stop_and_settle)
        pass_by()
        assert order()["done_at"] is None
        monkeypatch.setattr(driver, "stop", stop)
        pass_by()
        assert (order()["done_at"] is not None, len(driver.stopped)) == (True, 2)

    def test_a_worker_that_gives_its_attempt_back_has_let_go(self, driver: Deaf, revoked: Any) -> None:
        give_back(revoked)
        pass_by()
        assert order()["done_at"] is not None

    def test_when_the_worker_is_never_heard_of_again_the_end_of_its_lease_decides(
        self, driver: Deaf, revoked: Any
    ) -> None:
        pass_by()
        (bound,) = rows("SELECT extract(epoch FROM not_after - ordered_at)::float8 AS seconds FROM stop_orders")
        assert bound["seconds"] <= settings().lease_seconds
        change("UPDATE stop_orders SET not_after = clock_timestamp() - interval '1 minute'")
        pass_by()
        assert (order()["done_at"] is not None, len(driver.stopped)) == (True, 2)

    def test_a_request_that_was_begun_as_the_lease_ended_is_outlasted(
        self, driver: Deaf, revoked: Any, set_to: Any
    ) -> None:
        set_to(actuator_timeout=60)
        change("UPDATE stop_orders SET not_after = clock_timestamp()")
        pass_by()
        assert order()["done_at"] is None
        set_to(actuator_timeout=0.05)
        change("UPDATE stop_orders SET not_after = clock_timestamp() - interval '1 s'")
        pass_by()
        assert order()["done_at"] is not None

    def test_what_a_dead_worker_left_is_stopped_no_longer_than_a_request_takes_after_its_lease(
        self, driver: Deaf, owed: Owed
    ) -> None:
        attempt = owed("drive", target="a", timeout_seconds=300).take()
        run_out(attempt)
        with statement() as connection:
            tasks.operations.lose_tickets(connection, [Held(attempt.job_id, attempt.ticket_id, attempt.fence, 1, 1)])
        assert order()["not_after"] < order()["ordered_at"]
        change("UPDATE stop_orders SET not_after = not_after - interval '3 s'")
        pass_by()
        assert (order()["done_at"] is not None, len(driver.stopped)) == (True, 1)

    def test_the_next_is_due_one_pace_later(self, driver: Deaf, revoked: Any, set_to: Any) -> None:
        set_to(estop_repeat_seconds=0.05)
        pass_by()
        pause = rows("SELECT extract(epoch FROM next_at - clock_timestamp())::float8 AS left FROM stop_orders")
        assert 0 < pause[0]["left"] <= 0.05
        assert guardian.pace(guardian.Crew()) == 0.05

    def test_a_robot_that_obeys_fences_is_stopped_once(
        self, driver: Deaf, revoked: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "obeys_fences", True)
        pass_by()
        pass_by()
        assert (order()["done_at"] is not None, len(driver.stopped)) == (True, 1)

    def test_a_late_report_of_an_earlier_execution_ends_no_repetition(
        self, driver: Deaf, revoked: Any, owed: Owed, release: Any, engage: Any
    ) -> None:
        ticket_id = revoked.ticket_id
        change("UPDATE stop_orders SET done_at = clock_timestamp()")
        release()
        with statement() as connection:
            tasks.operations.accept_execution(
                connection, ticket_id, expires_in_seconds=60, force=True, caller=owed.caller
            )
        Job(rows("SELECT id FROM jobs")[0]["id"], ticket_id).take()
        engage()
        guardian.sweep()
        tasks.settle(revoked, tasks.Outcome("completed", result={}))
        assert rows("SELECT settled_at FROM stop_orders WHERE done_at IS NULL") == [{"settled_at": None}]


def test_what_a_stop_ticket_ended_is_stopped_again_where_robots_know_no_fences(driver: Deaf, owed: Owed) -> None:
    """Its worker may have been about to send its drive as the stop arrived."""
    moving = owed("drive", target="a")
    attempt = moving.take()
    assert execute(owed("stop", target="a")) == "completed"
    assert moving.ticket["state"] == "failed"
    pass_by()
    assert driver.stopped == [("a", "stop")]
    tasks.settle(attempt, tasks.Outcome("completed", result={}))
    pass_by()
    assert order()["done_at"] is not None
