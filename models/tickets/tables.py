"""The tickets, and the stops that are owed to robots."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    func,
    literal,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from models.kernel.metadata import metadata
from models.tickets.states import TICKET

PRIORITIES = ("critical", "high", "normal", "low")
MAX_TIMEOUT_SECONDS = 3600
DEFAULT_TARGET = "default"
EVERYTHING = "all"  # the scope of an e-stop over every robot; no robot may be called that


def lane_of(target: Any) -> Any:
    """The lane of a robot's motions: one at a time. `target` is a text or a column."""
    return literal("robot:").concat(target)


def one_of(column: str, values: object) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"  # type: ignore[attr-defined]


tickets = Table(
    "tickets",
    metadata,
    Column("id", Text, primary_key=True, server_default=func.new_ticket_id()),
    Column("command", Text, nullable=False),
    Column("params", JSONB, nullable=False),
    Column("priority", Text, nullable=False),
    Column("timeout_seconds", Integer, nullable=False),
    Column("metadata", JSONB, nullable=False),
    Column("target", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("revision", Integer, nullable=False, server_default=text("1")),
    Column("correlation_id", Text, nullable=False, comment="of the request that last set it going"),
    Column("execution", Integer, nullable=False, server_default=text("0"), comment="how often it was set going"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("expires_at", DateTime(timezone=True), comment="an accepted motion may not start later"),
    Column("started_at", DateTime(timezone=True)),
    Column("completed_at", DateTime(timezone=True)),
    Column("execution_time_ms", Double),
    Column("result", JSONB),
    Column("error", Text),
    Column("error_code", Text),
    CheckConstraint(one_of("state", sorted(TICKET.states)), name="state"),
    CheckConstraint(one_of("priority", PRIORITIES), name="priority"),
    CheckConstraint(f"timeout_seconds BETWEEN 1 AND {MAX_TIMEOUT_SECONDS}", name="timeout"),
    CheckConstraint(f"lower(target) <> '{EVERYTHING}'", name="target"),
    CheckConstraint("id ~ '^tick-[0-9]{8}-[0-9a-f]{8}$'", name="id"),
    CheckConstraint("jsonb_typeof(params) = 'object' AND jsonb_typeof(metadata) = 'object'", name="objects"),
    CheckConstraint("(state IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)", name="ended"),
    CheckConstraint("state <> 'completed' OR result IS NOT NULL", name="completed_has_result"),
    CheckConstraint("state <> 'failed' OR error IS NOT NULL", name="failed_has_error"),
    CheckConstraint("state <> 'executing' OR started_at IS NOT NULL", name="executing_has_start"),
    Index("tickets_newest_ix", text("created_at DESC"), text("id DESC")),
    Index("tickets_state_ix", "state", text("created_at DESC"), text("id DESC")),
    Index("tickets_command_ix", "command", text("created_at DESC"), text("id DESC")),
    # Filters on what most tickets share run along `newest`; only the exceptions are indexed.
    Index(
        "tickets_priority_ix",
        "priority",
        text("created_at DESC"),
        text("id DESC"),
        postgresql_where=text("priority <> 'normal'"),
    ),
    Index(
        "tickets_target_ix",
        "target",
        text("created_at DESC"),
        text("id DESC"),
        postgresql_where=text("target <> 'default'"),
    ),
    # What an e-stop sweeps: as small as what is going on.
    Index("tickets_live_ix", "state", "target", postgresql_where=text("state IN ('executing', 'queued')")),
    postgresql_with={"fillfactor": 85},
)

stop_orders = Table(
    "stop_orders",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("target", Text, nullable=False),
    Column("ticket_id", Text, nullable=False),
    Column("fence", BigInteger, nullable=False, comment="drawn after the revoked command's, so that it prevails"),
    Column("reason", Text, nullable=False),
    Column("correlation_id", Text, nullable=False),
    Column("ordered_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("tries", Integer, nullable=False, server_default=text("0")),
    Column("next_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("done_at", DateTime(timezone=True)),
    Column("error", Text),
    Column("execution", Integer, comment="of the ticket: which attempt was revoked"),
    Column("not_after", DateTime(timezone=True), comment="the revoked attempt begins nothing later"),
    Column("settled_at", DateTime(timezone=True), comment="its worker has let go of the robot"),
    CheckConstraint("tries >= 0", name="tries"),
    Index("stop_orders_due_ix", "next_at", postgresql_where=text("done_at IS NULL")),
)
