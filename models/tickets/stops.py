"""The stops that are owed to robots: each is sent until the driver has taken it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, RowMapping, func, select, update

from models.kernel.job_parts import seconds
from models.tickets.tables import stop_orders

LONGEST_BACKOFF_SECONDS = 5.0
FIRST_BACKOFF_SECONDS = 0.1


def list_due_stops(connection: Connection, limit: int = 100) -> Sequence[RowMapping]:
    """Stops that are due, oldest first."""
    due = (stop_orders.c.done_at.is_(None), stop_orders.c.next_at <= func.clock_timestamp())
    return connection.execute(select(stop_orders).where(*due).order_by(stop_orders.c.id).limit(limit)).mappings().all()


def confirm_stop(connection: Connection, order_id: int) -> None:
    """The driver has taken this stop."""
    mine = stop_orders.c.id == order_id
    done = {"done_at": func.clock_timestamp(), "tries": stop_orders.c.tries + 1, "error": None}
    connection.execute(update(stop_orders).where(mine).values(done))


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
