"""The simulated robot: a row that obeys fences and moves through a walled room.

The worker only waits. The motion lives in the robot's row and ends at its own
`until`, so a worker that dies in mid-drive leaves no robot running, and no
connection is held while one moves. When the database cannot be reached the driver
tries for a few seconds to learn what it must know, and else says so:

* the begin was not confirmed: the robot is stopped, or the outcome is unknown;
* the end was not confirmed: the outcome is unknown;
* the stop was not confirmed: the outcome is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from models.kernel import clock
from models.kernel.clock import monotonic
from models.kernel.errors import Conflict, Unavailable
from models.kernel.session import statement, transaction
from models.tickets import contracts, motions, robots, room
from orchestrator_tasks.tickets.drivers.base import (
    Command,
    DriverFailed,
    Interrupt,
    Interrupted,
    OutcomeUnknown,
    driven,
    halted,
    refuse_interrupted,
    refuse_unsafe,
)

GRAVITY = 9.80665  # m/s2, what an accelerometer at rest feels
LOOK_SECONDS = 1.0
"""How often a waiting worker looks whether somebody else has stopped its robot."""

PAUSES = (0.1, 0.4, 1.0, 2.0)
"""Seconds between the tries to reach the database."""

SHOWN_EVERY = 10
"""Of a scan's 360 readings the result keeps every tenth, so that it stays small."""

T = TypeVar("T")


class SimDriver:
    """Robots whose state is a row. `time_scale` is simulated seconds in one real second."""

    obeys_fences = True

    def __init__(self, time_scale: float) -> None:
        self.time_scale = time_scale

    def carry_out(self, command: Command, interrupt: Interrupt) -> dict[str, Any]:
        refuse_unsafe(command)
        if command.name in ("stop", "brake"):
            return self.halt(command)
        refuse_interrupted(interrupt)
        return self.drive(command, interrupt) if command.name == "drive" else self.scan(command)

    def stop(self, target: str, fence: int, reason: str) -> None:
        persist(lambda: stopped(target, fence, reason), f"Robot {target!r} may not have stopped")

    def drive(self, command: Command, interrupt: Interrupt) -> dict[str, Any]:
        motion, reason = watch(command, self.begin(command), interrupt)
        if motion.end_reason != robots.ELAPSED:
            if reason is not None:
                raise Interrupted(reason, **measured(motion))
            text = f"The robot was stopped on the way: {motion.end_reason}"
            raise Interrupted(str(motion.end_reason), text, **measured(motion))
        found = {"measured": measured(motion), "sensors": sensors(motion.travel.pose, motion.until)}
        return driven(command.params) | found

    def begin(self, command: Command) -> motions.Motion:
        try:
            with transaction() as connection:
                return robots.begin_motion(
                    connection,
                    command.target,
                    command.fence,
                    command.ticket_id,
                    speed=command.params["speed"],
                    direction=command.params.get("direction", 0),
                    seconds=command.params["duration_seconds"],
                    time_scale=self.time_scale,
                    not_after=command.not_after,
                )
        except Conflict as refused:
            raise DriverFailed(refused.message, code=refused.code) from refused
        except Unavailable as away:
            raise undo_begin(command) from away

    def halt(self, command: Command) -> dict[str, Any]:
        target = command.target
        robot = persist(
            lambda: brought_to_rest(target, command.fence, command.name), f"Robot {target!r} may still move"
        )
        return halted(command.name) | {"sensors": sensors(robot.pose, robot.at)}

    def scan(self, command: Command) -> dict[str, Any]:
        try:
            with statement() as connection:
                robot = motions.get_robot(connection, command.target)
        except Unavailable as away:
            raise DriverFailed(away.message, code=away.code) from away
        return {
            "command": "scan",
            "executed": True,
            "scan_points": room.SCAN_POINTS,
            "obstacles_detected": room.obstacles_detected(robot.pose),
            "ranges": [round(distance, 3) for distance in room.scan(robot.pose)[::SHOWN_EVERY]],
            "sensors": sensors(robot.pose, robot.at),
        }


