"""Webhooks: subscriptions, the deliveries they are owed, and how far the ledger was read for them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from models.kernel.machine import Machine
from models.kernel.metadata import metadata

ENABLED, DISABLED, DELETED = "enabled", "disabled", "deleted"
PENDING, DELIVERING, DELIVERED, FAILED = "pending", "delivering", "delivered", "failed"
ENDED = frozenset({DELIVERED, FAILED})

WEBHOOK = Machine(
    kind="webhook",
    initial=ENABLED,
    terminal=frozenset({DELETED}),
    edges={
        ENABLED: frozenset({DISABLED, DELETED}),
        DISABLED: frozenset({ENABLED, DELETED}),
        DELETED: frozenset(),
    },
)

DELIVERY = Machine(
    kind="webhook_delivery",
    initial=PENDING,
    terminal=ENDED,
    edges={
        PENDING: frozenset({DELIVERING, FAILED}),
        DELIVERING: frozenset({DELIVERED, FAILED, PENDING}),
        DELIVERED: frozenset({PENDING}),
        FAILED: frozenset({PENDING}),
    },
)


def one_of(states: Any) -> str:
    return f"state IN ({', '.join(repr(state) for state in sorted(states))})"


webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("topics", ARRAY(Text), nullable=False),
    Column("description", Text, nullable=False),
    Column("secret", Text, comment="in clear: signing needs it"),
    Column("previous_secret", Text),
    Column("previous_until", DateTime(timezone=True), comment="until then both secrets sign"),
    Column("after_seq", BigInteger, nullable=False, comment="events up to this one are not for it"),
    Column("failures", Integer, nullable=False, server_default=text("0"), comment="failed deliveries in a row"),
    Column("disabled_reason", Text),
    Column("state", Text, nullable=False),
    Column("revision", Integer, nullable=False, server_default=text("1")),
    Column("correlation_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    CheckConstraint(one_of(WEBHOOK.states), name="state"),
    CheckConstraint("id ~ '^wh_[0-9a-f]{12}$'", name="id"),
    CheckConstraint("url ~ '^https?://' AND length(url) <= 2048", name="url"),
    CheckConstraint("cardinality(topics) BETWEEN 1 AND 32", name="topics"),
    CheckConstraint("(previous_secret IS NULL) = (previous_until IS NULL)", name="overlap"),
    CheckConstraint("(state = 'deleted') = (secret IS NULL)", name="secret"),
    CheckConstraint("state <> 'disabled' OR disabled_reason IS NOT NULL", name="disabled_has_reason"),
    CheckConstraint("failures >= 0 AND after_seq >= 0", name="counts"),
    Index("webhooks_newest_ix", text("created_at DESC"), text("id DESC"), postgresql_where=text("state <> 'deleted'")),
    Index("webhooks_enabled_ix", "tenant", postgresql_where=text("state = 'enabled'")),
)

deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", Text, primary_key=True, comment="the receiver's webhook-id, the same at every try"),
    Column("webhook_id", Text, ForeignKey("webhooks.id"), nullable=False),
    Column("tenant", Text, nullable=False),
    Column("seq", BigInteger, comment="of the event; null: a test"),
    Column("topic", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("tries", Integer, nullable=False, server_default=text("0")),
    Column("max_attempts", Integer, nullable=False),
    Column("next_at", DateTime(timezone=True), comment="of a retry"),
    Column("status_code", Integer, comment="what the receiver answered last"),
    Column("error", Text),
    Column("error_code", Text),
    Column("state", Text, nullable=False),
    Column("revision", Integer, nullable=False, server_default=text("1")),
    Column("correlation_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("ended_at", DateTime(timezone=True)),
    UniqueConstraint("webhook_id", "seq"),
    CheckConstraint(one_of(DELIVERY.states), name="state"),
    CheckConstraint("id ~ '^msg_[0-9a-f_]{12,40}$'", name="id"),
    CheckConstraint("tries >= 0 AND max_attempts >= 1", name="tries"),
    CheckConstraint("(state IN ('delivered', 'failed')) = (ended_at IS NOT NULL)", name="ended"),
    CheckConstraint("state <> 'failed' OR error_code IS NOT NULL", name="failed_has_error"),
    CheckConstraint("status_code BETWEEN 100 AND 999", name="status_code"),
    Index("webhook_deliveries_newest_ix", "webhook_id", text("created_at DESC"), text("id DESC")),
    Index("webhook_deliveries_state_ix", "webhook_id", "state", text("created_at DESC"), text("id DESC")),
    Index("webhook_deliveries_ended_ix", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    postgresql_with={"fillfactor": 85},
)

webhook_position = Table(
    "webhook_position",
    metadata,
    Column("singleton", Text, primary_key=True, server_default="row"),
    Column("seq", BigInteger, nullable=False),
    CheckConstraint("singleton = 'row'", name="singleton"),
)
