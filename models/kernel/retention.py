"""Retention: which part of the ledger is kept, and how the rest goes.

Whole partitions go, oldest first and one after the other, so that what is kept has one
beginning. A partition goes once its last row is older than `ledger_keep_days`, each of
READERS has read all of it, and no live subject has a row in it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Column, Connection, MetaData, Select, Table, Text, select, text

from models.kernel.settings import settings
from models.kernel.tallies import tally_position
from models.kernel.webhooks.tables import webhook_position

log = logging.getLogger(__name__)

READERS: list[Table] = [tally_position, webhook_position]
"""Whoever reads the ledger on and on: tables of one row, whose `seq` says up to where everything was read."""

_PARTITIONS = r"""
    SELECT c.relname AS name, substring(c.relname FROM 'ledger_(\d+)$')::bigint AS first,
           substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''(\d+)''\)')::bigint AS beyond,
           i.inhdetachpending AS pending
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'ledger'::regclass
"""
_EARLIEST = text(f"SELECT min(first) FROM ({_PARTITIONS}) AS p WHERE NOT pending")  # noqa: S608
_OLDEST = text(f"SELECT * FROM ({_PARTITIONS}) AS p ORDER BY first LIMIT 1")  # noqa: S608
_DETACHED = text(
    r"""
    SELECT c.relname FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
     WHERE c.relname ~ '^ledger_\d{19}$' AND c.relkind = 'r' AND i.inhrelid IS NULL
       AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'ledger'::regclass)
    """
)


def get_earliest_seq(connection: Connection) -> int:
    """The first seq of what is kept."""
    return int(connection.scalar(_EARLIEST) or 1)


def drop_old_partitions(connection: Connection, live: Mapping[str, Select[Any]]) -> list[str]:
    """Drop the partitions that may go, oldest first; answers their names.

    `live` yields, by kind, the ids of the subjects that have not ended. `connection` must commit each
    statement by itself: a partition is detached while others write.
    """
    dropped = drop_detached(connection)  # what a process left that died in between
    while settings().ledger_keep_days and (partition := find_droppable(connection, live)):
        detach(connection, partition)
        dropped += drop_detached(connection)
    return dropped


def find_droppable(connection: Connection, live: Mapping[str, Select[Any]]) -> str | None:
    """The oldest partition, if nobody needs it any longer."""
    oldest = connection.execute(_OLDEST).one()
    if not oldest.pending:
        read = min(int(connection.execute(select(reader.c.seq)).scalar_one()) for reader in READERS)
        if read < oldest.beyond - 1 or not is_old(connection, oldest.name) or is_needed(connection, oldest.name, live):
            return None
    return str(oldest.name)


def is_old(connection: Connection, partition: str) -> bool:
    """Whether the partition's last row is older than what is kept."""
    age = text(
        f"""
        SELECT coalesce((SELECT at FROM "{partition}" ORDER BY seq DESC LIMIT 1), '-infinity')
               < clock_timestamp() - make_interval(days => :days)
        """  # noqa: S608 - named by ourselves
    )
    return bool(connection.scalar(age, {"days": settings().ledger_keep_days}))


def is_needed(connection: Connection, partition: str, live: Mapping[str, Select[Any]]) -> bool:
    """Whether a live subject has a row in the partition."""
    rows = Table(partition, MetaData(), Column("subject_kind", Text), Column("subject_id", Text))
    return any(
        connection.scalar(
            select(select(rows).where(rows.c.subject_kind == kind, rows.c.subject_id.in_(subjects)).exists())
        )
        for kind, subjects in live.items()
    )


def detach(connection: Connection, partition: str) -> None:
    """Take a partition out of the ledger while others write; go on where an interrupted one stopped."""
    how = "FINALIZE" if connection.execute(_OLDEST).one().pending else "CONCURRENTLY"
    connection.execute(text(f'ALTER TABLE ledger DETACH PARTITION "{partition}" {how}'))


def drop_detached(connection: Connection) -> list[str]:
    """Drop what was taken out of the ledger."""
    names = [str(name) for name in connection.scalars(_DETACHED)]
    for name in names:
        connection.execute(text(f'DROP TABLE "{name}"'))
        log.info("a part of the ledger was dropped", extra={"partition": name})
    return names
