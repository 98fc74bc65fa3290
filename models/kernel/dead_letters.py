"""Dead letters: work that ended without doing what it was for, and waits for an operator's word.

A letter is written by the transition that fails the subject and is never deleted by a
replay: it is stamped, so that one letter is replayed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Column,
    Connection,
    DateTime,
    Identity,
    Index,
    Table,
    Text,
    func,
    insert,
    literal,
    select,
    text,
    update,
)

from models.kernel.errors import Conflict, NotFound
from models.kernel.metadata import metadata

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("task", Text, nullable=False),
    Column("subject_kind", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("correlation_id", Text, nullable=False),
    Column("died_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("replayed_at", DateTime(timezone=True)),
    Column("replayed_by", Text),
    Index("dead_letters_waiting_ix", "task", "id", postgresql_where=text("replayed_at IS NULL")),
    Index("dead_letters_subject_ix", "subject_kind", "subject_id"),
)

Replay = Callable[[Connection, str], object]


def letter_for(moved: CTE, *, task: str, kind: str, when: Any) -> Any:
    """The insert that writes a letter for each moved subject that fulfils `when`; for `Transition.also`."""
    columns = {
        "task": literal(task),
        "subject_kind": literal(kind),
        "subject_id": moved.c.id,
        "code": moved.c.error_code,
        "error": moved.c.error,
        "correlation_id": moved.c.correlation_id,
    }
    source = select(*(value.label(name) for name, value in columns.items())).where(when).order_by(moved.c.id)
    return insert(dead_letters).from_select(list(columns), source).returning(dead_letters.c.id)


def list_letters(
    connection: Connection, *, task: str | None = None, code: str | None = None, after: int = 0, limit: int = 100
) -> list[Mapping[str, Any]]:
    """Letters that wait, oldest first, after the letter of that id."""
    wanted = [dead_letters.c.replayed_at.is_(None), dead_letters.c.id > after]
    wanted += [dead_letters.c.task == task] if task else []
    wanted += [dead_letters.c.code == code] if code else []
    query = select(dead_letters).where(*wanted).order_by(dead_letters.c.id).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def replay_letter(connection: Connection, letter_id: int, replay: Replay, actor: str) -> None:
    """Stamp a letter and replay its subject, in the caller's transaction.

    Raises NotFound; Conflict when it was replayed before; whatever the domain's replay raises.
    """
    letter = dead_letters.c.id == letter_id
    stamp = update(dead_letters).where(letter, dead_letters.c.replayed_at.is_(None))
    values = {"replayed_at": func.clock_timestamp(), "replayed_by": actor}
    subject = connection.scalar(stamp.values(values).returning(dead_letters.c.subject_id))
    if subject is None:
        if connection.scalar(select(dead_letters.c.id).where(letter)) is None:
            raise NotFound(f"There is no dead letter {letter_id}")
        raise Conflict(f"Dead letter {letter_id} was replayed before", code="already_replayed")
    replay(connection, subject)
