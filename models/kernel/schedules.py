"""Schedules: what happens every so often, decided by a row and the database's clock.

Any number of beats may tick; `claim` moves the due time on, and only the tick that
moved it fires. Several due times missed at once fire once, and the others are counted.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Double,
    Table,
    Text,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from models.kernel.job_parts import seconds
from models.kernel.metadata import metadata

schedules = Table(
    "schedules",
    metadata,
    Column("name", Text, primary_key=True),
    Column("every_seconds", Double, nullable=False),
    Column("next_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column("last_started_at", DateTime(timezone=True)),
    Column("last_finished_at", DateTime(timezone=True)),
    Column("last_error", Text),
    Column("runs", BigInteger, nullable=False, server_default=text("0")),
    Column("misses", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint("every_seconds > 0", name="every"),
)


def declare(connection: Connection, every: dict[str, float]) -> None:
    """Make the rows of these schedules, or set their pace; due times and pauses stay."""
    rows = [{"name": name, "every_seconds": pace} for name, pace in every.items()]
    made = insert(schedules).values(rows)
    connection.execute(
        made.on_conflict_do_update(index_elements=["name"], set_={"every_seconds": made.excluded.every_seconds})
    )


def claim(connection: Connection, name: str) -> bool:
    """Whether this tick is the one that fires the schedule's due time."""
    now = func.clock_timestamp()
    overdue = func.floor(func.extract("epoch", now - schedules.c.next_at) / schedules.c.every_seconds)
    due = update(schedules).where(schedules.c.name == name, schedules.c.next_at <= now, ~schedules.c.paused)
    moved = due.values(
        next_at=schedules.c.next_at + seconds((overdue + 1) * schedules.c.every_seconds),
        misses=schedules.c.misses + overdue,
        runs=schedules.c.runs + 1,
        last_started_at=now,
    )
    return connection.execute(moved).rowcount == 1


def finish(connection: Connection, name: str, error: str | None = None) -> None:
    """Record that the firing claimed last has ended, and how."""
    ended = {"last_finished_at": func.clock_timestamp(), "last_error": error}
    connection.execute(update(schedules).where(schedules.c.name == name).values(ended))


def set_paused(connection: Connection, name: str, paused: bool) -> bool:
    """Pause or resume; a resumed schedule is next due one pace from now. False when there is no such schedule."""
    values: dict[str, Any] = {"paused": paused}
    if not paused:
        values["next_at"] = func.clock_timestamp() + seconds(schedules.c.every_seconds)
    return connection.execute(update(schedules).where(schedules.c.name == name).values(values)).rowcount == 1


def list_schedules(connection: Connection) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(select(schedules).order_by(schedules.c.name)).mappings()]
