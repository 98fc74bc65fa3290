"""The feed: the ledger read as it grows, with nothing lost, doubled or out of order.

Numbers are drawn before their transactions commit, so a reader that remembers the
highest one it saw loses whatever commits late. A `Follower` therefore stops before a
missing number. After the read that saw the gap it lists the transactions that may
still fill it; once those have ended it reads again, in a new statement, and what is
missing then was rolled back. Whoever drew a missing number did so before the number
beyond the gap was drawn, and so before that list was made.

Rows beyond a gap wait, because a cursor is one number. The wait is bounded by the
timeouts of the writers' sessions (see `session.connect_options`).

A `Selection` says which events a reader wants, once as SQL for the past and once as a
predicate for the present.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, select

from models.kernel.errors import Gone, Unavailable
from models.kernel.horizon import find_horizon, is_any_left, list_writers
from models.kernel.ledger import ledger
from models.kernel.retention import get_earliest_seq

LONGEST_READ = 500
PAGE = 200
WINDOW = 50_000
"""Most numbers that one page looks at: a selection that matches little must not scan history in one statement."""

COLUMNS = (
    ledger.c.seq,
    ledger.c.subject_kind,
    ledger.c.subject_id,
    ledger.c.revision,
    ledger.c.from_state,
    ledger.c.to_state,
    ledger.c.topic,
    ledger.c.correlation_id,
    ledger.c.body,
    ledger.c.at,
)


class CursorExpired(Gone):
    """What follows the cursor is kept no longer."""

    code = "cursor_expired"


@dataclass(frozen=True)
class Selection:
    """The events of one kind of subject that a reader wants; `facts` are members of the public body."""

    kind: str
    topics: frozenset[str]
    subject_id: str | None = None
    facts: tuple[tuple[str, str], ...] = ()

    def condition(self) -> Any:
        """The selection as SQL."""
        wanted = [ledger.c.subject_kind == self.kind, ledger.c.topic.in_(sorted(self.topics))]
        if self.subject_id is not None:
            wanted.append(ledger.c.subject_id == self.subject_id)
        wanted += [ledger.c.body[name].astext == value for name, value in self.facts]
        return and_(*wanted)

    def covers(self, row: RowMapping) -> bool:
        """The selection as a predicate: true of the rows that the condition yields."""
        if row["subject_kind"] != self.kind or row["topic"] not in self.topics:
            return False
        if self.subject_id is not None and row["subject_id"] != self.subject_id:
            return False
        return all(row["body"].get(name) == value for name, value in self.facts)


@dataclass
class Follower:
    """One reader's place in the ledger. Everything up to `decided` has committed or never will."""

    position: int
    decided: int = 0
    beyond: int = 0
    writers: Sequence[str] = field(default=())

    @property
    def waits(self) -> bool:
        """Whether a gap keeps the next rows back."""
        return self.beyond > self.decided

    def read(self, connection: Connection, limit: int = LONGEST_READ) -> list[RowMapping]:
        """The next rows, of every kind, in order; none while a gap is undecided.

        `connection` must commit each statement by itself: a single snapshot would see nothing end.
        """
        if self.waits:
            if is_any_left(connection, self.writers):
                return []
            self.decided = self.beyond
        rows = list_rows(connection, self.position, limit)
        for index, row in enumerate(rows):
            if row["seq"] > max(self.position, self.decided) + 1:
                self.beyond, self.writers = rows[-1]["seq"], list_writers(connection)
                return rows[:index]
            self.position = row["seq"]
        return rows


def begin_at_horizon(connection: Connection) -> Follower:
    """A follower from this moment on: what it does not read had committed before. Raises Unavailable."""
    horizon = find_horizon(connection)
    if horizon is None:
        raise Unavailable("A writer keeps the ledger undecided; try again", code="ledger_undecided")
    return Follower(horizon)


def list_rows(connection: Connection, after: int, limit: int) -> list[RowMapping]:
    """The rows that are visible behind a seq, of every kind, oldest first."""
    query = select(*COLUMNS).where(ledger.c.seq > after).order_by(ledger.c.seq).limit(limit)
    return list(connection.execute(query).mappings())


def list_page(
    connection: Connection, selection: Selection, after: int, upto: int, limit: int = PAGE
) -> tuple[list[RowMapping], int]:
    """The next selected rows in (after, upto], oldest first, and the seq up to which that is all.

    `upto` must be decided. Raises CursorExpired when what followed `after` was dropped.
    """
    end = upto if selection.subject_id is not None else min(after + WINDOW, upto)
    inside = (ledger.c.seq > after, ledger.c.seq <= end, selection.condition())
    rows = list(connection.execute(select(*COLUMNS).where(*inside).order_by(ledger.c.seq).limit(limit)).mappings())
    check_kept(connection, after)  # after the read: what is kept now was kept then
    return rows, rows[-1]["seq"] if len(rows) == limit else end


def check_kept(connection: Connection, after: int) -> None:
    """Raises CursorExpired unless everything that followed this seq is still there."""
    if after + 1 < get_earliest_seq(connection):
        raise CursorExpired("What followed this cursor is kept no longer; start again with after=earliest")
