"""The stops that are owed to robots: each is sent until the driver has taken it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, case, func, or_, select, true, update

from models.kernel.expressions import seconds
from models.tickets.tables import stop_orders

LONGEST_BACKOFF_SECONDS = 5.0
FIRST_BACKOFF_SECONDS = 0.1
MOST_LISTED = 1000
MOST_SHOWN = 100
COUNT_CAP = 10_000

Rows = Sequence[RowMapping]


def list_due_stops(connection: Connection, limit: int = 100) -> Sequence[RowMapping]:
    """Stops that are due, those that were tried least in front; `now` is the clock as they were read."""
    now = func.clock_timestamp()
    due = select(stop_orders, now.label("now")).where(stop_orders.c.done_at.is_(None), stop_orders.c.next_at <= now)
    return connection.execute(due.order_by(stop_orders.c.tries, stop_orders.c.id).limit(limit)).mappings().all()


def list_stopped(connection: Connection, target: str | None, since: datetime, reason: str) -> Sequence[str]:
    """The tickets whose robots, or whose one robot, were ordered a stop for this reason; of the last 1,000 orders."""
    last = select(stop_orders).order_by(stop_orders.c.id.desc()).limit(MOST_LISTED).subquery()
    mine = [last.c.reason == reason, last.c.ordered_at >= since]
    mine += [last.c.target == target] if target is not None else []
    return connection.scalars(select(last.c.ticket_id).where(*mine).order_by(last.c.id)).all()


def untaken(target: str | None) -> Any:
    """The stops, of one robot or of all, that no driver has taken yet, or not at the last try."""
    never = or_(stop_orders.c.tries == 0, stop_orders.c.error.is_not(None))
    return and_(stop_orders.c.done_at.is_(None), never, true() if target is None else stop_orders.c.target == target)


def count_untaken_stops(connection: Connection, target: str | None = None) -> int:
    """How many stops a robot, or all of them, have been ordered and have not taken; counted up to COUNT_CAP."""
    some = select(stop_orders.c.id).where(untaken(target)).limit(COUNT_CAP).subquery()
    return connection.scalar(select(func.count()).select_from(some)) or 0


def list_untaken_stops(connection: Connection, target: str | None = None, limit: int = MOST_SHOWN) -> Rows:
    """Some of them, those ordered first in front, with their tries and the last error."""
    first = select(stop_orders).where(untaken(target)).order_by(stop_orders.c.id).limit(limit)
    return connection.execute(first).mappings().all()


def count_taken_stops(connection: Connection, target: str | None, since: datetime, but: Sequence[int]) -> int:
    """How many of the last 1,000 stops that were ordered since then have been taken, of one robot or of all.

    `but`: those that were found untaken just before, and count as such.
    """
    last = select(stop_orders).order_by(stop_orders.c.id.desc()).limit(MOST_LISTED).subquery()
    taken = or_(last.c.done_at.is_not(None), and_(last.c.tries > 0, last.c.error.is_(None)))
    others = (last.c.id.not_in(but), true() if target is None else last.c.target == target)
    return (
        connection.scalar(select(func.count()).select_from(last).where(taken, last.c.ordered_at >= since, *others)) or 0
    )


def confirm_stop(connection: Connection, order_id: int) -> None:
    """The driver has taken this stop, and its robot refuses whatever was ordered before it."""
    mine = stop_orders.c.id == order_id
    done = {"done_at": func.clock_timestamp(), "tries": stop_orders.c.tries + 1, "error": None}
    connection.execute(update(stop_orders).where(mine).values(done))


def repeat_stop(connection: Connection, order_id: int, sent_at: datetime, pace: float, on_its_way: float) -> bool:
    """The driver has taken this stop, but its robot knows no fences: answers whether this was the last one.

    The revoked attempt may still reach the robot until its worker has let go, or a request that it began at its
    `not_after` is over: after `on_its_way` seconds. A stop that was sent after that is the last; until then the next
    is due in `pace` seconds.
    """
    over = func.least(stop_orders.c.settled_at, stop_orders.c.not_after + seconds(on_its_way))
    last = func.coalesce(over, stop_orders.c.ordered_at) <= sent_at
    values = {
        "done_at": case((last, func.clock_timestamp())),
        "next_at": func.clock_timestamp() + seconds(pace),
        "tries": stop_orders.c.tries + 1,
        "error": None,
    }
    act = update(stop_orders).where(stop_orders.c.id == order_id).values(values)
    return connection.scalar(act.returning(stop_orders.c.done_at)) is not None


def release_robot(connection: Connection, ticket_id: str, execution: int) -> None:
    """The worker of a revoked attempt has let go of the robot: no stop need be repeated for longer."""
    mine = (stop_orders.c.ticket_id == ticket_id, stop_orders.c.execution == execution)
    open_ = (stop_orders.c.done_at.is_(None), stop_orders.c.settled_at.is_(None))
    connection.execute(update(stop_orders).where(*mine, *open_).values(settled_at=func.clock_timestamp()))


def postpone_stop(connection: Connection, order_id: int, error: str) -> None:
    """The driver could not take this stop: try again soon, ever less often, for as long as it takes."""
    pause = func.least(
        FIRST_BACKOFF_SECONDS * func.power(2, func.least(stop_orders.c.tries, 10)), LONGEST_BACKOFF_SECONDS
    )
    values = {"tries": stop_orders.c.tries + 1, "next_at": func.clock_timestamp() + seconds(pause), "error": error}
    connection.execute(update(stop_orders).where(stop_orders.c.id == order_id).values(values))


def forget_old_stops(connection: Connection, keep_seconds: float = 86_400) -> int:
    """Delete stops that were taken long ago; the ledger keeps why they were ordered."""
    old = stop_orders.c.done_at < func.clock_timestamp() - seconds(keep_seconds)
    return connection.execute(stop_orders.delete().where(old)).rowcount
