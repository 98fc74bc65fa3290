"""Deliveries: what each subscription is owed, and what became of it.

One delivery brings one event to one receiver, at least once and always under the same
id. The lane is the subscription, so that a receiver holds one worker's thread at most
and first tries are made in the order of the ledger; a delivery that has to be tried
again lets those after it pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, delete, func, select, text

from models.kernel import clock, ids
from models.kernel.backoff import backoff_seconds
from models.kernel.clients import Caller
from models.kernel.errors import Conflict, IllegalTransition, LeaseLost, NotFound
from models.kernel.expressions import seconds
from models.kernel.jobs import Held, jobs
from models.kernel.settings import settings
from models.kernel.webhooks.moves import (
    BIRTH,
    EXPIRE,
    LANE,
    RELEASE,
    RESEND,
    RETRY,
    SETTLE,
    STRAND,
    TAKE,
    TEST,
    lane_of,
)
from models.kernel.webhooks.tables import DELETED, DISABLED, ENABLED, FAILED, PENDING, deliveries, webhooks

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 3600.0
KEEP_DAYS = 7
FORGET_AT_ONCE, FORGET_PASSES = 5000, 20
STRANDED_AT_ONCE = 500

WEBHOOK_DISABLED = "webhook_disabled"

Row = Mapping[Any, Any]


def create_test_delivery(connection: Connection, webhook: Row, caller: Caller) -> Row:
    """Owe a subscription an event that never happened, so that its receiver can be tried."""
    now = clock.utcnow().isoformat()
    data = {"seq": None, "type": TEST, "webhook_id": webhook["id"], "at": now}
    row = {
        "id": "msg_" + ids.new_uuid().replace("-", ""),
        "webhook_id": webhook["id"],
        "tenant": webhook["tenant"],
        "topic": TEST,
        "payload": {"type": TEST, "timestamp": now, "data": data},
        "max_attempts": settings().webhook_attempts,
        "correlation_id": caller.correlation_id,
    }
    return BIRTH(connection, [row], actor=caller.name)[0]


def take_delivery(connection: Connection, job_id: int, worker: str) -> Row | None:
    """Lease the job and begin a try; None when it is no longer to be had. Raises LaneBusy."""
    rows = TAKE(connection, [{"job_id": job_id}], actor=worker)
    return rows[0] if rows else None


def answer_of(status_code: int | None, error: str | None, error_code: str | None) -> dict[str, Any]:
    return {"status_code": status_code, "error": error, "error_code": error_code}


def settle_delivery(connection: Connection, taken: Row, to: str, answer: Row, worker: str) -> int:
    """Record how a delivery ended; answers how many have failed in a row. Raises LeaseLost."""
    held = {"job_id": taken["job_id"], "fence": taken["fence"]}
    if not SETTLE(connection, [{**held, **answer, "to": to}], actor=worker):
        raise LeaseLost(f"The try under fence {taken['fence']} no longer owns {taken['id']}")
    return int(connection.scalar(select(webhooks.c.failures).where(webhooks.c.id == taken["webhook_id"])) or 0)


def retry_delivery(connection: Connection, taken: Row, answer: Row, worker: str, wished: float = 0.0) -> float:
    """Try again later; answers after how many seconds. What the receiver wished for is honoured within bounds.

    Raises LeaseLost.
    """
    pause = backoff_seconds(taken["attempt"], FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
    delay = max(pause, min(wished, LONGEST_PAUSE_SECONDS))
    held = {"job_id": taken["job_id"], "fence": taken["fence"], "delay_seconds": delay}
    if not RETRY(connection, [{**held, **answer}], actor=worker):
        raise LeaseLost(f"The try under fence {taken['fence']} no longer owns {taken['id']}")
    return delay


def release_delivery(connection: Connection, taken: Row, worker: str) -> None:
    """Give a try back that was cut short by the end of the process; it is not counted."""
    RELEASE(connection, [{"job_id": taken["job_id"], "fence": taken["fence"]}], actor=worker)


def lose_deliveries(connection: Connection, held: Sequence[Held]) -> int:
    """The workers of these fell silent: they are tried again, under the same id, while tries are left."""
    lost = answer_of(None, "The worker fell silent during the delivery", "worker_lost")
    again = [
        {
            "job_id": job.id,
            "fence": job.fence,
            "delay_seconds": backoff_seconds(job.attempt, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS),
            **lost,
        }
        for job in held
        if job.attempt < job.max_attempts
    ]
    over = [
        {"job_id": job.id, "fence": job.fence, "to": FAILED, **lost} for job in held if job.attempt >= job.max_attempts
    ]
    moved = RETRY(connection, again, actor="reaper") if again else []
    return len(moved) + (len(SETTLE(connection, over, actor="reaper")) if over else 0)


def expire_deliveries(connection: Connection, held: Sequence[Held]) -> int:
    """Nobody came to these within EXPIRY_SECONDS, or their retries took longer."""
    late = answer_of(None, "The delivery was not made in time", "expired")
    return len(EXPIRE(connection, [{"job_id": job.id, **late} for job in held], actor="reaper"))


def strand_deliveries(connection: Connection) -> int:
    """End what is pending for subscriptions that are disabled or deleted, some at a time."""
    off = select(webhooks.c.id).where(webhooks.c.state.in_((DISABLED, DELETED)))
    pending = (
        select(deliveries.c.id)
        .where(deliveries.c.webhook_id.in_(off), deliveries.c.state == PENDING)
        .limit(STRANDED_AT_ONCE)
    )
    found = connection.scalars(pending).all()
    if not found:
        return 0
    off_now = answer_of(None, "The subscription is disabled", WEBHOOK_DISABLED)
    return len(STRAND(connection, [{"id": name, **off_now} for name in sorted(found)], actor="feeder"))


def resend_delivery(connection: Connection, delivery: Row, caller: Caller) -> Row:
    """Owe a delivery again that has ended, under its old id.

    Raises IllegalTransition while it is on its way.
    """
    given = {"max_attempts": settings().webhook_attempts, "correlation_id": caller.correlation_id}
    row = {"id": delivery["id"], **given}
    moved = RESEND(connection, [row], actor=caller.name, correlation_id=caller.correlation_id)
    if not moved:
        state = get_delivery(connection, delivery["webhook_id"], delivery["id"])["state"]
        raise IllegalTransition(f"The delivery is already {state}", state=state, code=f"delivery_{state}")
    return moved[0]


def find_following_job(connection: Connection, delivery_id: str) -> tuple[int, str, str] | None:
    """The job, the delivery and the correlation id that are next, and due, for the receiver of this one."""
    lane = select(lane_of(deliveries.c.webhook_id)).where(deliveries.c.id == delivery_id).scalar_subquery()
    due = and_(jobs.c.fence.is_(None), ~jobs.c.waits, jobs.c.run_at <= func.clock_timestamp())
    query = select(jobs.c.id, jobs.c.subject_id, jobs.c.correlation_id).where(jobs.c.lane == lane, due)
    row = connection.execute(query.order_by(jobs.c.priority, jobs.c.id).limit(1)).one_or_none()
    return None if row is None else (row.id, row.subject_id, row.correlation_id)


def find_lane(connection: Connection, job_id: int) -> Row | None:
    """The lane and the tenant of a delivery's job that nobody has taken."""
    query = select(jobs.c.lane, jobs.c.tenant).where(jobs.c.id == job_id, jobs.c.fence.is_(None))
    return connection.execute(query).mappings().one_or_none()


