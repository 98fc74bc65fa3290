"""Dead letters: work that ended without doing what it was for, and waits for an operator's word.

A letter is written by the transition that fails the subject and is never deleted by a
replay: it is stamped, so that one letter is replayed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
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
    bindparam,
    func,
    insert,
    literal,
    select,
    text,
    update,
)

from models.kernel.bulk_acts import Act, Order, Outcome, Page, register
from models.kernel.clients import Caller
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

REPLAY = "dead_letters.replay"
NOT_REPLAYABLE = "not_replayable"
ALREADY_REPLAYED = "already_replayed"

Replay = Callable[[Connection, str], object]
Replays = Callable[[Connection, Sequence[str], Order], Mapping[str, str]]
"""Sets subjects going again, by their ids; answers the code of each that it refuses."""

REPLAYS: dict[str, Replays] = {}


def register_replay(task: str, replays: Replays) -> None:
    """Say how what died under a task is set going again."""
    REPLAYS[task] = replays


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


def answered_letters(moved: CTE, *, kind: str) -> Any:
    """The update that stamps what waits of each moved subject, for `Transition.also`: it was set going another way.

    A letter that somebody is replaying is passed over, since whoever holds it waits for the subject.
    """
    mine = (dead_letters.c.subject_kind == kind, dead_letters.c.subject_id == moved.c.id)
    free = select(dead_letters.c.id).where(*mine, dead_letters.c.replayed_at.is_(None))
    found = free.with_for_update(of=dead_letters, skip_locked=True).cte("answered")
    stamp = {"replayed_at": func.clock_timestamp(), "replayed_by": bindparam("actor", None, type_=Text)}
    return update(dead_letters).where(dead_letters.c.id == found.c.id).values(stamp).returning(dead_letters.c.id)


def list_letters(
    connection: Connection,
    *,
    task: str | None = None,
    code: str | None = None,
    after: int = 0,
    until: datetime | None = None,
    limit: int = 100,
) -> list[Mapping[str, Any]]:
    """Letters that wait, oldest first, after the letter of that id; with `until`, none that came later."""
    wanted = [dead_letters.c.replayed_at.is_(None), dead_letters.c.id > after]
    wanted += [dead_letters.c.task == task] if task else []
    wanted += [dead_letters.c.code == code] if code else []
    wanted += [dead_letters.c.died_at <= until] if until else []
    query = select(dead_letters).where(*wanted).order_by(dead_letters.c.id).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def get_letter(connection: Connection, letter_id: int) -> Mapping[str, Any]:
    """One letter. Raises NotFound."""
    row = connection.execute(select(dead_letters).where(dead_letters.c.id == letter_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no dead letter {letter_id}", code="letter_not_found")
    return dict(row)


def replay_letter(connection: Connection, letter_id: int, replay: Replay, actor: str) -> None:
    """Stamp a letter and replay its subject, in the caller's transaction.

    Raises NotFound; Conflict when it was replayed before; whatever the domain's replay raises.
    """
    letter = dead_letters.c.id == letter_id
    stamp = update(dead_letters).where(letter, dead_letters.c.replayed_at.is_(None))
    values = {"replayed_at": func.clock_timestamp(), "replayed_by": actor}
    subject = connection.scalar(stamp.values(values).returning(dead_letters.c.subject_id))
    if subject is None:
        get_letter(connection, letter_id)
        raise Conflict(f"Dead letter {letter_id} was replayed before", code=ALREADY_REPLAYED)
    replay(connection, subject)


def replay_as_registered(
    connection: Connection, letter_id: int, caller: Caller, *, expires_in_seconds: float
) -> Mapping[str, Any]:
    """Replay one letter the way its task is replayed, in the caller's transaction; answers it with its stamp.

    What is set going may not start later than in `expires_in_seconds`.

    Raises NotFound; Conflict when it was replayed before, cannot be, or the subject's state forbids it.
    """
    task = get_letter(connection, letter_id)["task"]
    order = Order({}, True, expires_in_seconds, None, caller)

    def replay(connection: Connection, subject_id: str) -> None:
        refused = refusals_of_replay(connection, task, [subject_id], order)
        if refused:
            raise Conflict(f"{subject_id} is not set going again: {refused[subject_id]}", code=refused[subject_id])

    replay_letter(connection, letter_id, replay, caller.name)
    return get_letter(connection, letter_id)


def refusals_of_replay(
    connection: Connection, task: str, subject_ids: Sequence[str], order: Order
) -> Mapping[str, str]:
    """Set the subjects going again as far as possible; answers the code of each that was refused."""
    if task not in REPLAYS:
        return dict.fromkeys(subject_ids, NOT_REPLAYABLE)
    return REPLAYS[task](connection, subject_ids, order)


def replay_letters(connection: Connection, letter_ids: Sequence[str], order: Order) -> Outcome:
    """Replay many: the letters are locked first, as a single replay does, then their subjects."""
    waiting = dead_letters.c.id.in_([int(name) for name in letter_ids]), dead_letters.c.replayed_at.is_(None)
    columns = (dead_letters.c.id, dead_letters.c.task, dead_letters.c.subject_id)
    letters = connection.execute(select(*columns).where(*waiting).order_by(dead_letters.c.id).with_for_update()).all()
    refused = dict.fromkeys(set(letter_ids) - {str(letter.id) for letter in letters}, ALREADY_REPLAYED)
    for task in sorted({letter.task for letter in letters}):
        mine = [letter for letter in letters if letter.task == task]
        subjects = list(dict.fromkeys(letter.subject_id for letter in mine))
        why = refusals_of_replay(connection, task, subjects, order)
        refused |= {str(letter.id): why[letter.subject_id] for letter in mine if letter.subject_id in why}
    done = [letter.id for letter in letters if str(letter.id) not in refused]
    stamp = {"replayed_at": func.clock_timestamp(), "replayed_by": order.caller.name}
    connection.execute(update(dead_letters).where(dead_letters.c.id.in_(done)).values(stamp))
    return Outcome(len(done), refused)


def list_next_letters(
    connection: Connection, filters: Mapping[str, Any], until: datetime, position: Any, limit: int
) -> Page:
    letters = list_letters(connection, **filters, until=until, after=position or 0, limit=limit)
    return Page([str(letter["id"]) for letter in letters], letters[-1]["id"] if letters else position)


register(Act(REPLAY, replay_letters, list_next_letters))