def watch(command: Command, motion: motions.Motion, interrupt: Interrupt) -> tuple[motions.Motion, str | None]:
    """Wait until the motion has ended, ending it when interrupted: how it ended, and the interrupt's reason."""
    reason: str | None = None
    deadline = monotonic() + motion.remaining
    while motion.ended_at is None:
        left = deadline - monotonic()
        reason = interrupt.wait(min(left, LOOK_SECONDS))
        seen: motions.Motion | None
        if reason is not None:
            seen = end_early(command, reason)
        else:
            seen = glance(command) if left > LOOK_SECONDS else end_of(command)
        if seen is not None:
            motion, deadline = seen, monotonic() + seen.remaining
    return motion, reason


def undo_begin(command: Command) -> DriverFailed:
    """The database went away as the motion began: stop it, whether it began or not, and say which.

    A begin that is still on its way is refused afterwards, for the stop raised the
    fence. Raises OutcomeUnknown when the stop could not be confirmed either.
    """
    unknown = f"Robot {command.target!r} may have begun to move"

    def stop_and_find() -> motions.Motion | None:
        with transaction() as connection:
            robots.stop_motion(connection, command.target, command.fence, "unconfirmed")
            return motions.find_motion(connection, command.target, command.fence)

    motion = persist(stop_and_find, unknown)
    if motion is None:
        return DriverFailed("The database was away; nothing moved", code="database_unavailable")
    text = f"The database was away; the robot was stopped after {motion.travel.distance:.3f} m"
    return DriverFailed(text, code="database_unavailable", **measured(motion))


def end_early(command: Command, reason: str) -> motions.Motion:
    """Stop the robot in mid-drive. The motion may turn out to have ended already."""

    def stop_and_get() -> motions.Motion:
        with transaction() as connection:
            robots.stop_motion(connection, command.target, command.fence, reason)
            return motions.get_motion(connection, command.target, command.fence)

    return persist(stop_and_get, f"Robot {command.target!r} may still be moving")


def end_of(command: Command) -> motions.Motion:
    def finish() -> motions.Motion:
        with transaction() as connection:
            return robots.finish_motion(connection, command.target, command.fence)

    return persist(finish, f"Robot {command.target!r} may have been stopped before its time")


def glance(command: Command) -> motions.Motion | None:
    """The motion as it stands now; None when the database does not say, for it goes on without being watched."""
    try:
        with statement() as connection:
            return motions.get_motion(connection, command.target, command.fence)
    except (Unavailable, Conflict):
        return None


def brought_to_rest(target: str, fence: int, reason: str) -> motions.Robot:
    with transaction() as connection:
        return robots.halt_robot(connection, target, fence, reason)


def stopped(target: str, fence: int, reason: str) -> motions.Robot | None:
    with transaction() as connection:
        return robots.stop_motion(connection, target, fence, reason)


def persist(act: Callable[[], T], unknown: str) -> T:
    """Do what must be done, trying again while the database is away. Raises OutcomeUnknown in the end."""
    for pause in (*PAUSES, None):
        try:
            return act()
        except (Unavailable, Conflict) as error:
            if pause is None:
                raise OutcomeUnknown(f"{unknown}: {error.message}") from error
        clock.pause(pause)
    raise AssertionError("the last try returns or raises")


def measured(motion: motions.Motion) -> dict[str, Any]:
    """What the robot really did, beside what it was told."""
    done = motion.travel
    pose = {"x": round(done.pose.x, 3), "y": round(done.pose.y, 3), "heading": round(done.pose.heading, 3)}
    return {"distance": round(done.distance, 3), "collided": done.collided, "pose": pose}


def sensors(pose: room.Pose, at: datetime) -> dict[str, Any]:
    """What the robot's sensors read at rest in a pose, held to imu.v1 and ultrasonic.v1."""
    timestamp = at.isoformat()
    imu = {"timestamp": timestamp, "yaw": round(pose.heading, 3), "pitch": 0.0, "roll": 0.0}
    imu |= {"ax": 0.0, "ay": 0.0, "az": GRAVITY}
    sides = {side: round(distance, 3) for side, distance in room.ranges(pose).items()}
    ultrasonic = {"timestamp": timestamp, **sides}
    contracts.check("imu.v1", imu)
    contracts.check("ultrasonic.v1", ultrasonic)
    return {"imu": imu, "ultrasonic": ultrasonic}