def lane_named(webhook_id: str) -> str:
    """As `lane_of` names it in the database."""
    return f"{LANE}{webhook_id}"


def refuse_disabled(webhook: Row) -> None:
    """Raises Conflict when nothing may be sent to a subscription."""
    if webhook["state"] != ENABLED:
        raise Conflict("The webhook is disabled: enable it first", code=WEBHOOK_DISABLED)


def get_delivery(connection: Connection, webhook_id: str, delivery_id: str) -> Row:
    """One delivery of a subscription. Raises NotFound."""
    query = select(deliveries).where(deliveries.c.id == delivery_id, deliveries.c.webhook_id == webhook_id)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound("There is no such delivery", code="delivery_not_found")
    return row


def list_deliveries(
    connection: Connection, webhook_id: str, *, state: str | None, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Row]:
    """Deliveries of a subscription, newest first, beyond the (created_at, id) of the page before."""
    query = select(deliveries).where(deliveries.c.webhook_id == webhook_id)
    if state is not None:
        query = query.where(deliveries.c.state == state)
    if after is not None:
        query = query.where(text("(created_at, id) < (:moment, :last)").bindparams(moment=after[0], last=after[1]))
    newest = query.order_by(deliveries.c.created_at.desc(), deliveries.c.id.desc())
    return connection.execute(newest.limit(limit)).mappings().all()


def forget_old_deliveries(connection: Connection) -> int:
    """Delete what ended KEEP_DAYS ago, a bounded number of times so many, and deleted subscriptions owed nothing.

    `connection` must commit each statement by itself: a long transaction would hold everybody up.
    """
    old = (
        select(deliveries.c.id)
        .where(deliveries.c.ended_at < func.clock_timestamp() - seconds(KEEP_DAYS * 86_400.0))
        .order_by(deliveries.c.ended_at)
        .limit(FORGET_AT_ONCE)
    )
    forgotten = 0
    for _ in range(FORGET_PASSES):
        some = connection.execute(delete(deliveries).where(deliveries.c.id.in_(old))).rowcount
        forgotten += some
        if some < FORGET_AT_ONCE:
            break
    empty = ~select(deliveries.c.id).where(deliveries.c.webhook_id == webhooks.c.id).exists()
    connection.execute(delete(webhooks).where(webhooks.c.state == DELETED, empty))
    return forgotten
