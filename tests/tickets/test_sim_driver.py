"""The driver of the simulated robots: what a result says, interruptions, and a database that goes away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection

from models.kernel.clock import utcnow
from models.kernel.errors import Unavailable
from models.kernel.session import statement, transaction
from models.tickets import contracts, motions, robots
from orchestrator_tasks.tickets.drivers import sim
from orchestrator_tasks.tickets.drivers.base import (
    DriverFailed,
    Interrupt,
    Interrupted,
    OutcomeUnknown,
)
from orchestrator_tasks.tickets.drivers.sim import SimDriver
from tests.tickets.rover import (
    FAST,
    ROBOT,
    Meanwhile,
    all_motions,
    begin,
    drive,
    let_pass,
    look,
    stop,
)

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim, "PAUSES", (0.0, 0.0))


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, the database cannot be reached from the driver."""
    flag = threading.Event()

    def guarded(door: Callable[[], Any]) -> Callable[[], Any]:
        def enter() -> Any:
            if flag.is_set():
                raise Unavailable("The database cannot answer right now")
            return door()

        return enter

    monkeypatch.setattr(sim, "transaction", guarded(transaction))
    monkeypatch.setattr(sim, "statement", guarded(statement))
    return flag


class TestDriving:
    def test_a_drive_says_what_was_ordered_and_what_was_measured(self) -> None:
        params = {"speed": 1.5, "direction": 90, "duration_seconds": 5}
        result = SimDriver(FAST).carry_out(drive(params=params), Interrupt())
        assert {key: result[key] for key in list(result)[:6]} == {
            "command": "drive",
            "executed": True,
            "speed": 1.5,
            "direction": 90,
            "duration_seconds": 5,
            "distance_traveled": 7.5,
        }
        assert result["measured"] == {
            "distance": 7.5,
            "collided": False,
            "pose": {"x": 2.0, "y": 9.5, "heading": 90.0},
        }
        contracts.check("imu.v1", result["sensors"]["imu"])
        contracts.check("ultrasonic.v1", result["sensors"]["ultrasonic"])
        assert result["sensors"]["imu"]["yaw"] == 90

    def test_a_wall_shortens_what_was_measured_and_not_what_was_ordered(self) -> None:
        result = SimDriver(FAST).carry_out(drive(seconds=300), Interrupt())
        assert result["distance_traveled"] == 450
        assert result["measured"]["collided"]
        assert result["measured"]["distance"] == 17.75
        assert result["sensors"]["ultrasonic"]["front"] == 0

    def test_a_drive_of_no_time_ends_at_once(self) -> None:
        result = SimDriver(1.0).carry_out(drive(seconds=0), Interrupt())
        assert result["distance_traveled"] == result["measured"]["distance"] == 0

    def test_no_connection_is_held_while_a_robot_moves(self) -> None:
        held: list[int] = []

        def count() -> None:
            with statement() as connection:
                held.append(connection.engine.pool.checkedout())  # type: ignore[attr-defined]
            let_pass(60)

        SimDriver(1.0).carry_out(drive(), Meanwhile(count))
        assert held == [1]  # the one that counts

    @pytest.mark.parametrize("reason", ["timeout", "cancelled", "lease_lost", "shutdown"])
    def test_an_interrupted_robot_has_stopped_before_the_exception_leaves(self, reason: str) -> None:
        interrupt = Meanwhile()
        interrupt.events.append(lambda: (let_pass(2), interrupt.set(reason)))
        with pytest.raises(Interrupted) as caught:
            SimDriver(1.0).carry_out(drive(seconds=300), interrupt)
        assert caught.value.reason == reason
        assert caught.value.facts["distance"] >= 3.0
        assert not look().moving
        assert all_motions()[0].end_reason == reason

    def test_what_was_interrupted_before_it_began_never_moves(self) -> None:
        interrupt = Interrupt()
        interrupt.set("cancelled")
        with pytest.raises(Interrupted):
            SimDriver(1.0).carry_out(drive(), interrupt)
        assert all_motions() == []

    def test_a_drive_notices_that_another_command_stopped_its_robot(self) -> None:
        interrupt = Meanwhile(lambda: stop(2, "stop"))
        with pytest.raises(Interrupted) as caught:
            SimDriver(1.0).carry_out(drive(seconds=300), interrupt)
        assert caught.value.reason == "stop"
        assert caught.value.message == "The robot was stopped on the way: stop"
        assert interrupt.waits == [sim.LOOK_SECONDS]

    def test_an_interrupt_after_the_end_does_not_undo_a_drive(self) -> None:
        interrupt = Meanwhile()
        interrupt.events.append(lambda: (let_pass(300), interrupt.set("timeout")))
        result = SimDriver(1.0).carry_out(drive(seconds=300), interrupt)
        assert result["distance_traveled"] == 450

    def test_an_unsafe_drive_is_refused_in_the_driver_too(self) -> None:
        with pytest.raises(DriverFailed, match=r"Speed 3\.5 exceeds safety threshold of 3\.0 m/s"):
            SimDriver(1.0).carry_out(drive(params={"speed": 3.5, "duration_seconds": 1}), Interrupt())
        assert all_motions() == []

    @pytest.mark.parametrize(
        ("before", "code"),
        [(lambda: stop(9), "stale_fence"), (lambda: begin(1, seconds=300), "robot_busy")],
    )
    def test_a_refusal_of_the_robot_is_the_failure(self, before: Callable[[], object], code: str) -> None:
        before()
        with pytest.raises(DriverFailed) as caught:
            SimDriver(1.0).carry_out(drive(fence=5), Interrupt())
        assert caught.value.code == code

    def test_a_drive_after_its_last_moment_is_refused(self) -> None:
        with pytest.raises(DriverFailed) as caught:
            SimDriver(1.0).carry_out(drive(not_after=utcnow() - timedelta(seconds=1)), Interrupt())
        assert caught.value.code == "too_late"


