"""Schedules: what happens every so often, decided by a row and the database's clock.

Any number of beats may tick and any number of workers may listen: `claim` moves the
due time on and holds the schedule for the length of its run, so that a due time fires
once and a schedule never overlaps itself. A run that says nothing for LONGEST_RUN_SECONDS, or
for a bound of its duty's own, counts as dead: the next tick claims the schedule again, and whatever
the dead one still reports changes nothing. Due times that passed meanwhile fire once, and the
others are counted.

A schedule's name is its duty, or `duty:subject` where one duty has several cadences.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
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
    case,
    delete,
    func,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from models.kernel.clients import Caller
from models.kernel.errors import Conflict, NotFound
from models.kernel.expressions import seconds
from models.kernel.ledger import note
from models.kernel.metadata import metadata

LONGEST_RUN_SECONDS = 60.0
LONGEST_ERROR = 500
NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}")
KIND, SERVICE = "schedule", "service"

schedules = Table(
    "schedules",
    metadata,
    Column("name", Text, primary_key=True),
    Column("source", Text, nullable=False, server_default=SERVICE, comment="who declares it, and may remove it"),
    Column("every_seconds", Double, nullable=False),
    Column("next_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column("running_until", DateTime(timezone=True), comment="null: nobody runs it; past: whoever did counts as dead"),
    Column("last_started_at", DateTime(timezone=True)),
    Column("last_finished_at", DateTime(timezone=True)),
    Column("last_duration_ms", Double),
    Column("last_error", Text),
    Column("runs", BigInteger, nullable=False, server_default=text("0")),
    Column("misses", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint("name ~ '^[A-Za-z0-9._:-]{1,64}$'", name="name"),
    CheckConstraint("every_seconds >= 1 AND every_seconds <= 31536000", name="every"),
    CheckConstraint("running_until IS NULL OR last_started_at IS NOT NULL", name="running"),
    CheckConstraint("last_duration_ms >= 0", name="duration"),
    CheckConstraint("runs >= 0 AND misses >= 0", name="counts"),
)


@dataclass(frozen=True)
class Run:
    """One claimed firing. `number` is its fence: a later claim has a higher one."""

    name: str
    number: int
    missed: int
    abandoned: bool
    failing: bool

    @property
    def correlation_id(self) -> str:
        return f"schedule:{self.number}:{self.name}"[:64]


def declare(connection: Connection, every: Mapping[str, float], source: str = SERVICE) -> None:
    """Make the rows of these schedules, or set their pace (seconds); due times and pauses stay.

    Those that the same source declared before and declares no more are removed.
    """
    rows = [{"name": name, "every_seconds": every[name], "source": source} for name in sorted(every)]
    if rows:
        made = insert(schedules).values(rows)
        again = {"every_seconds": made.excluded.every_seconds, "source": made.excluded.source}
        connection.execute(made.on_conflict_do_update(index_elements=["name"], set_=again))
    left = schedules.c.source == source, schedules.c.name.not_in(list(every))
    connection.execute(delete(schedules).where(*left))


def is_idle() -> Any:
    """Whether nobody runs the schedule, or whoever did is long silent."""
    return or_(schedules.c.running_until.is_(None), schedules.c.running_until <= func.clock_timestamp())


def claim(connection: Connection, duties: Collection[str], bounds: Mapping[str, float] | None = None) -> Run | None:
    """Claim the schedule of these duties that has been due for longest; None when none is due.

    `bounds` has the seconds after which a run of a duty counts as dead, where they are not LONGEST_RUN_SECONDS.
    """
    overdue = func.extract("epoch", func.clock_timestamp() - schedules.c.next_at) / schedules.c.every_seconds
    before = (schedules.c.misses, schedules.c.running_until, schedules.c.last_error)
    duty = func.split_part(schedules.c.name, ":", 1)
    longest = case(bounds, value=duty, else_=LONGEST_RUN_SECONDS) if bounds else literal(LONGEST_RUN_SECONDS)
    due = (
        select(schedules.c.name, func.greatest(func.floor(overdue), 0).label("passed"), *before)
        .where(schedules.c.next_at <= func.clock_timestamp(), ~schedules.c.paused, is_idle(), duty.in_(sorted(duties)))
        .order_by(schedules.c.next_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    moved = (
        update(schedules)
        .where(schedules.c.name == due.c.name)
        .values(
            next_at=schedules.c.next_at + seconds((due.c.passed + 1) * schedules.c.every_seconds),
            misses=schedules.c.misses + due.c.passed,
            runs=schedules.c.runs + 1,
            last_started_at=func.clock_timestamp(),
            running_until=func.clock_timestamp() + seconds(longest),
        )
        .returning(
            schedules.c.name,
            schedules.c.runs,
            schedules.c.misses - due.c.misses,
            due.c.running_until.is_not(None),
            due.c.last_error.is_not(None),
        )
    )
    row = connection.execute(moved).one_or_none()
    return None if row is None else Run(*row)


def finish(connection: Connection, run: Run, error: str | None = None) -> bool:
    """Record that a run has ended, and how; False when another has taken its place, which then counts alone.

    The ledger is told what is not as it should be: due times that were missed, a run that
    was abandoned, the first failure and the recovery from it.
    """
    now = func.clock_timestamp()
    took = func.greatest(func.extract("epoch", now - schedules.c.last_started_at) * 1000, 0)
    ended = {"last_finished_at": now, "last_duration_ms": took, "last_error": storable(error), "running_until": None}
    mine = schedules.c.name == run.name, schedules.c.runs == run.number
    if connection.execute(update(schedules).where(*mine).values(ended)).rowcount == 0:
        return False
    facts = {
        "schedule_missed": run.missed > 0,
        "schedule_abandoned": run.abandoned,
        "schedule_failed": error is not None and not run.failing,
        "schedule_recovered": error is None and run.failing,
    }
    for topic in (topic for topic, true in facts.items() if true):
        body = {"run": run.number, "missed": run.missed, "error": storable(error)}
        subject = (KIND, run.name)
        note(connection, topic, subject=subject, actor="schedules", correlation_id=run.correlation_id, body=body)
    return True


def storable(error: str | None) -> str | None:
    """The beginning of an error's text, without what Postgres cannot hold: NUL and halves of surrogate pairs."""
    if error is None:
        return None
    return error[:LONGEST_ERROR].encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


