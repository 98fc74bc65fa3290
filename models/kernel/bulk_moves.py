"""An operation over many subjects as a subject of its own: its states, its table, its moves."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    Table,
    Text,
    case,
    func,
    literal,
    null,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from models.kernel.dead_letters import letter_for
from models.kernel.expressions import seconds
from models.kernel.jobs import NORMAL, Spec
from models.kernel.machine import Machine
from models.kernel.metadata import metadata
from models.kernel.transition import Birth, Job, Subject, Told, Transition

QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED = "queued", "running", "completed", "failed", "cancelled"

OPERATION = Machine(
    kind="operation",
    initial=QUEUED,
    terminal=frozenset({COMPLETED, FAILED, CANCELLED}),
    edges={
        QUEUED: frozenset({RUNNING, FAILED, CANCELLED}),
        RUNNING: frozenset({COMPLETED, FAILED, CANCELLED, QUEUED}),
        COMPLETED: frozenset(),
        FAILED: frozenset({QUEUED}),
        CANCELLED: frozenset(),
    },
)

TASK = "bulk.run"
QUEUE = "system"
MAX_ATTEMPTS = 5

bulk_operations = Table(
    "bulk_operations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("act", Text, nullable=False),
    Column("ids", JSONB(none_as_null=True), comment="what it is about by name, or"),
    Column("filter", JSONB(none_as_null=True), comment="by what it is like"),
    Column("total", Integer, comment="how many ids; null: a filter finds out on the way"),
    Column("options", JSONB, nullable=False),
    Column("expires_in_seconds", Double, nullable=False, comment="counted from asked_at; nothing is done later"),
    Column("position", JSONB(none_as_null=True), comment="what lies behind it is done; null: nothing yet"),
    Column("matched", Integer, nullable=False, server_default=text("0")),
    Column("done", Integer, nullable=False, server_default=text("0")),
    Column("refused", JSONB, nullable=False, server_default=text("'{}'"), comment="how many, by code"),
    Column("examples", JSONB, nullable=False, server_default=text("'[]'"), comment="the first that were refused"),
    Column("tenant", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("revision", Integer, nullable=False, server_default=text("1")),
    Column("correlation_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("asked_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("started_at", DateTime(timezone=True)),
    Column("completed_at", DateTime(timezone=True)),
    Column("error", Text),
    Column("error_code", Text),
    CheckConstraint("state IN ('cancelled', 'completed', 'failed', 'queued', 'running')", name="state"),
    CheckConstraint("num_nonnulls(ids, filter) = 1 AND (ids IS NULL) = (total IS NULL)", name="selection"),
    CheckConstraint("expires_in_seconds > 0", name="expiry"),
    CheckConstraint("done BETWEEN 0 AND matched", name="counts"),
    CheckConstraint("(state IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)", name="ended"),
    CheckConstraint("state <> 'failed' OR error IS NOT NULL", name="failed_has_error"),
    CheckConstraint("state <> 'running' OR started_at IS NOT NULL", name="running_has_start"),
    Index("bulk_operations_newest_ix", text("created_at DESC"), text("id DESC")),
    Index("bulk_operations_state_ix", "state", text("created_at DESC"), text("id DESC")),
    postgresql_with={"fillfactor": 70},
)

SUBJECT = Subject(OPERATION, bulk_operations)


def about(operation: Any) -> dict[str, Any]:
    names = ("act", "matched", "done", "refused", "error", "error_code")
    return {"operation_id": operation.id, **{name: operation[name] for name in names}}


def told(topic: Any) -> Told:
    return Told(
        topic=lambda operation: topic(operation) if callable(topic) else literal(topic),
        label=lambda operation: operation.act,
        body=about,
        reason=lambda operation: operation.error_code,
    )


def topic_of_end(operation: Any) -> Any:
    states = {state: f"operation_{state}" for state in (COMPLETED, FAILED)}
    return case(states, value=operation.state, else_=f"operation_{CANCELLED}")


def owed_run(operation: Any) -> Spec:
    """No run may start once the time of its operation is over."""
    return Spec(
        task=TASK,
        queue=QUEUE,
        priority=NORMAL,
        tenant=operation.tenant,
        timeout_seconds=operation.expires_in_seconds,
        expires_at=func.clock_timestamp() + seconds(operation.expires_in_seconds),
        max_attempts=MAX_ATTEMPTS,
    )


ASK = Birth(
    subject=SUBJECT,
    given={
        "id": Text,
        "act": Text,
        "ids": JSONB,
        "filter": JSONB,
        "total": Integer,
        "options": JSONB,
        "expires_in_seconds": Double,
        "tenant": Text,
        "created_by": Text,
    },
    owes=owed_run,
    told=told("operation_queued"),
)
TAKE = Transition(
    subject=SUBJECT,
    sources=frozenset({QUEUED}),
    targets=frozenset({RUNNING}),
    set=lambda operation, _g: {"started_at": func.coalesce(operation.started_at, func.clock_timestamp())},
    job=Job.LEASE,
    told=told("operation_started"),
)
RETURN, RETRY = (
    Transition(
        subject=SUBJECT,
        sources=frozenset({RUNNING}),
        targets=frozenset({QUEUED}),
        job=job,
        told=told("operation_released"),
    )
    for job in (Job.RETURN, Job.RETRY)
)


def letter(moved: Any) -> list[Any]:
    return [letter_for(moved, task=TASK, kind=OPERATION.kind, when=moved.c.state == FAILED)]


def ending(sources: frozenset[str], targets: frozenset[str], job: Job) -> Transition:
    return Transition(
        subject=SUBJECT,
        sources=sources,
        targets=targets,
        given={"error": Text, "error_code": Text},
        set=lambda _o, given: {
            "completed_at": func.clock_timestamp(),
            "error": given.error,
            "error_code": given.error_code,
        },
        job=job,
        also=letter,
        told=told(topic_of_end),
    )


SETTLE = ending(frozenset({RUNNING}), frozenset({COMPLETED, FAILED}), Job.END)
EXPIRE = ending(frozenset({QUEUED}), frozenset({FAILED}), Job.END_UNSTARTED)
CANCEL = ending(frozenset({QUEUED, RUNNING}), frozenset({CANCELLED}), Job.END_ANY)
RESUME = Transition(
    subject=SUBJECT,
    sources=frozenset({FAILED}),
    targets=frozenset({QUEUED}),
    set=lambda _o, _g: {
        "asked_at": func.clock_timestamp(),
        "completed_at": null(),
        "error": null(),
        "error_code": null(),
    },
    owes=owed_run,
    told=told("operation_queued"),
)
