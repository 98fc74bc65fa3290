"""Idempotency keys: what a caller repeats is done once and answered alike.

A key's row is inserted before the work and commits with it, so that a key without its
work, or work without its key, cannot be. Whoever comes second waits for the first on
the row itself; once it has committed, a new statement reads the answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import (
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Index,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from models.kernel.errors import Conflict, InProgress, Invalid
from models.kernel.expressions import seconds
from models.kernel.metadata import metadata
from models.kernel.session import plain_errors
from models.kernel.settings import settings

SECONDS_IN_HOUR = 3600
FORGOTTEN_AT_ONCE = 5000
MOST_BATCHES = 200

keys = Table(
    "idempotency_keys",
    metadata,
    Column("client", Text, primary_key=True),
    Column("scope_sha256", Text, primary_key=True, comment="of method, path and key"),
    Column("body_sha256", Text, nullable=False),
    Column("status", SmallInteger),
    Column("headers", JSONB(none_as_null=True)),
    Column("answer", LargeBinary, comment="null only until the transaction of the work commits"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    CheckConstraint("length(scope_sha256) = 64 AND length(body_sha256) = 64", name="hashes"),
    CheckConstraint("num_nonnulls(status, headers, answer) IN (0, 3)", name="whole_answer"),
    CheckConstraint("status BETWEEN 200 AND 299", name="success"),
    Index("idempotency_keys_age_ix", "created_at"),
    postgresql_with={"fillfactor": 50},
)


@dataclass(frozen=True)
class Repeatable:
    """A request that may be repeated: whose it is, which one, and what it says."""

    client: str
    scope_sha256: str
    body_sha256: str

    @classmethod
    def of(cls, client: str, method: str, path: str, key: str, body: bytes) -> Repeatable:
        """Paths and keys are kept as hashes: they are of any length, and nobody needs to read them."""
        scope = "\n".join((method, path, key)).encode("utf-8", "surrogatepass")
        return cls(client, hashlib.sha256(scope).hexdigest(), hashlib.sha256(body).hexdigest())


@dataclass(frozen=True)
class KeptAnswer:
    """What the first request was answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def claim_key(connection: Connection, request: Repeatable) -> KeptAnswer | None:
    """Take the key for this transaction's work; the kept answer when the work was done before.

    Raises InProgress while another request with this key runs for longer than the lock
    timeout, Invalid when the key was used for another body.
    """
    values = {"client": request.client, "scope_sha256": request.scope_sha256, "body_sha256": request.body_sha256}
    try:
        with plain_errors():
            taken = connection.execute(insert(keys).values(values).on_conflict_do_nothing().returning(keys.c.client))
    except Conflict:
        raise in_progress() from None
    if taken.first() is not None:
        return None
    return get_answer(connection, request)


def get_answer(connection: Connection, request: Repeatable) -> KeptAnswer:
    """In a statement of its own: the one that ran into the key cannot see the row it waited for."""
    row = connection.execute(select(keys).where(*mine(request))).one_or_none()
    if row is None:  # forgotten between the two statements
        raise in_progress()
    if row.body_sha256 != request.body_sha256:
        raise Invalid("This Idempotency-Key was used for another body", code="idempotency_key_reused")
    return KeptAnswer(row.status, row.headers, bytes(row.answer))


def in_progress() -> InProgress:
    return InProgress("A request with this Idempotency-Key is still running", code="idempotency_key_in_use")


def mine(request: Repeatable) -> tuple[ColumnElement[bool], ...]:
    return keys.c.client == request.client, keys.c.scope_sha256 == request.scope_sha256


def keep_answer(connection: Connection, request: Repeatable, answer: KeptAnswer) -> None:
    """Keep what the work was answered, in the transaction that claimed the key."""
    values = {"status": answer.status, "headers": dict(answer.headers), "answer": answer.body}
    connection.execute(update(keys).where(*mine(request)).values(values))


def forget_old_keys(connection: Connection) -> int:
    """Forget keys older than `idempotency_hours`, in batches that hold no lock for long; answers how many."""
    age = seconds(settings().idempotency_hours * SECONDS_IN_HOUR)
    old = keys.c.created_at < func.clock_timestamp() - age
    oldest = select(keys.c.client, keys.c.scope_sha256).where(old).order_by(keys.c.created_at)
    forgotten = 0
    for _ in range(MOST_BATCHES):
        batch = oldest.limit(FORGOTTEN_AT_ONCE).with_for_update(skip_locked=True).cte()
        same = (keys.c.client == batch.c.client, keys.c.scope_sha256 == batch.c.scope_sha256)
        gone = connection.execute(delete(keys).where(*same)).rowcount
        forgotten += gone
        if gone < FORGOTTEN_AT_ONCE:
            break
    return forgotten
