"""The moves of a delivery, each one statement: what it owes, what it changes, what the ledger is told."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Integer, Text, and_, case, func, literal, null, or_, update
from sqlalchemy.dialects.postgresql import JSONB

from models.kernel.expressions import seconds
from models.kernel.jobs import LOW, NORMAL, Spec
from models.kernel.transition import Birth, Job, Subject, Told, Transition
from models.kernel.webhooks.tables import (
    DELIVERED,
    DELIVERING,
    DELIVERY,
    ENABLED,
    ENDED,
    FAILED,
    PENDING,
    deliveries,
    webhooks,
)

SUBJECT = Subject(DELIVERY, deliveries)
TASK = "webhooks.deliver"
QUEUE = "hooks"
LANE = "webhook:"
TEST = "webhook_test"

LONGEST_TRY_SECONDS = 150.0  # above the largest webhook_timeout
EXPIRY_SECONDS = 86_400.0


def lane_of(webhook_id: Any) -> Any:
    """The lane of a receiver: one delivery at a time. `webhook_id` is a column."""
    return literal(LANE).concat(webhook_id)


def owed(delivery: Any) -> Spec:
    return Spec(
        task=TASK,
        queue=QUEUE,
        priority=case((delivery.topic == TEST, NORMAL), else_=LOW),
        timeout_seconds=LONGEST_TRY_SECONDS,
        lane=lane_of(delivery.webhook_id),
        tenant=delivery.tenant,
        expires_at=func.clock_timestamp() + seconds(EXPIRY_SECONDS),
        max_attempts=delivery.max_attempts,
    )


def told(topic: str) -> Told:
    return Told(
        topic=lambda _d: literal(topic),
        reason=lambda d: d.error_code,
        body=lambda d: {"webhook_id": d.webhook_id, "seq": d.seq, "tries": d.tries, "status_code": d.status_code},
    )


def answered(_delivery: Any, given: Any) -> dict[str, Any]:
    return {"status_code": given.status_code, "error": given.error, "error_code": given.error_code, "next_at": null()}


ANSWER = {"status_code": Integer, "error": Text, "error_code": Text}


def ended(_delivery: Any, given: Any) -> dict[str, Any]:
    return answered(_delivery, given) | {"ended_at": func.clock_timestamp()}


def counted(moved: Any) -> list[Any]:
    """How many deliveries to this receiver have failed in a row; what a disabling strands is no failure of its."""
    failed = moved.c.state == FAILED
    counts = and_(webhooks.c.state == ENABLED, or_(failed, webhooks.c.failures > 0))
    mine = and_(webhooks.c.id == moved.c.webhook_id, counts)
    failures = case((failed, webhooks.c.failures + 1), else_=0)
    return [update(webhooks).where(mine).values(failures=failures).returning(webhooks.c.id)]


BIRTH = Birth(
    subject=SUBJECT,
    given={
        "id": Text,
        "webhook_id": Text,
        "tenant": Text,
        "seq": BigInteger,
        "topic": Text,
        "payload": JSONB,
        "max_attempts": Integer,
        "correlation_id": Text,
    },
    owes=owed,
    told=told("delivery_created"),
)
TAKE = Transition(
    subject=SUBJECT,
    sources=frozenset({PENDING}),
    targets=frozenset({DELIVERING}),
    set=lambda delivery, _g: {"tries": delivery.tries + 1, "next_at": null()},
    job=Job.LEASE,
    told=told("delivery_started"),
)
SETTLE = Transition(
    subject=SUBJECT,
    sources=frozenset({DELIVERING}),
    targets=ENDED,
    given=ANSWER,
    set=ended,
    job=Job.END,
    also=counted,
    told=Told(
        topic=lambda d: case((d.state == DELIVERED, "delivery_delivered"), else_="delivery_failed"),
        reason=lambda d: d.error_code,
        body=told("").body,
    ),
)
RETRY = Transition(
    subject=SUBJECT,
    sources=frozenset({DELIVERING}),
    targets=frozenset({PENDING}),
    given=ANSWER,
    set=lambda d, g: answered(d, g) | {"next_at": func.clock_timestamp() + seconds(g.delay_seconds)},
    job=Job.RETRY,
    told=told("delivery_postponed"),
)
RELEASE = Transition(
    subject=SUBJECT,
    sources=frozenset({DELIVERING}),
    targets=frozenset({PENDING}),
    set=lambda delivery, _g: {"tries": delivery.tries - 1},
    job=Job.RETURN,
    told=told("delivery_released"),
)
STRAND = Transition(
    subject=SUBJECT,
    sources=frozenset({PENDING}),
    targets=frozenset({FAILED}),
    given=ANSWER,
    set=ended,
    job=Job.END_ANY,
    told=told("delivery_failed"),
)
EXPIRE = Transition(
    subject=SUBJECT,
    sources=frozenset({PENDING}),
    targets=frozenset({FAILED}),
    given=ANSWER,
    set=ended,
    job=Job.END_UNSTARTED,
    told=told("delivery_failed"),
)
RESEND = Transition(
    subject=SUBJECT,
    sources=ENDED,
    targets=frozenset({PENDING}),
    given={"max_attempts": Integer, "correlation_id": Text},
    set=lambda _d, given: {
        "max_attempts": given.max_attempts,
        "correlation_id": given.correlation_id,
        "tries": 0,
        "ended_at": null(),
        "status_code": null(),
        "error": null(),
        "error_code": null(),
    },
    owes=owed,
    told=told("delivery_resent"),
)
