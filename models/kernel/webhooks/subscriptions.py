"""Subscriptions: who is to be told of what, where, and signed with which secret.

A subscription belongs to a tenant; its clients and any administrator see it. The secret
lies in clear in the database, because signing needs it; it is answered once, when it is
made, and never told, listed or logged after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Connection, Text, and_, case, func, literal, null, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY

from models.kernel import ids
from models.kernel.clients import Caller
from models.kernel.errors import Conflict, IllegalTransition, NotFound
from models.kernel.expressions import seconds
from models.kernel.horizon import get_last_seq
from models.kernel.ledger import note
from models.kernel.transition import Birth, Subject, Told, Transition
from models.kernel.webhooks.signing import new_signing_secret
from models.kernel.webhooks.tables import DELETED, DISABLED, ENABLED, WEBHOOK, webhooks

SUBJECT = Subject(WEBHOOK, webhooks)
MOST_IN_TENANT = 100
OVERLAP_SECONDS = 86_400.0

PUBLIC_TOPICS = frozenset(
    f"webhook_{what}" for what in ("created", "changed", "rotated", "enabled", "disabled", "deleted")
)
PUBLIC = [column for column in webhooks.c if column.name not in {"secret", "previous_secret"}]

Row = Mapping[Any, Any]


def told(topic: str) -> Told:
    """A URL may hold a token of the receiver's: the ledger is told of none."""
    return Told(
        topic=lambda _w: literal(topic),
        reason=lambda w: w.disabled_reason,
        body=lambda w: {"webhook_id": w.id, "failures": w.failures},
    )


CREATE = Birth(
    subject=SUBJECT,
    given={
        "id": Text,
        "tenant": Text,
        "created_by": Text,
        "url": Text,
        "topics": ARRAY(Text),
        "description": Text,
        "secret": Text,
        "after_seq": BigInteger,
    },
    told=told("webhook_created"),
)
DISABLE = Transition(
    subject=SUBJECT,
    sources=frozenset({ENABLED}),
    targets=frozenset({DISABLED}),
    given={"disabled_reason": Text},
    set=lambda _w, given: {"disabled_reason": given.disabled_reason},
    told=Told(
        topic=lambda _w: literal("webhook_disabled"),
        reason=lambda w: w.disabled_reason,
        body=lambda w: {"webhook_id": w.id, "failures": w.failures, "reason": w.disabled_reason},
    ),
)
ENABLE = Transition(
    subject=SUBJECT,
    sources=frozenset({DISABLED}),
    targets=frozenset({ENABLED}),
    given={"after_seq": BigInteger},
    set=lambda _w, given: {"after_seq": given.after_seq, "failures": 0, "disabled_reason": null()},
    told=told("webhook_enabled"),
)
DELETE = Transition(
    subject=SUBJECT,
    sources=frozenset({ENABLED, DISABLED}),
    targets=frozenset({DELETED}),
    set=lambda _w, _g: {"secret": null(), "previous_secret": null(), "previous_until": null()},
    told=told("webhook_deleted"),
)


_ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtext('webhooks of a tenant'), hashtext(:tenant))")


def create_webhook(connection: Connection, draft: Row, caller: Caller) -> tuple[Row, str]:
    """Subscribe from now on; answers the subscription and its secret, which is never answered again.

    `draft` holds url (checked by the caller), topics and description. Raises Conflict at MOST_IN_TENANT, which
    holds in a crowd as well if `connection` is a transaction's: a tenant's are made one after the other.
    """
    connection.execute(_ONE_AT_A_TIME, {"tenant": caller.tenant})
    mine = and_(webhooks.c.tenant == caller.tenant, webhooks.c.state != DELETED)
    if (connection.scalar(select(func.count()).select_from(webhooks).where(mine)) or 0) >= MOST_IN_TENANT:
        raise Conflict(f"There are {MOST_IN_TENANT} webhooks already: delete one first", code="too_many_webhooks")
    secret = new_signing_secret()
    own = {"id": f"wh_{ids.new_key_id()}", "tenant": caller.tenant, "created_by": caller.name, "secret": secret}
    row = {**draft, **own, "after_seq": get_last_seq(connection)}
    made = CREATE(connection, [row], actor=caller.name, correlation_id=caller.correlation_id)[0]
    return made, secret


def visible(caller: Caller) -> list[Any]:
    """What a caller may see: its tenant's, an administrator all."""
    mine = [] if caller.may("admin") else [webhooks.c.tenant == caller.tenant]
    return [webhooks.c.state != DELETED, *mine]


