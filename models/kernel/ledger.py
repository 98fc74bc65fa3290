"""The ledger: one append-only row for each thing that happened.

It is the history of every subject, the event log and the audit trail at once.
Rows are written by `transition` (a state changed) and by `note` (something
happened that changed no state, such as a refusal). Postgres refuses UPDATE and
DELETE on it; retention drops whole partitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Double,
    Index,
    Integer,
    Sequence,
    Table,
    Text,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from models.kernel.metadata import metadata
from models.kernel.settings import settings

ledger_seq = Sequence("ledger_seq", metadata=metadata, cache=1)

ledger = Table(
    "ledger",
    metadata,
    Column("seq", BigInteger, server_default=ledger_seq.next_value(), primary_key=True, autoincrement=False),
    Column("subject_kind", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("from_state", Text),
    Column("to_state", Text, comment="null: nothing changed, a note"),
    Column("topic", Text, nullable=False),
    Column("label", Text, nullable=False, server_default="", comment="what is counted apart: a command, an engine"),
    Column("elapsed_ms", Double, comment="how long what ended here took"),
    Column("actor", Text, nullable=False),
    Column("reason", Text),
    Column("correlation_id", Text, nullable=False),
    Column("body", JSONB, nullable=False, server_default=text("'{}'")),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    CheckConstraint("to_state IS NOT NULL OR from_state IS NULL", name="note_moves_nothing"),
    CheckConstraint("elapsed_ms >= 0", name="elapsed"),
    Index("ledger_subject_ix", "subject_kind", "subject_id", "seq"),
    Index("ledger_kind_ix", "subject_kind", "seq"),
    postgresql_partition_by="RANGE (seq)",
)

PARTITIONS_AHEAD = 3


def note(
    connection: Connection,
    topic: str,
    *,
    subject: tuple[str, str],
    actor: str,
    correlation_id: str,
    reason: str | None = None,
    body: Mapping[str, Any] | None = None,
) -> int:
    """Record something that changed no state: a refusal, a start, late evidence. Answers its seq."""
    made = (
        insert(ledger)
        .values(
            subject_kind=subject[0],
            subject_id=subject[1],
            revision=0,
            topic=topic,
            actor=actor,
            correlation_id=correlation_id,
            reason=reason,
            body=dict(body or {}),
        )
        .returning(ledger.c.seq)
    )
    return int(connection.execute(made).scalar_one())


def list_history(connection: Connection, kind: str, subject_id: str, limit: int = 100) -> list[dict[str, Any]]:
    """What happened to one subject, oldest first, at most `limit` rows."""
    rows = connection.execute(
        select(ledger)
        .where(ledger.c.subject_kind == kind, ledger.c.subject_id == subject_id)
        .order_by(ledger.c.seq)
        .limit(limit)
    )
    return [dict(row) for row in rows.mappings()]


def count_partitions_ahead(connection: Connection) -> int:
    """How many empty partitions lie beyond the one being written."""
    return int(
        connection.scalar(
            text(
                """
                SELECT count(*)
                  FROM pg_inherits i
                  JOIN pg_class c ON c.oid = i.inhrelid,
                       ledger_seq s
                 WHERE i.inhparent = 'ledger'::regclass
                   AND substring(c.relname FROM 'ledger_(\\d+)$')::bigint > s.last_value
                """
            )
        )
        or 0
    )


def make_partitions(connection: Connection) -> int:
    """Make partitions until PARTITIONS_AHEAD of them lie ahead; answers how many were made.

    A partition is named after its first seq, so that its bounds can be read off its name.
    """
    made = 0
    while count_partitions_ahead(connection) < PARTITIONS_AHEAD:
        first = connection.scalar(
            text("SELECT ledger_make_partition(:rows)"), {"rows": settings().ledger_partition_rows}
        )
        made += first is not None
    return made
