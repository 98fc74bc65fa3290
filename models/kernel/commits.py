"""Births that share a statement and its commit: who creates at the same moment goes together (`company`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Integer, Text, insert, literal, null, select

from models.kernel.company import Company
from models.kernel.session import statement
from models.kernel.transition import Birth, Rows


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


@dataclass(frozen=True)
class Draft:
    """What one caller wants made: all of its rows, or none."""

    rows: Sequence[Mapping[str, Any]]
    actor: str
    correlation_id: str


class Writer(Company[Draft, Rows]):
    """The births of one kind in this process."""

    def __init__(self, birth: Birth) -> None:
        super().__init__(self.write)
        self.birth = birth
        self.joint = Joint(subject=birth.subject, told=birth.told, given=birth.given, owes=birth.owes)

    def write(self, drafts: Sequence[Draft]) -> list[Rows]:
        with statement() as connection:
            if len(drafts) == 1:
                (own,) = drafts
                return [self.birth(connection, own.rows, actor=own.actor, correlation_id=own.correlation_id)]
            born = self.joint(connection, given_rows(drafts), actor="")
        made: list[Rows] = [[] for _ in drafts]
        for row in born:
            made[row["caller"]].append(row)
        return made


def given_rows(drafts: Sequence[Draft]) -> Rows:
    return [
        {"correlation_id": draft.correlation_id, **row, "given_actor": draft.actor, "caller": caller}
        for caller, draft in enumerate(drafts)
        for row in draft.rows
    ]


writers: dict[Birth, Writer] = {}


def share(birth: Birth, rows: Sequence[Mapping[str, Any]], *, actor: str, correlation_id: str) -> Rows:
    """Carry a birth out for these rows, all or none, committed together with what others create at this moment.

    Raises what the birth raises, and Unavailable when the database is away or too slow.
    """
    writer = writers.get(birth) or writers.setdefault(birth, Writer(birth))
    return writer.go(Draft(rows, actor, correlation_id))
