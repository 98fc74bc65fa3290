"""The simulated robots on a real database: fences, clocks, races, and what a result says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import IntegrityError

from models.kernel.clock import monotonic, utcnow
from models.kernel.errors import NotFound, Unavailable
from models.kernel.session import statement, transaction
from models.tickets import contracts, motions, robots
from models.tickets.room import START
from orchestrator_tasks.tickets.drivers import sim
from orchestrator_tasks.tickets.drivers.base import (
    Command,
    DriverFailed,
    Interrupt,
    Interrupted,
    OutcomeUnknown,
)
from orchestrator_tasks.tickets.drivers.sim import SimDriver

pytestmark = pytest.mark.usefixtures("database")

ROBOT = "rover"
FAST = 1000.0  # simulated seconds in a real one


def soon() -> datetime:
    return utcnow() + timedelta(seconds=60)


def begin(fence: int = 1, target: str = ROBOT, **changed: Any) -> motions.Motion:
    order: dict[str, Any] = {"speed": 1.0, "direction": 0, "seconds": 10, "time_scale": 1.0, "not_after": soon()}
    with transaction() as connection:
        return robots.begin_motion(connection, target, fence, f"ticket-{fence}", **order | changed)


def stop(fence: int, reason: str = "stop") -> motions.Robot | None:
    with transaction() as connection:
        return robots.stop_motion(connection, ROBOT, fence, reason)


def finish(fence: int) -> motions.Motion:
    with transaction() as connection:
        return robots.finish_motion(connection, ROBOT, fence)


def look() -> motions.Robot:
    with statement() as connection:
        return motions.get_robot(connection, ROBOT)


def all_motions() -> list[motions.Motion]:
    with statement() as connection:
        return motions.list_motions(connection, ROBOT)


def let_pass(seconds: float) -> None:
    """Let time pass for the robots: what has begun began that much earlier."""
    with transaction() as connection:
        for table, columns in {"sim_robots": ("started_at", "until"), "sim_motions": ("began_at", "until")}.items():
            shifts = ", ".join(f"{column} = {column} - make_interval(secs => :by)" for column in columns)
            still = "ended_at IS NULL" if table == "sim_motions" else "true"
            connection.execute(text(f"UPDATE {table} SET {shifts} WHERE {still}"), {"by": seconds})


def drive(fence: int = 1, seconds: float = 5, **changed: Any) -> Command:
    params = {"speed": 1.5, "duration_seconds": seconds}
    facts: dict[str, Any] = {"ticket_id": f"ticket-{fence}", "target": ROBOT, "fence": fence, "not_after": soon()}
    return Command(**{"name": "drive", "params": params} | facts | changed)


WAITING = text("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")


def poll(connection: Connection, question: TextClause, **facts: Any) -> None:
    """Ask the database until the answer is yes."""
    deadline = monotonic() + 10
    while monotonic() < deadline:
        if connection.execute(question, facts).scalar_one():
            return
    raise AssertionError(f"never: {question}")


class Meanwhile(Interrupt):
    """Nothing is waited for: what would happen during the wait happens, then its time has passed."""

    def __init__(self, *events: Callable[[], object]) -> None:
        super().__init__()
        self.events = list(events)
        self.waits: list[float] = []

    def wait(self, seconds: float) -> str | None:
        reason = super().wait(0)
        if reason is None and seconds > 0:
            self.waits.append(seconds)
            if self.events:
                self.events.pop(0)()
        return super().wait(0)


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


class TestBeginning:
    def test_a_robot_never_heard_of_stands_at_the_start(self) -> None:
        robot = look()
        assert (robot.pose, robot.fence, robot.moving) == (START, 0, False)

    def test_a_motion_begins_now_and_ends_by_itself(self) -> None:
        motion = begin(seconds=10, time_scale=2.0)
        assert motion.until - motion.began_at == timedelta(seconds=5)
        assert motion.ended_at is None
        assert 0 < motion.remaining <= 5
        assert look().moving

    def test_a_stale_fence_cannot_begin_a_motion(self) -> None:
        stop(7)
        for fence in (6, 7):
            with pytest.raises(robots.StaleFence):
                begin(fence)
        assert all_motions() == []

    def test_the_same_command_cannot_begin_twice(self) -> None:
        begin(3)
        let_pass(60)
        with pytest.raises(robots.StaleFence):
            begin(3)
        assert len(all_motions()) == 1

    def test_a_moving_robot_is_busy_even_for_a_newer_fence(self) -> None:
        begin(1)
        with pytest.raises(robots.RobotBusy, match="ticket-1"):
            begin(2)
        assert look().fence == 1

    def test_nothing_begins_after_its_last_moment(self) -> None:
        with pytest.raises(robots.TooLate):
            begin(1, not_after=utcnow() - timedelta(seconds=1))
        assert not look().moving
        begin(1)

    def test_a_motion_whose_time_is_up_makes_room_for_the_next(self) -> None:
        begin(1, speed=1.0, direction=0, seconds=10)
        let_pass(3600)
        begin(2, speed=1.0, direction=90, seconds=4)
        later, earlier = all_motions()
        assert earlier.end_reason == robots.ELAPSED
        assert earlier.ended_at == earlier.until
        assert earlier.travel.distance == 10
        assert later.ended_at is None
        assert later.travel.pose.x == 12.0

    def test_of_two_that_begin_at_once_one_does(self) -> None:
        barrier = threading.Barrier(2)

        def race(fence: int) -> str:
            barrier.wait()
            try:
                begin(fence)
            except robots.MotionRefused as refused:
                return refused.code
            return "began"

        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(race, (1, 2)))
        assert sorted(outcomes) in (["began", "robot_busy"], ["began", "stale_fence"])
        assert len(all_motions()) == 1

    def test_a_begin_that_waited_for_the_row_is_judged_by_the_clock_after_its_wait(self) -> None:
        stop(1)
        with ThreadPoolExecutor(1) as pool:
            with transaction() as holder:
                robots.lock_robot(holder, ROBOT)
                last = utcnow() + timedelta(milliseconds=300)
                pending = pool.submit(begin, 2, not_after=last)
                poll(holder, WAITING)
                poll(holder, text("SELECT clock_timestamp() > :last"), last=last)
            with pytest.raises(robots.TooLate):
                pending.result()

    def test_a_begin_that_waited_behind_a_newer_stop_is_refused(self) -> None:
        stop(1)
        with ThreadPoolExecutor(1) as pool:
            with transaction() as holder:
                robots.stop_motion(holder, ROBOT, 5, "stop")
                pending = pool.submit(begin, 2)
                poll(holder, WAITING)
            with pytest.raises(robots.StaleFence):
                pending.result()
        assert all_motions() == []

    def test_robots_do_not_wait_for_each_other(self) -> None:
        begin(1)
        with transaction() as holder:
            robots.lock_robot(holder, ROBOT)
            assert begin(2, target="another").target == "another"


class TestStopping:
    def test_a_stop_integrates_what_was_driven(self) -> None:
        begin(1, speed=2.0, direction=90, seconds=60)
        let_pass(3)
        robot = stop(2)
        assert robot is not None
        (motion,) = all_motions()
        assert motion.end_reason == "stop"
        assert motion.ended_at is not None
        elapsed = (motion.ended_at - motion.began_at).total_seconds()
        assert elapsed >= 3
        assert motion.travel.distance == pytest.approx(2.0 * elapsed)
        assert robot.pose == motion.travel.pose
        assert robot.pose.y == pytest.approx(2.0 + 2.0 * elapsed)
        assert not robot.moving

    def test_time_passes_faster_at_a_time_scale(self) -> None:
        begin(1, speed=0.1, direction=90, seconds=90, time_scale=10)
        let_pass(3)
        stop(2)
        (motion,) = all_motions()
        assert motion.ended_at is not None
        elapsed = (motion.ended_at - motion.began_at).total_seconds()
        assert motion.travel.distance == pytest.approx(0.1 * 10 * elapsed)

    def test_a_stop_reaches_a_robot_that_was_never_heard_of(self) -> None:
        robot = stop(9)
        assert robot is not None
        assert robot.fence == 9
        with pytest.raises(robots.StaleFence):
            begin(8)

    def test_a_stale_stop_leaves_the_newer_motion_alone(self) -> None:
        stop(4)
        begin(5)
        assert stop(4) is None
        assert look().moving

    def test_a_command_stops_its_own_motion(self) -> None:
        begin(5)
        assert stop(5, "timeout") is not None
        assert all_motions()[0].end_reason == "timeout"

    def test_a_stop_after_the_time_was_up_changes_nothing_that_happened(self) -> None:
        begin(1, seconds=10)
        let_pass(60)
        stop(2)
        (motion,) = all_motions()
        assert (motion.end_reason, motion.ended_at, motion.travel.distance) == (robots.ELAPSED, motion.until, 10)
        assert look().fence == 2

    def test_stopping_twice_is_stopping_once(self) -> None:
        begin(1)
        assert stop(2) is not None
        first = all_motions()
        assert stop(2) is not None
        assert all_motions() == first


class TestFinishing:
    def test_a_motion_is_not_over_before_its_time(self) -> None:
        begin(1)
        assert finish(1).ended_at is None
        assert look().moving

    def test_a_finished_motion_covered_speed_times_time(self) -> None:
        begin(1, speed=1.5, direction=90, seconds=5)
        let_pass(5)
        motion = finish(1)
        assert (motion.end_reason, motion.travel.distance, motion.remaining) == (robots.ELAPSED, 7.5, 0)
        assert finish(1) == motion

    def test_who_was_stopped_by_another_learns_why(self) -> None:
        begin(1)
        stop(2, "brake")
        begin(3)
        assert finish(1).end_reason == "brake"
        assert look().moving

    def test_a_motion_that_never_began_is_not_found(self) -> None:
        with pytest.raises(NotFound):
            finish(1)

    def test_each_motion_begins_where_the_one_before_it_ended(self) -> None:
        for fence, direction in enumerate((0, 90, 180, 45, 300), start=1):
            begin(fence, direction=direction)
            let_pass(fence * 3)
            stop(fence)
        with statement() as connection:
            rows = connection.execute(text("SELECT from_x, from_y, to_x, to_y FROM sim_motions ORDER BY id")).all()
        assert len(rows) == 5
        assert all(before[2:] == after[:2] for before, after in pairwise(rows))

    @pytest.mark.parametrize(
        "nonsense",
        [
            "UPDATE sim_robots SET x = 'NaN'",
            "UPDATE sim_robots SET fence = -1",
            "UPDATE sim_robots SET heading = 360",
            "UPDATE sim_robots SET speed = 3.1",
            "UPDATE sim_robots SET started_at = NULL",
            "UPDATE sim_robots SET until = started_at - interval '1 s'",
            "UPDATE sim_motions SET ended_at = until",
            "UPDATE sim_motions SET seconds = 301",
            "INSERT INTO sim_motions (target, fence, command, ticket_id, speed, direction, seconds, time_scale, from_x,"
            " from_y, began_at, until) SELECT target, 99, command, ticket_id, speed, direction, seconds, time_scale,"
            " from_x, from_y, began_at, until FROM sim_motions",
        ],
    )
    def test_the_database_refuses_nonsense(self, nonsense: str) -> None:
        begin(1)
        with pytest.raises(IntegrityError), transaction() as connection:
            connection.execute(text(nonsense))


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
            SimDriver(FAST).carry_out(drive(), Meanwhile(away.set))

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