class TestTheDatabaseAway:
    def test_a_drive_goes_on_without_the_database_and_ends_well_when_it_is_back(self, away: threading.Event) -> None:
        interrupt = Meanwhile(away.set, lambda: (away.clear(), let_pass(60)))
        result = SimDriver(1.0).carry_out(drive(seconds=5), interrupt)
        assert result["measured"]["distance"] == 7.5

    def test_an_end_that_nobody_can_confirm_is_unknown(self, away: threading.Event) -> None:
        with pytest.raises(OutcomeUnknown, match="may have been stopped"):
            SimDriver(1.0).carry_out(drive(seconds=1), Meanwhile(away.set))

    def test_a_stop_that_cannot_be_confirmed_is_unknown(self, away: threading.Event) -> None:
        interrupt = Meanwhile()
        interrupt.events.append(lambda: (away.set(), interrupt.set("cancelled")))
        with pytest.raises(OutcomeUnknown, match="may still be moving"):
            SimDriver(1.0).carry_out(drive(), interrupt)

    def test_a_begin_that_cannot_be_confirmed_is_unknown(self, away: threading.Event) -> None:
        away.set()
        with pytest.raises(OutcomeUnknown, match="may have begun"):
            SimDriver(1.0).carry_out(drive(), Interrupt())

    def test_a_begin_that_was_lost_moves_nothing_afterwards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def lost(*_args: Any, **_order: Any) -> motions.Motion:
            raise Unavailable("The database cannot answer right now")

        with monkeypatch.context() as patched:
            patched.setattr(robots, "begin_motion", lost)
            with pytest.raises(DriverFailed, match="nothing moved") as caught:
                SimDriver(1.0).carry_out(drive(fence=5), Interrupt())
        assert not isinstance(caught.value, OutcomeUnknown)
        with pytest.raises(robots.StaleFence):
            begin(5)

    def test_a_begin_that_was_committed_unseen_is_stopped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begin_motion = robots.begin_motion

        def unseen(_connection: Connection, *args: Any, **order: Any) -> motions.Motion:
            with transaction() as connection:
                begin_motion(connection, *args, **order)
            raise Unavailable("The database cannot answer right now")

        monkeypatch.setattr(robots, "begin_motion", unseen)
        with pytest.raises(DriverFailed, match="the robot was stopped after"):
            SimDriver(1.0).carry_out(drive(fence=5), Interrupt())
        assert not look().moving
        assert all_motions()[0].end_reason == "unconfirmed"

    def test_a_scan_without_the_database_fails_and_moves_nothing(self, away: threading.Event) -> None:
        away.set()
        with pytest.raises(DriverFailed, match="cannot answer"):
            SimDriver(1.0).carry_out(drive(name="scan", params={}), Interrupt())