def get_webhook(connection: Connection, webhook_id: str, caller: Caller) -> Row:
    """One subscription, without its secrets. Raises NotFound, also for another tenant's."""
    row = (
        connection.execute(select(*PUBLIC).where(webhooks.c.id == webhook_id, *visible(caller)))
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise not_found()
    return row


def not_found() -> NotFound:
    return NotFound("There is no such webhook", code="webhook_not_found")


def list_webhooks(
    connection: Connection, caller: Caller, *, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Row]:
    """Subscriptions, newest first, beyond the (created_at, id) of the page before."""
    query = select(*PUBLIC).where(*visible(caller))
    if after is not None:
        query = query.where(text("(created_at, id) < (:moment, :last)").bindparams(moment=after[0], last=after[1]))
    return (
        connection.execute(query.order_by(webhooks.c.created_at.desc(), webhooks.c.id.desc()).limit(limit))
        .mappings()
        .all()
    )


def change_webhook(connection: Connection, webhook_id: str, changes: Row, caller: Caller) -> Row:
    """Set url, topics or description. Raises NotFound."""
    mine = update(webhooks).where(webhooks.c.id == webhook_id, *visible(caller))
    values = {**changes, "revision": webhooks.c.revision + 1, "updated_at": func.clock_timestamp()}
    row = connection.execute(mine.values(values).returning(*PUBLIC)).mappings().one_or_none()
    if row is None:
        raise not_found()
    tell(connection, "webhook_changed", webhook_id, caller, {"changed": sorted(changes)})
    return row


def rotate_secret(connection: Connection, webhook_id: str, overlap_seconds: float, caller: Caller) -> tuple[Row, str]:
    """Make a new secret; until the overlap is over the old one signs too. Answers the row and the new secret.

    Raises NotFound.
    """
    secret = new_signing_secret()
    mine = update(webhooks).where(webhooks.c.id == webhook_id, *visible(caller))
    values = {
        "secret": secret,
        "previous_secret": webhooks.c.secret,
        "previous_until": func.clock_timestamp() + seconds(overlap_seconds),
        "revision": webhooks.c.revision + 1,
        "updated_at": func.clock_timestamp(),
    }
    row = connection.execute(mine.values(values).returning(*PUBLIC)).mappings().one_or_none()
    if row is None:
        raise not_found()
    tell(connection, "webhook_rotated", webhook_id, caller, {"overlap_seconds": overlap_seconds})
    return row, secret


def tell(connection: Connection, topic: str, webhook_id: str, caller: Caller, body: Row) -> None:
    note(
        connection,
        topic,
        subject=(WEBHOOK.kind, webhook_id),
        actor=caller.name,
        correlation_id=caller.correlation_id,
        body={"webhook_id": webhook_id, **body},
    )


def enable_webhook(connection: Connection, webhook_id: str, caller: Caller) -> Row:
    """Begin again, from now on: what happened meanwhile is not delivered. Raises NotFound; IllegalTransition."""
    row = {"id": webhook_id, "after_seq": get_last_seq(connection)}
    return move(connection, ENABLE, row, caller)


def disable_webhook(connection: Connection, webhook_id: str, reason: str, actor: str, correlation_id: str) -> bool:
    """Send nothing more there, for a reason that the subscription shows; False when it was disabled before."""
    row = {"id": webhook_id, "disabled_reason": reason}
    return bool(DISABLE(connection, [row], actor=actor, correlation_id=correlation_id))


def delete_webhook(connection: Connection, webhook_id: str, caller: Caller) -> None:
    """Forget a subscription; its secrets at once, its deliveries when they are old. Raises NotFound."""
    move(connection, DELETE, {"id": webhook_id}, caller)


def move(connection: Connection, act: Transition, row: Row, caller: Caller) -> Row:
    state = get_webhook(connection, row["id"], caller)["state"]
    moved = act(connection, [row], actor=caller.name, correlation_id=caller.correlation_id)
    if not moved:
        raise IllegalTransition(f"The webhook is {state}", state=state, code=f"webhook_{state}")
    return moved[0]


def find_receiver(connection: Connection, webhook_id: str) -> Row | None:
    """Where to send and the secrets that sign now, newest first; None when nothing may be sent there."""
    overlap = and_(webhooks.c.previous_secret.is_not(None), webhooks.c.previous_until > func.clock_timestamp())
    found = connection.execute(
        select(webhooks.c.url, webhooks.c.secret, case((overlap, webhooks.c.previous_secret)).label("previous")).where(
            webhooks.c.id == webhook_id, webhooks.c.state == ENABLED
        )
    )
    row = found.one_or_none()
    return None if row is None else {"url": row.url, "secrets": [s for s in (row.secret, row.previous) if s]}
