"""Jobs: the durable backlog, one row for each thing that a worker owes.

A job is ready (nobody has it), leased (`fence` is set) or gone (settled). The
fence is drawn from one sequence that never restarts; whoever renews, settles,
retries or releases must name the job and its live fence. A job in a lane waits
until it is the lane's head, and a partial unique index lets only one job of a lane
be leased.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    Identity,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    func,
    select,
    text,
    update,
)
from sqlalchemy import Sequence as DatabaseSequence
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from models.kernel.expressions import among, seconds
from models.kernel.metadata import metadata
from models.kernel.settings import settings

CRITICAL, HIGH, NORMAL, LOW = range(4)

fence_seq = DatabaseSequence("fence_seq", metadata=metadata)

jobs = Table(
    "jobs",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("task", Text, nullable=False),
    Column("subject_kind", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False, server_default=text("2")),
    Column("tenant", Text, nullable=False, server_default="default"),
    Column("lane", Text, comment="what must run one at a time: a robot, a symbol"),
    Column("waits", Boolean, nullable=False, server_default=text("false"), comment="behind another of its lane"),
    Column(
        "keeps_turn",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="nobody of its lane overtakes it, not even while it rests until it is tried again",
    ),
    Column("args", JSONB, nullable=False, server_default=text("'{}'")),
    Column("correlation_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("run_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("expires_at", DateTime(timezone=True)),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("max_attempts", Integer, nullable=False, server_default=text("1")),
    Column("timeout_seconds", Double, nullable=False),
    Column("dispatched_at", DateTime(timezone=True)),
    Column("dispatches", Integer, nullable=False, server_default=text("0")),
    Column("lease_until", DateTime(timezone=True), comment="unindexed, so that renewals stay HOT"),
    Column("fence", BigInteger),
    UniqueConstraint("subject_kind", "subject_id", "task"),
    CheckConstraint("priority BETWEEN 0 AND 3", name="priority"),
    CheckConstraint("attempt BETWEEN 0 AND max_attempts", name="attempt"),
    CheckConstraint("timeout_seconds > 0", name="timeout"),
    CheckConstraint("(fence IS NULL) = (lease_until IS NULL)", name="lease_has_fence"),
    CheckConstraint("NOT waits OR (lane IS NOT NULL AND fence IS NULL)", name="waits_in_lane"),
    CheckConstraint("NOT keeps_turn OR lane IS NOT NULL", name="keeps_turn_in_lane"),
    Index("jobs_lane_leased_ix", "lane", unique=True, postgresql_where=text("fence IS NOT NULL AND lane IS NOT NULL")),
    Index(
        "jobs_ready_ix",
        "queue",
        "priority",
        "tenant",
        "run_at",
        "id",
        postgresql_where=text("fence IS NULL AND dispatched_at IS NULL AND NOT waits"),
    ),
    Index("jobs_lane_ix", "lane", "priority", "id", postgresql_where=text("lane IS NOT NULL")),
    Index(
        "jobs_sent_ix", "queue", "dispatched_at", postgresql_where=text("fence IS NULL AND dispatched_at IS NOT NULL")
    ),
    Index("jobs_leased_ix", "id", postgresql_where=text("fence IS NOT NULL")),
    Index("jobs_expiry_ix", "expires_at", postgresql_where=text("fence IS NULL AND expires_at IS NOT NULL")),
    postgresql_with={"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.02, "autovacuum_vacuum_threshold": 500},
)


@dataclass(frozen=True)
class Spec:
    """What a transition that owes work asks for. Each field is a constant or a column expression.

    `turn` is the place among those that are owed by the same call; without it the subjects' ids decide.
    `keeps_turn`: its lane is carried out strictly in order; while it rests until it is tried again, the others wait.
    `sends_to`: a queue for which whoever commits the call sends the message itself while that queue is calm: what it
    has to send stands as `sent` in the answer.
    """

    task: str
    queue: Any
    priority: Any
    timeout_seconds: Any
    lane: Any = None
    tenant: Any = "default"
    args: Any = None
    expires_at: Any = None
    max_attempts: Any = 1
    turn: Any = None
    keeps_turn: bool = False
    sends_to: str | None = None


@dataclass(frozen=True)
class Held:
    """A job as a sweep sees it: enough to act on it under its present fence."""

    id: int
    subject_id: str
    fence: int | None
    attempt: int
    max_attempts: int


Sweep = Callable[[Connection, Sequence[Held]], int]


@dataclass(frozen=True)
class Work:
    """A kind of job, with the domain's word on what becomes of one that nobody finished.

    `lost`: its worker fell silent. `expired`: it was not started in time. `together`: most of them in one message.
    """

    task: str
    queue: str
    lost: Sweep
    expired: Sweep
    together: int = 1


REGISTRY: dict[str, Work] = {}


def register(work: Work) -> None:
    REGISTRY[work.task] = work


# Locked in id order like every batch of jobs, so that no renewal deadlocks with what ends them.
_LIVE = (
    select(jobs.c.id)
    .where(
        jobs.c.id == func.any(bindparam("ids", type_=ARRAY(BigInteger))),
        jobs.c.fence == func.any(bindparam("fences", type_=ARRAY(BigInteger))),
    )
    .order_by(jobs.c.id)
    .with_for_update(key_share=True)
    .cte("live")
)
_RENEW = (
    update(jobs)
    .where(among(jobs.c.id, _LIVE.c.id))
    .values(lease_until=func.clock_timestamp() + seconds(bindparam("seconds")))
    .returning(jobs.c.id, jobs.c.fence)
)


def renew(connection: Connection, held: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Extend the leases of (job id, fence) pairs; answers the pairs that are still live."""
    if not held:
        return set()
    rows = connection.execute(
        _RENEW,
        {"ids": [h[0] for h in held], "fences": [h[1] for h in held], "seconds": settings().lease_seconds},
    )
    return {(row.id, row.fence) for row in rows}


def is_live(connection: Connection, job_id: int, fence: int) -> bool:
    """Whether this fence still owns the job: read in a statement of its own, just before acting."""
    return connection.scalar(select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.fence == fence)) is not None


def list_lost(connection: Connection, limit: int = 500) -> dict[str, list[Held]]:
    """Leased jobs whose worker fell silent, by task.

    None are listed until Postgres has been up for one lease, so that workers cut off by its restart can renew first.
    """
    since_start = func.clock_timestamp() - func.pg_postmaster_start_time()
    rested = since_start > seconds(settings().lease_seconds)
    return _by_task(connection, [jobs.c.fence.is_not(None), jobs.c.lease_until < func.clock_timestamp(), rested], limit)


def list_expired(connection: Connection, limit: int = 500) -> dict[str, list[Held]]:
    """Jobs that nobody started in time, by task."""
    return _by_task(connection, [jobs.c.fence.is_(None), jobs.c.expires_at < func.clock_timestamp()], limit)


def _by_task(connection: Connection, where: list[Any], limit: int) -> dict[str, list[Held]]:
    columns = (jobs.c.id, jobs.c.subject_id, jobs.c.fence, jobs.c.attempt, jobs.c.max_attempts)
    rows = connection.execute(select(jobs.c.task, *columns).where(*where).order_by(jobs.c.id).limit(limit))
    found: dict[str, list[Held]] = {}
    for task, *held in rows:
        found.setdefault(task, []).append(Held(*held))
    return found
