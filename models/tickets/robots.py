"""The simulated robots: one row says where each stands, one row for each motion says what moved when.

A robot is a row, so it obeys the way a row does: whoever holds its lock decides,
and what the database did not commit did not happen.

* A motion begins only with a fence above every fence that the robot has obeyed, and
  only before its `not_after`. A stop raises the fence, so that whatever was ordered
  earlier is refused for good.
* No motion begins after an e-stop. A statement's start, which is recorded, is read before
  its snapshot is taken. Either the snapshot sees the committed latch, and nothing begins; or
  it does not, and then it, and the start before it, came before the commit. The robot's row
  is locked before, so that the statement waits for nothing and has but one snapshot.
* A motion ends by itself when its time is up (`until`), whether or not anybody is
  left to see it. Its row may say so later; the moment recorded is `until`.
* Positions are never guessed: `room.travel` integrates them from the moment of the
  beginning to the moment of the end, both read from the database's clock after the
  robot's row was locked.

Every function that changes something wants a connection in a transaction
(`session.transaction()`), because it locks the robot's row first.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, DateTime, Interval, Row, Text, bindparam, func, insert, not_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from models.kernel.errors import Conflict
from models.kernel.latch import find_latch, is_engaged
from models.tickets.motions import Motion, Robot, get_motion, get_robot, moved
from models.tickets.queries import emergency_text, find_newer_stop, newer_stop
from models.tickets.robot_tables import sim_motions, sim_robots
from models.tickets.room import START
from models.tickets.tables import EVERYTHING

ELAPSED: Final = "elapsed"
"""The reason of a motion that nobody ended: its time was up."""


class MotionRefused(Conflict):
    """The robot does not begin this motion, and nothing moved."""

    code = "motion_refused"


class StaleFence(MotionRefused):
    """The robot already obeys this command or a newer one."""

    code = "stale_fence"


class RobotBusy(MotionRefused):
    """The robot is in the middle of another motion."""

    code = "robot_busy"


class TooLate(MotionRefused):
    """The moment after which the command must not begin has passed."""

    code = "too_late"


class Stopped(MotionRefused):
    """An e-stop is engaged over the robot."""

    code = "emergency_stop"


def begin_motion(
    connection: Connection,
    target: str,
    fence: int,
    ticket_id: str,
    *,
    speed: float,
    direction: float,
    seconds: float,
    time_scale: float,
    not_after: datetime,
    command: str = "drive",
) -> Motion:
    """Set a robot moving at `speed` m/s towards `direction` degrees for `seconds` simulated seconds.

    Raises StaleFence, RobotBusy, Stopped or TooLate (of which the first that holds),
    each meaning that nothing moved.
    """
    # The lock comes first: an update that waits for it would judge by the clock from before its wait.
    robot = lock_robot(connection, target)
    moving = robot.started_at is not None
    if moving and robot.now >= robot.until:
        end(connection, robot, ELAPSED, by=robot.fence)
        moving = False
    order = {
        "of_target": target,
        "of_fence": fence,
        "of_ticket": ticket_id,
        "at_speed": float(speed),
        "towards": float(direction),
        "for_seconds": float(seconds),
        "at_scale": time_scale,
        "lasting": timedelta(seconds=seconds / time_scale),
        "no_later_than": not_after,
        "of_command": command,
    }
    if connection.execute(BEGIN, order).one_or_none() is None:
        raise refusal(connection, robot, fence, moving, not_after)
    return get_motion(connection, target, fence)


def refusal(connection: Connection, robot: Row[Any], fence: int, moving: bool, not_after: datetime) -> Conflict:
    """Why a motion did not begin."""
    target = robot.target
    if robot.fence >= fence:
        return StaleFence(f"Robot {target!r} already obeys fence {robot.fence}, not {fence}")
    if moving:
        return RobotBusy(f"Robot {target!r} is in motion for ticket {robot.ticket_id}")
    latch = find_latch(connection, EVERYTHING, target)
    if latch is not None:
        return Stopped(emergency_text(latch["scope"], latch["reason"]))
    if find_newer_stop(connection, target, fence) is not None:
        return StaleFence(f"Robot {target!r} is owed a stop that is newer than fence {fence}")
    return TooLate(f"Robot {target!r} was told to begin after {not_after.isoformat()}")


def halt_robot(connection: Connection, target: str, fence: int, reason: str) -> Robot:
    """Stop a robot now, whatever it obeys: somebody ordered a stop, and one that comes late is still meant."""
    robot = lock_robot(connection, target)
    return come_to_rest(connection, robot, max(fence, robot.fence), reason)


def stop_motion(connection: Connection, target: str, fence: int, reason: str) -> Robot | None:
    """Stop what a robot does under a fence up to this one, and refuse whatever was ordered with such a fence.

    A robot at rest stays at rest. None means that the robot obeys a newer fence,
    which this stop leaves alone: whoever holds that one stops it.
    """
    robot = lock_robot(connection, target)
    return None if robot.fence > fence else come_to_rest(connection, robot, fence, reason)


def come_to_rest(connection: Connection, robot: Row[Any], fence: int, reason: str) -> Robot:
    if robot.started_at is not None:
        end(connection, robot, ELAPSED if robot.now >= robot.until else reason, by=fence)
    elif robot.fence < fence:
        raised = update(sim_robots).where(sim_robots.c.target == robot.target)
        connection.execute(raised.values(fence=fence, updated_at=func.clock_timestamp()))
    return get_robot(connection, robot.target)


def finish_motion(connection: Connection, target: str, fence: int) -> Motion:
    """Write the end of a motion whose time is up, and say how the motion stands.

    A motion that is not over yet comes back with `remaining` > 0; one that was
    stopped by somebody else comes back with their reason. Raises NotFound when the
    robot never began this motion.
    """
    robot = lock_robot(connection, target)
    if robot.fence == fence and robot.started_at is not None and robot.now >= robot.until:
        end(connection, robot, ELAPSED, by=fence)
    return get_motion(connection, target, fence)


def lock_robot(connection: Connection, target: str) -> Row[Any]:
    """The robot's row, locked, and `now`: the clock as it was read after the lock was held."""
    row = connection.execute(LOCK, {"of_target": target}).one_or_none()
    if row is None:
        born = {"target": target, "x": START.x, "y": START.y, "heading": START.heading}
        connection.execute(upsert(sim_robots).values(born).on_conflict_do_nothing())
        row = connection.execute(LOCK, {"of_target": target}).one()
    return row


