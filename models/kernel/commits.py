"""Births that share a statement and its commit: who creates at the same moment goes together.

Most of what a small insert costs is the round trip, the statement's start and the commit. So one thread of a process
writes at a time, and those that come meanwhile go together in the next statement: whoever finds nobody writing writes
at once, and nobody ever waits for company. Measured in `docs/adr/0023`.

    comes, nobody writes    it leads: takes along whoever waits by now, writes, hands on the lead, tells the others
    comes, somebody writes  it waits for the answer, or for the lead

What is answered is committed. A row that the database refuses fails nobody else: the statement changed nothing then,
and each goes again by itself. Any other failure reaches everyone whom it hit.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Integer, Text, insert, literal, null, select
from sqlalchemy.exc import DataError, IntegrityError

from models.kernel.errors import Unavailable
from models.kernel.session import is_reserved, statement
from models.kernel.settings import settings
from models.kernel.transition import Birth, Rows

MOST_TOGETHER = 64  # callers in one statement
FAULTS = (IntegrityError, DataError, TypeError)  # of a row: the database refuses it, or JSON cannot say it


class Joint(Birth):
    """A birth for several callers in one statement: each row says whose it is, and who is the actor."""

    def statement(self) -> Any:
        table = self.subject.table
        own = {"correlation_id": Text, **self.given}
        given = self.given_rows({**own, "given_actor": Text, "caller": Integer})
        # A row's id is drawn before the row is made, so that what was made can be told to whoever asked for it.
        drawn_id = given.c.id if "id" in own else getattr(table.c.id.server_default, "arg", null())
        others = [column for column in given.c if column.name != "id"]
        drawn = select(drawn_id.label("id"), *others).cte("drawn").prefix_with("MATERIALIZED")
        new = {
            "state": literal(self.subject.machine.initial),
            "id": drawn.c.id,
            **{name: drawn.c[name] for name in own},
        }
        source = select(*(value.label(name) for name, value in new.items()))
        born = insert(table).from_select(list(new), source).returning(*table.c).cte("born")
        moved = select(*born.c, drawn.c.given_actor, drawn.c.caller).where(drawn.c.id == born.c.id).cte("moved")
        job = self.owed_job(moved)
        told = self.told.insert_into_ledger(self.subject.kind, moved, null())
        return select(moved).add_cte(told, *([] if job is None else [job]))


@dataclass(eq=False, slots=True)
class Entry:
    """What one caller wants made, and how it went."""

    rows: Sequence[Mapping[str, Any]]
    actor: str
    correlation_id: str
    made: Rows | None = None
    error: Exception | None = None
    word: queue.SimpleQueue[bool] = field(default_factory=queue.SimpleQueue)
    """What this caller waits for: true gives it the lead, false says that it is done."""

    def answer(self) -> Rows:
        if self.error is not None:
            raise self.error
        if self.made is None:
            raise Unavailable("What became of this is not known", code="database_unavailable")
        return self.made


class Writer:
    """The births of one kind in this process."""

    def __init__(self, birth: Birth) -> None:
        self.birth = birth
        self.joint = Joint(subject=birth.subject, told=birth.told, given=birth.given, owes=birth.owes)
        self.lock = threading.Lock()
        self.waiting: list[Entry] = []
        self.is_writing = False

    def write(self, own: Entry) -> Rows:
        with self.lock:
            leads = not self.is_writing
            if leads:
                self.is_writing = True
            else:
                self.waiting.append(own)
        if leads or self.is_given_the_lead(own):
            self.lead(own)
        return own.answer()

    def is_given_the_lead(self, own: Entry) -> bool:
        """Wait for a word. Raises Unavailable when none comes in the time that two statements may take."""
        chosen = settings()
        with contextlib.suppress(queue.Empty):
            return own.word.get(timeout=chosen.lock_timeout + 2 * chosen.statement_timeout)
        with self.lock:
            if own in self.waiting:
                self.waiting.remove(own)
            with contextlib.suppress(queue.Empty):  # it came just now
                return own.word.get_nowait()
        raise Unavailable("The database cannot answer right now", code="database_unavailable")

    def lead(self, own: Entry) -> None:
        with self.lock:
            group = [own, *self.waiting[: MOST_TOGETHER - 1]]
            del self.waiting[: MOST_TOGETHER - 1]
        try:
            self.carry_out(group)
        finally:
            self.hand_on()
            for entry in group[1:]:
                entry.word.put(False)

    def hand_on(self) -> None:
        with self.lock:
            if self.waiting:
                self.waiting.pop(0).word.put(True)
            else:
                self.is_writing = False

    def carry_out(self, group: list[Entry]) -> None:
        if len(group) > 1:
            try:
                return share_out(group, self.together(group))
            except FAULTS:
                pass  # one of them is at fault, and nothing was written
            except Exception as error:
                for entry in group:
                    entry.error = error
                return None
        for entry in group:
            self.alone(entry)
        return None

    def together(self, group: list[Entry]) -> Rows:
        rows = [
            {"correlation_id": entry.correlation_id, **row, "given_actor": entry.actor, "caller": caller}
            for caller, entry in enumerate(group)
            for row in entry.rows
        ]
        with statement() as connection:
            return self.joint(connection, rows, actor="")

    def alone(self, entry: Entry) -> None:
        try:
            with statement() as connection:
                entry.made = self.birth(connection, entry.rows, actor=entry.actor, correlation_id=entry.correlation_id)
        except Exception as error:
            entry.error = error


def share_out(group: list[Entry], born: Rows) -> None:
    made: list[Rows] = [[] for _ in group]
    for row in born:
        made[row["caller"]].append(row)
    for entry, rows in zip(group, made, strict=True):
        entry.made = rows


writers: dict[Birth, Writer] = {}

# A lead that was held in the parent is held by nobody in the child.
os.register_at_fork(after_in_child=writers.clear)


def share(birth: Birth, rows: Sequence[Mapping[str, Any]], *, actor: str, correlation_id: str) -> Rows:
    """Carry a birth out for these rows, all or none, committed together with what others create at this moment.

    Raises what the birth raises, and Unavailable when the database is away or too slow.
    """
    if is_reserved():  # waits for nobody
        with statement() as connection:
            return birth(connection, rows, actor=actor, correlation_id=correlation_id)
    writer = writers.get(birth) or writers.setdefault(birth, Writer(birth))
    return writer.write(Entry(rows, actor, correlation_id))
