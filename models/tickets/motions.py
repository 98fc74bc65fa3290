"""Robots and their motions as they are read: where each is at this moment, and what moved when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select

from models.kernel.errors import NotFound
from models.tickets.robot_tables import sim_motions, sim_robots
from models.tickets.room import START, Pose, Travel, travel


@dataclass(frozen=True)
class Robot:
    """A robot at one moment of the database's clock."""

    target: str
    at: datetime
    pose: Pose
    fence: int
    moving: bool


@dataclass(frozen=True)
class Motion:
    """One motion: until it has ended, `travel` is what it will have been, undisturbed."""

    target: str
    fence: int
    ticket_id: str
    began_at: datetime
    until: datetime
    remaining: float  # seconds of the database's clock, 0 once it has ended
    ended_at: datetime | None
    end_reason: str | None
    travel: Travel


def get_robot(connection: Connection, target: str) -> Robot:
    """Where a robot is at this moment, moving or not. One that was never moved stands at the start."""
    row = connection.execute(
        select(sim_robots, func.clock_timestamp().label("now")).where(sim_robots.c.target == target)
    ).one_or_none()
    if row is None:
        now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return Robot(target, now, START, fence=0, moving=False)
    moving = row.started_at is not None and row.now < row.until
    return Robot(target, row.now, moved(row).pose, row.fence, moving)


def find_motion(connection: Connection, target: str, fence: int) -> Motion | None:
    """The motion that a robot began with this fence, if it did."""
    statement = select(sim_motions, func.clock_timestamp().label("now"))
    row = connection.execute(statement.filter_by(target=target, fence=fence)).one_or_none()
    return None if row is None else as_motion(row)


def get_motion(connection: Connection, target: str, fence: int) -> Motion:
    """As `find_motion`; raises NotFound."""
    motion = find_motion(connection, target, fence)
    if motion is None:
        raise NotFound(f"Robot {target!r} began no motion with fence {fence}")
    return motion


def list_motions(connection: Connection, target: str, limit: int = 100) -> list[Motion]:
    """What a robot did, newest first: the proof of what moved when."""
    statement = select(sim_motions, func.clock_timestamp().label("now")).filter_by(target=target)
    return [as_motion(row) for row in connection.execute(statement.order_by(sim_motions.c.id.desc()).limit(limit))]


def moved(robot: Row[Any]) -> Travel:
    """What the motion that a robot is in has come to by the row's `now`; nothing when it is at rest."""
    stood = Pose(robot.x, robot.y, robot.heading)
    if robot.started_at is None:
        return Travel(stood, 0.0, collided=False)
    elapsed = max(0.0, (robot.now - robot.started_at).total_seconds()) * robot.time_scale
    over = robot.now >= robot.until
    return travel(stood, robot.speed, robot.direction, robot.seconds if over else min(elapsed, robot.seconds))


def as_motion(row: Row[Any]) -> Motion:
    if row.ended_at is None:
        done = travel(Pose(row.from_x, row.from_y, row.direction), row.speed, row.direction, row.seconds)
        remaining = max(0.0, (row.until - row.now).total_seconds())
    else:
        done = Travel(Pose(row.to_x, row.to_y, row.direction), row.distance, row.collided)
        remaining = 0.0
    return Motion(
        target=row.target,
        fence=row.fence,
        ticket_id=row.ticket_id,
        began_at=row.began_at,
        until=row.until,
        remaining=remaining,
        ended_at=row.ended_at,
        end_reason=row.end_reason,
        travel=done,
    )