class TestTheOtherCommands:
    @pytest.mark.parametrize(("name", "status"), [("stop", "stopped"), ("brake", "braked")])
    def test_a_stop_and_a_brake_halt_the_robot(self, name: str, status: str) -> None:
        begin(1, seconds=300)
        result = SimDriver(1.0).carry_out(drive(fence=2, name=name, params={}), Interrupt())
        sensors = result.pop("sensors")
        assert result == {"command": name, "executed": True, "status": status}
        contracts.check("imu.v1", sensors["imu"])
        contracts.check("ultrasonic.v1", sensors["ultrasonic"])
        assert not look().moving
        assert all_motions()[0].end_reason == name

    def test_a_stop_is_carried_out_even_late_and_interrupted(self) -> None:
        begin(1)
        interrupt = Interrupt()
        interrupt.set("shutdown")
        late = utcnow() - timedelta(hours=1)
        SimDriver(1.0).carry_out(drive(fence=2, name="stop", params={}, not_after=late), interrupt)
        assert not look().moving

    @pytest.mark.parametrize("name", ["stop", "brake"])
    def test_a_stop_that_comes_late_still_stops_what_moves(self, name: str) -> None:
        begin(4, seconds=300)
        assert SimDriver(1.0).carry_out(drive(fence=3, name=name, params={}), Interrupt())["executed"] is True
        assert not look().moving
        assert all_motions()[0].end_reason == name
        with pytest.raises(robots.StaleFence):
            begin(4)

    def test_two_stops_at_once_both_succeed(self) -> None:
        stop(9)
        assert SimDriver(1.0).carry_out(drive(fence=8, name="stop", params={}), Interrupt())["status"] == "stopped"

    def test_the_driver_stops_a_robot_for_whoever_asks(self) -> None:
        begin(1)
        SimDriver(1.0).stop(ROBOT, 2, "cancelled")
        assert all_motions()[0].end_reason == "cancelled"

    def test_a_scan_reads_the_room_around_the_robot(self) -> None:
        result = SimDriver(1.0).carry_out(drive(name="scan", params={}), Interrupt())
        assert (result["command"], result["executed"]) == ("scan", True)
        assert (result["scan_points"], result["obstacles_detected"]) == (360, 3)
        assert len(result["ranges"]) == 36
        ultrasonic = result["sensors"]["ultrasonic"]
        assert result["ranges"][::9] == [ultrasonic[side] for side in ("front", "left", "rear", "right")]
        assert all_motions() == []

    def test_an_unknown_command_fails_as_documented(self) -> None:
        with pytest.raises(DriverFailed) as caught:
            SimDriver(1.0).carry_out(drive(name="fly", params={}), Interrupt())
        assert caught.value.message == "Unknown command: fly"


class TestInterrupt:
    def test_the_first_reason_stays(self) -> None:
        interrupt = Interrupt()
        assert interrupt.wait(0) is None
        interrupt.set("timeout")
        interrupt.set("shutdown")
        assert interrupt.wait(3600) == "timeout"
