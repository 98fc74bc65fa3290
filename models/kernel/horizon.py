"""The horizon: the highest ledger seq below which nothing can commit any more.

A seq is drawn before its transaction commits, so the highest one that a reader saw
says nothing about lower ones. But whoever has drawn one holds RowExclusiveLock on the
ledger until it ends. So: read the sequence, list the virtual transactions that hold
the lock, and once those have ended, everything up to the number read is decided.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Text

from models.kernel import clock

PACE_SECONDS = 0.005

_LAST = text("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM ledger_seq")
_WRITERS = text(
    """
    SELECT coalesce(array_agg(virtualtransaction), '{}') FROM pg_locks
     WHERE relation = 'ledger'::regclass AND mode = 'RowExclusiveLock' AND granted AND pid <> pg_backend_pid()
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """
)
_REMAINING = text(
    """
    SELECT count(*) FROM pg_locks
     WHERE relation = 'ledger'::regclass AND mode = 'RowExclusiveLock' AND virtualtransaction = ANY(:writers)
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """
).bindparams(bindparam("writers", type_=ARRAY(Text)))


def get_last_seq(connection: Connection) -> int:
    """The highest seq that was ever drawn, committed or not; 0 when none was."""
    return int(connection.scalar(_LAST) or 0)


def list_writers(connection: Connection) -> Sequence[str]:
    """The virtual transactions that may have drawn a seq and not committed yet."""
    return list(connection.scalar(_WRITERS) or [])


def is_any_left(connection: Connection, writers: Sequence[str]) -> bool:
    """Whether one of these still goes on. Once none does, a new statement sees whatever they committed."""
    return bool(writers) and bool(connection.scalar(_REMAINING, {"writers": list(writers)}))


def find_horizon(connection: Connection, patience_seconds: float = 1.0) -> int | None:
    """A seq up to which the ledger is decided, or None when a writer outlasts the patience.

    `connection` must commit each statement by itself: a single snapshot would see nothing end.
    """
    last = get_last_seq(connection)
    writers = list_writers(connection)
    deadline = clock.monotonic() + patience_seconds
    while is_any_left(connection, writers):
        if clock.monotonic() > deadline:
            return None
        clock.pause(PACE_SECONDS)
    return last