# what the management of schedules shows and does


def shown() -> Any:
    return select(schedules, (~is_idle()).label("running"))


def list_schedules(connection: Connection) -> list[dict[str, Any]]:
    """All of them by name: as many as are declared, however long the service has run."""
    return [dict(row) for row in connection.execute(shown().order_by(schedules.c.name)).mappings()]


def get_schedule(connection: Connection, name: str) -> dict[str, Any]:
    """One schedule. Raises NotFound."""
    row = None
    if NAME.fullmatch(name):
        row = connection.execute(shown().where(schedules.c.name == name)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no schedule '{name[:64]}'".replace("\x00", "\ufffd"), code="schedule_not_found")
    return dict(row)


def set_paused(connection: Connection, name: str, paused: bool, caller: Caller) -> dict[str, Any]:
    """Pause or resume; a resumed schedule is next due one pace from now. Raises NotFound.

    A pause lets a run that is going end; what is paused or resumed already stays as it is.
    """
    get_schedule(connection, name)
    values: dict[str, Any] = {"paused": paused}
    if not paused:
        values["next_at"] = func.clock_timestamp() + seconds(schedules.c.every_seconds)
    other = update(schedules).where(schedules.c.name == name, schedules.c.paused.is_not(paused)).values(values)
    if connection.execute(other).rowcount:
        tell(connection, "schedule_paused" if paused else "schedule_resumed", name, caller)
    return get_schedule(connection, name)


def run_now(connection: Connection, name: str, caller: Caller) -> dict[str, Any]:
    """Make a schedule due, so that the next tick runs it. Raises NotFound, or Conflict while it is paused or runs."""
    get_schedule(connection, name)
    due = {"next_at": func.least(schedules.c.next_at, func.clock_timestamp())}
    free = schedules.c.name == name, ~schedules.c.paused, is_idle()
    if connection.execute(update(schedules).where(*free).values(due)).rowcount == 0:
        if get_schedule(connection, name)["paused"]:
            raise Conflict(f"{name} is paused: resume it first", code="schedule_paused")
        raise Conflict(f"{name} is running", code="schedule_running")
    tell(connection, "schedule_run_requested", name, caller)
    return get_schedule(connection, name)


def tell(connection: Connection, topic: str, name: str, caller: Caller) -> None:
    note(connection, topic, subject=(KIND, name), actor=caller.name, correlation_id=caller.correlation_id)
