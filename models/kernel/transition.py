"""Transition: the only way a state changes.

A `Transition` is built once, at import, and compiled to one SQL statement. Each call moves 1..n subjects, appends their
ledger rows, and makes, leases, returns or ends their jobs, in one round trip:

    given    the rows of this call, from one JSON document
    held     their jobs, locked in id order          (when the act starts from jobs)
    picked   their subjects, locked in id order, guarded by state and revision
    moved    the subjects after the move
    job      the change to their jobs
    told     their ledger rows

Each part feeds only from the rows that the part before it yields, so that a failed guard moves nothing, and locks are
always taken in the order job, subject, ledger. Subjects whose guard failed are absent from the answer: the caller
reads their present state and says what is wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Connection,
    Double,
    Integer,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError

from models.kernel import job_parts
from models.kernel.errors import Conflict
from models.kernel.expressions import among
from models.kernel.jobs import Spec
from models.kernel.ledger import ledger
from models.kernel.machine import Machine
from models.kernel.prepared import Prepared, prepare
from models.kernel.session import to_json
from models.kernel.settings import settings

Make = Callable[[Any, Any], Mapping[str, Any]]
Rows = list[Mapping[str, Any]]


class LaneBusy(Conflict):
    """Another job of this lane is being carried out."""

    code = "lane_busy"


Job = job_parts.Job

OF_A_CALL = {"rows": "text", "actor": "text", "reason": "text", "correlation_id": "text", "lease": "float8"}
"""What each call of an act brings, and as which type."""


@dataclass(frozen=True)
class Subject:
    """A kind of thing with states: its machine and its table.

    The table has the columns id, state, revision, correlation_id and updated_at.
    """

    machine: Machine
    table: Table

    @property
    def kind(self) -> str:
        return self.machine.kind


@dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    """What the ledger is told of a move; each part is a function of the moved row's columns.

    `topic` names what happened, it is counted by `label` and `elapsed_ms`, `body` is what the public may read.
    """

    topic: Callable[[Any], Any]
    body: Callable[[Any], Mapping[str, Any]] = lambda _m: {}
    label: Callable[[Any], Any] = lambda _m: literal("")
    elapsed_ms: Callable[[Any], Any] = lambda _m: null()
    reason: Callable[[Any], Any] = lambda _m: null()

    def insert_into_ledger(self, kind: str, moved: CTE, from_state: Any) -> CTE:
        body = func.jsonb_build_object(*(part for pair in self.body(moved.c).items() for part in pair))
        values = {
            "subject_kind": literal(kind),
            "subject_id": moved.c.id,
            "revision": moved.c.revision,
            "from_state": from_state,
            "to_state": moved.c.state,
            "topic": self.topic(moved.c),
            "label": self.label(moved.c),
            "elapsed_ms": cast(self.elapsed_ms(moved.c), Double),
            "actor": moved.c.get("given_actor", bindparam("actor", None, type_=Text)),
            "reason": func.coalesce(bindparam("reason", None, type_=Text), cast(self.reason(moved.c), Text)),
            "correlation_id": func.coalesce(bindparam("correlation_id", None, type_=Text), moved.c.correlation_id),
            "body": body,
        }
        source = select(*(value.label(name) for name, value in values.items())).order_by(moved.c.id)
        told = insert(ledger).from_select(list(values), source)
        return told.returning(ledger.c.seq, ledger.c.subject_id, ledger.c.body).cte("told")


@dataclass(frozen=True, kw_only=True, eq=False)
class Act:
    """What births and moves share: they are compiled once and fed by one JSON document."""

    subject: Subject
    told: Told
    given: Mapping[str, Any] = field(default_factory=dict)
    owes: Callable[[Any], Spec] | None = None

    def __call__(
        self,
        connection: Connection,
        rows: Sequence[Mapping[str, Any]],
        *,
        actor: str,
        correlation_id: str | None = None,
        reason: str | None = None,
    ) -> Rows:
        """Carry the act out for the given rows; answers the subjects that moved, jobs' columns beside them.

        Raises LaneBusy when a lease would put two jobs of one lane to work.
        """
        call = {"rows": to_json(list(rows)), "actor": actor, "reason": reason, "correlation_id": correlation_id}
        try:
            return self.prepared.run(connection, {**call, "lease": settings().lease_seconds})
        except IntegrityError as error:
            if job_parts.LANE_INDEX in str(error.orig):
                raise LaneBusy("Another job of this lane is being carried out") from error
            raise

    @functools.cached_property
    def prepared(self) -> Prepared:
        return prepare(self.statement(), OF_A_CALL)

    def statement(self) -> Any:
        raise NotImplementedError

    def given_rows(self, types: Mapping[str, Any]) -> CTE:
        document = cast(bindparam("rows", None, type_=Text), JSONB)
        rows = func.jsonb_to_recordset(document).table_valued(*(column(name, kind) for name, kind in types.items()))
        return select(rows.render_derived(name="document", with_types=True)).cte("given")

    def owed_job(self, moved: CTE) -> CTE | None:
        return job_parts.owed(self.subject.kind, moved, self.owes(moved.c)) if self.owes else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Birth(Act):
    """The transition from nothing: the given columns are the new row's, the correlation id too if it is given."""

    def statement(self) -> Any:
        given = self.given_rows(self.given)
        table = self.subject.table
        new: dict[str, Any] = {
            "state": literal(self.subject.machine.initial),
            "correlation_id": bindparam("correlation_id", None, type_=Text),
        }
        new |= {name: given.c[name] for name in self.given}
        born = insert(table).from_select(list(new), select(*(v.label(n) for n, v in new.items()))).returning(*table.c)
        moved = born.cte("moved")
        job = self.owed_job(moved)
        told = self.told.insert_into_ledger(self.subject.kind, moved, null())
        return select(moved).add_cte(told, *([] if job is None else [job]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Transition(Act):
    """A move between states.

    sources, targets  where it may start and end; with several targets each given row names its `to`
    set               new values of the subject's columns, from (subject columns, given columns)
    guard             a further condition on the subject's columns
    job               what it does to the subject's job
    also              further statements fed by the moved rows
    after             further statements fed by the moved rows and by the jobs that ended with them
    recorded          further statements fed by the moved rows and by what the ledger was told (seq, subject_id, body)
    keeps_lane        nobody behind it in its lane is woken: what is given back keeps its place
    """

    sources: frozenset[str]
    targets: frozenset[str]
    set: Make = lambda _s, _g: {}
    guard: Callable[[Any], Any] = lambda _s: true()
    job: Job = Job.NONE
    also: Callable[[CTE], Iterable[Any]] = lambda _m: ()
    after: Callable[[CTE, CTE], Iterable[Any]] = lambda _m, _j: ()
    recorded: Callable[[CTE, CTE], Iterable[Any]] = lambda _m, _t: ()
    keeps_lane: bool = False

    def __post_init__(self) -> None:
        self.subject.machine.check(self.sources, self.targets)
        if self.owes and self.job is not Job.NONE:
            raise ValueError(f"{self.subject.kind}: an act that touches a job owes none; it would be forgotten")

    def statement(self) -> Any:
        given = self.given_rows(self.columns())
        moved = self.moved(given, self.picked(given))
        answer = select(moved)
        job = self.job_change(moved)
        if self.job is Job.LEASE and job is not None:
            answer = answer.add_columns(*(c for c in job.c if c.name != "job_id")).where(moved.c.job_id == job.c.job_id)
        elif job is not None and "sent" in job.c:
            answer = answer.add_columns(job.c.sent).where(moved.c.id == job.c.subject_id)
        elif job is not None:
            answer = answer.add_cte(job)
        return answer.add_cte(*self.further(moved, job))

    def further(self, moved: CTE, job: CTE | None) -> list[CTE]:
        parts = [told := self.told.insert_into_ledger(self.subject.kind, moved, moved.c.from_state)]
        if job is not None and self.job not in {Job.NONE, Job.LEASE} and not self.keeps_lane:
            parts.append(job_parts.next_in_lane(job))
        more = [*self.also(moved), *self.recorded(moved, told), *(self.after(moved, job) if job is not None else ())]
        return parts + [part.cte(f"also_{n}") for n, part in enumerate(more)]

    def columns(self) -> dict[str, Any]:
        by_job = self.job in job_parts.BY_JOB
        types: dict[str, Any] = {"job_id": BigInteger} if by_job else {"id": Text, "revision": Integer}
        if self.job in job_parts.BY_FENCE:
            types["fence"] = BigInteger
        if self.job is Job.RETRY:
            types["delay_seconds"] = Double
        if len(self.targets) > 1:
            types["to"] = Text
        return types | dict(self.given)

    def picked(self, given: CTE) -> CTE:
        table = self.subject.table
        query = select(table.c.id, table.c.state.label("from_state"))
        if self.job in job_parts.BY_JOB:
            held = job_parts.held(self.subject.kind, given, self.job)
            query = query.add_columns(held.c.job_id)
            query = query.where(among(table.c.id, held.c.subject_id), table.c.id == held.c.subject_id)
        else:
            revision = func.coalesce(given.c.revision, table.c.revision)
            query = query.where(among(table.c.id, given.c.id), table.c.id == given.c.id)
            query = query.where(table.c.revision == revision)
        if self.job is Job.END_ANY:
            # Reading the count makes Postgres lock the jobs before the subjects. A subject that changed while this
            # waited for its lock may owe a job that this statement cannot see: it stays, and the caller looks again.
            held = job_parts.held_by_subject(self.subject.kind, given)
            seen = select(table.c.id, table.c.revision).where(among(table.c.id, given.c.id)).cte("seen")
            seen = seen.prefix_with("MATERIALIZED")
            query = query.where(table.c.id == seen.c.id, table.c.revision == seen.c.revision)
            query = query.where(select(func.count()).select_from(held).scalar_subquery() >= 0)
        sources = bindparam("sources", sorted(self.sources), type_=job_parts.TEXTS)
        return (
            query.where((table.c.state == func.any(sources)).is_(True), self.guard(table.c))
            .order_by(table.c.id)
            .with_for_update(of=table)
            .cte("picked")
        )

    def moved(self, given: CTE, picked: CTE) -> CTE:
        table = self.subject.table
        by_job, several = self.job in job_parts.BY_JOB, len(self.targets) > 1
        target = given.c.to if several else literal(next(iter(self.targets)))
        values = {"state": target, "revision": table.c.revision + 1, "updated_at": func.clock_timestamp()}
        carried: list[Any] = [given.c[name].label(f"given_{name}") for name in self.given]
        carried += [picked.c.job_id] if by_job else []
        carried += [given.c.delay_seconds] if self.job is Job.RETRY else []
        same = given.c.job_id == picked.c.job_id if by_job else given.c.id == picked.c.id
        query = update(table).where(among(table.c.id, picked.c.id), table.c.id == picked.c.id, same)
        if several:
            query = query.where(target == func.any(bindparam("targets", sorted(self.targets), type_=job_parts.TEXTS)))
        query = query.values({**values, **self.set(table.c, given.c)})
        return query.returning(*table.c, picked.c.from_state, *carried).cte("moved")

    def job_change(self, moved: CTE) -> CTE | None:
        changes: dict[Job, Callable[[], CTE | None]] = {
            Job.NONE: lambda: self.owed_job(moved),
            Job.LEASE: lambda: job_parts.leased(moved),
            Job.END: lambda: job_parts.ended(moved),
            Job.END_UNSTARTED: lambda: job_parts.ended(moved),
            Job.END_ANY: lambda: job_parts.ended_by_subject(self.subject.kind, moved),
            Job.RETURN: lambda: job_parts.returned(moved, attempts=-1),
            Job.RETRY: lambda: job_parts.returned(moved, attempts=0, delay_seconds=moved.c.delay_seconds),
        }
        return changes[self.job]()
