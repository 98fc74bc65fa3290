"""Latches: what is stopped stays stopped until somebody says otherwise.

A latch is a row for each scope, and a scope is just a text. It is engaged while
`released_at` is null. Engaging is one statement that waits for nothing but the row
itself; whoever is about to act reads the latch in a statement of its own.

A released row stays and keeps holding back what was ordered before its release
(`barred_since`), so that no release sets anything going that it found waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Index,
    RowMapping,
    Table,
    Text,
    exists,
    func,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from models.kernel.clients import Caller
from models.kernel.metadata import metadata

KIND = "latch"
LONGEST_REASON = 500
MOST_LISTED = 1000

latches = Table(
    "latches",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("engaged_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("engaged_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("correlation_id", Text, nullable=False),
    Column("released_at", DateTime(timezone=True)),
    Column("released_by", Text),
    Column("release_reason", Text),
    CheckConstraint("scope ~ '^[A-Za-z0-9._:-]{1,64}$'", name="scope"),
    CheckConstraint(f"length(reason) BETWEEN 1 AND {LONGEST_REASON}", name="reason"),
    CheckConstraint("num_nulls(released_at, released_by, release_reason) IN (0, 3)", name="released"),
    CheckConstraint("released_at >= engaged_at", name="order"),
    Index("latches_engaged_ix", "engaged_at", "scope", postgresql_where=text("released_at IS NULL")),
)


def is_engaged(*scopes: Any) -> Any:
    """The condition that a latch over one of these scopes, texts or columns, is engaged."""
    return exists().where(latches.c.scope.in_(scopes), latches.c.released_at.is_(None))


def barred_since(moment: Any) -> Any:
    """The condition that a latch holds back what was ordered at `moment`: engaged, or released only later."""
    return or_(latches.c.released_at.is_(None), latches.c.released_at > moment)


def engage_latch(connection: Connection, scope: str, reason: str, caller: Caller) -> bool:
    """Engage the latch of a scope; False when it was engaged already, which keeps who engaged it, when and why."""
    facts = {"engaged_by": caller.name, "reason": reason, "correlation_id": caller.correlation_id}
    again = {"engaged_at": func.clock_timestamp(), **facts}
    again |= dict.fromkeys(("released_at", "released_by", "release_reason"), null())
    act = insert(latches).values(scope=scope, **facts)
    act = act.on_conflict_do_update(index_elements=["scope"], set_=again, where=latches.c.released_at.is_not(None))
    return connection.scalar(act.returning(latches.c.scope)) is not None


def release_latch(connection: Connection, scope: str, reason: str, caller: Caller) -> bool:
    """Release the latch of a scope; False when it is not engaged."""
    act = update(latches).where(latches.c.scope == scope, latches.c.released_at.is_(None))
    # A clock that was set back must not keep anything stopped.
    now = func.greatest(func.clock_timestamp(), latches.c.engaged_at)
    values = {"released_at": now, "released_by": caller.name, "release_reason": reason}
    return connection.scalar(act.values(values).returning(latches.c.scope)) is not None


def find_latch(connection: Connection, *scopes: str) -> RowMapping | None:
    """The engaged latch over one of these scopes, the first in their order."""
    mine = latches.c.scope.in_(scopes), latches.c.released_at.is_(None)
    found = {row["scope"]: row for row in connection.execute(select(latches).where(*mine)).mappings()}
    return next((found[scope] for scope in scopes if scope in found), None)


def list_latches(connection: Connection, limit: int = MOST_LISTED) -> Sequence[RowMapping]:
    """The engaged latches, those engaged first in front."""
    engaged = select(latches).where(latches.c.released_at.is_(None))
    return connection.execute(engaged.order_by(latches.c.engaged_at, latches.c.scope).limit(limit)).mappings().all()