def end(connection: Connection, robot: Row[Any], reason: str, *, by: int) -> None:
    """Write the end of the motion that a locked robot is in, at its `until` or now, whichever came first."""
    done = moved(robot)
    ended_at = max(robot.started_at, min(robot.now, robot.until))
    connection.execute(
        update(sim_motions)
        .where(sim_motions.c.target == robot.target, sim_motions.c.ended_at.is_(None))
        .values(ended_at=ended_at, ended_by=robot.fence if reason == ELAPSED else by, end_reason=reason)
        .values(to_x=done.pose.x, to_y=done.pose.y, distance=done.distance, collided=done.collided)
    )
    at_rest = dict.fromkeys(("direction", "seconds", "time_scale", "started_at", "until", "ticket_id"))
    connection.execute(
        update(sim_robots)
        .where(sim_robots.c.target == robot.target)
        .values(x=done.pose.x, y=done.pose.y, heading=done.pose.heading, speed=0, **at_rest)
        .values(fence=by, updated_at=func.clock_timestamp())
    )


def lock_statement() -> Any:
    """The clock is read above the locking step, and so after its wait."""
    of_target = sim_robots.c.target == bindparam("of_target")
    locked = select(sim_robots).where(of_target).with_for_update(key_share=True).cte("locked")
    return select(locked, func.clock_timestamp().label("now"))


def begin_statement() -> Any:
    """Fence, clock and rest decide in one conditional update; only the row that it moved is recorded.

    The row is locked before this statement starts, so its start is the moment of the beginning.
    A stop that is owed counts as obeyed: a revoked command must not begin between an e-stop's release and the
    arrival of the stop that it ordered.
    """
    now = func.statement_timestamp(type_=DateTime(timezone=True))
    begun = (
        update(sim_robots)
        .where(
            sim_robots.c.target == bindparam("of_target"),
            sim_robots.c.started_at.is_(None),
            sim_robots.c.fence < bindparam("of_fence"),
            now < bindparam("no_later_than", type_=DateTime(timezone=True)),
            not_(is_engaged(EVERYTHING, sim_robots.c.target)),
            not_(newer_stop(sim_robots.c.target, bindparam("of_fence")).exists()),
        )
        .values(
            fence=bindparam("of_fence"),
            ticket_id=bindparam("of_ticket"),
            speed=bindparam("at_speed"),
            direction=bindparam("towards"),
            seconds=bindparam("for_seconds"),
            time_scale=bindparam("at_scale"),
            started_at=now,
            until=now + bindparam("lasting", type_=Interval),
            updated_at=now,
        )
        .returning(sim_robots)
        .cte("begun")
    )
    same = ("target", "fence", "ticket_id", "speed", "direction", "seconds", "time_scale", "until")
    source = select(
        *(begun.c[name] for name in same), begun.c.x, begun.c.y, begun.c.started_at, bindparam("of_command", type_=Text)
    )
    recorded = insert(sim_motions).from_select([*same, "from_x", "from_y", "began_at", "command"], source)
    return select(begun.c.fence).add_cte(recorded.cte("recorded"))


LOCK = lock_statement()
BEGIN = begin_statement()
