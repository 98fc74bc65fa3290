"""Reading tickets. Nothing here reads history whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Double,
    RowMapping,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    func,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY

from models.kernel.errors import NotFound
from models.kernel.jobs import jobs
from models.kernel.latch import barred_since, latches
from models.kernel.ledger import ledger
from models.kernel.prepared import Prepared, prepare
from models.tickets.events import OUTCOME_TOPICS
from models.tickets.safety import STOPPING
from models.tickets.states import EXECUTING, QUEUED, TERMINAL, TICKET
from models.tickets.tables import EVERYTHING, lane_of, stop_orders, tickets

COUNT_CAP = 10_000
Row = RowMapping
Position = tuple[datetime, str]
Execution = tuple[str, int]


@dataclass(frozen=True)
class Clearance:
    """What may keep a live attempt from its robot: a stop that the robot is owed; an e-stop, in its words.

    `lease_left`: seconds until its lease ends, if nobody renews it.
    """

    stop_owed: bool
    emergency: str | None
    lease_left: float = math.inf


def get_ticket(connection: Connection, ticket_id: str) -> Row:
    """One ticket. Raises NotFound."""
    row = connection.execute(select(tickets).where(tickets.c.id == ticket_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"Ticket '{ticket_id}' not found", code="ticket_not_found")
    return row


def matching(filters: Mapping[str, str]) -> Any:
    """The condition for exact filters on state, command, priority, target."""
    return and_(True, *(tickets.c[name] == value for name, value in filters.items()))


def list_tickets(
    connection: Connection,
    filters: Mapping[str, str],
    *,
    limit: int,
    offset: int = 0,
    after: Position | None = None,
) -> Sequence[Row]:
    """Tickets newest first. `after` is the (created_at, id) of the last one seen: as fast at any depth."""
    query: Select[Any] = select(tickets).where(matching(filters))
    if after is not None:
        query = query.where(tuple_(tickets.c.created_at, tickets.c.id) < after)
    newest_first = query.order_by(tickets.c.created_at.desc(), tickets.c.id.desc())
    return connection.execute(newest_first.limit(limit).offset(offset)).mappings().all()


def count_tickets(connection: Connection, filters: Mapping[str, str]) -> tuple[int, bool]:
    """How many match, counted up to COUNT_CAP; and whether there are more than that."""
    some = select(tickets.c.id).where(matching(filters)).limit(COUNT_CAP + 1).subquery()
    found = connection.scalar(select(func.count()).select_from(some)) or 0
    return min(found, COUNT_CAP), found > COUNT_CAP


def outcomes_statement() -> Prepared:
    """How executions of tickets ended."""
    ids = bindparam("ids", None, type_=ARRAY(Text))
    ended = ledger.c.subject_id == func.any(ids), ledger.c.topic.in_(OUTCOME_TOPICS)
    told = select(ledger.c.subject_id, ledger.c.to_state, ledger.c.body)
    return prepare(told.where(ledger.c.subject_kind == TICKET.kind, *ended), {"ids": "text[]"})


OUTCOMES = outcomes_statement()


def list_outcomes(connection: Connection, executions: Sequence[Execution]) -> dict[Execution, dict[str, Any]]:
    """The recorded outcomes of these (ticket id, execution) pairs, of those that have ended, in one statement.

    They come from the ledger, so that a forced re-run cannot change what an earlier caller is told.
    """
    if not executions:
        return {}
    rows = OUTCOMES.run(connection, {"ids": sorted({ticket_id for ticket_id, _ in executions})})
    found = {(row["subject_id"], row["body"]["execution"]): {"status": row["to_state"], **row["body"]} for row in rows}
    return {pair: found[pair] for pair in executions if pair in found}


def list_moving_tickets(connection: Connection, target: str, *, before: int) -> Sequence[Row]:
    """What is being carried out in a robot's lane under a fence drawn before this one."""
    lane = (jobs.c.lane == lane_of(target), jobs.c.fence < before)
    mine = (jobs.c.subject_kind == TICKET.kind, jobs.c.subject_id == tickets.c.id)
    return (
        connection.execute(select(tickets.c.id, tickets.c.revision).join(jobs, and_(*mine)).where(*lane))
        .mappings()
        .all()
    )


def live_tickets() -> Select[Any]:
    """The ids of the tickets that have not ended, as a question: their history is kept."""
    return select(tickets.c.id).where(tickets.c.state.in_(sorted(TICKET.states - TERMINAL)))


def newer_stop(target: Any, fence: Any) -> Select[Any]:
    """The stops that a robot is owed under a fence drawn after this one, as a question."""
    owed = stop_orders.c.target == target, stop_orders.c.done_at.is_(None), stop_orders.c.fence > fence
    return select(stop_orders.c.id).where(*owed)


def find_newer_stop(connection: Connection, target: str, fence: int) -> int | None:
    """A stop that a robot is owed under a fence drawn after this one, by its number."""
    found: int | None = connection.scalar(newer_stop(target, fence).limit(1))
    return found


def clearance_statement() -> Prepared:
    """What may keep leased attempts from their robots, in one statement for any number of them."""
    job_ids = bindparam("job_ids", None, type_=ARRAY(BigInteger))
    attempts = func.unnest(
        job_ids,
        bindparam("fences", None, type_=ARRAY(BigInteger)),
        bindparam("targets", None, type_=ARRAY(Text)),
    )
    given = attempts.table_valued("job_id", "fence", "target").render_derived(name="given")
    latch = (
        select(latches.c.scope, latches.c.reason)
        .where(latches.c.scope.in_((EVERYTHING, given.c.target)), barred_since(jobs.c.created_at))
        .order_by(latches.c.engaged_at)
        .limit(1)
        .lateral("latch")
    )
    left = cast(func.extract("epoch", jobs.c.lease_until - func.clock_timestamp()), Double).label("lease_left")
    stop_owed = newer_stop(given.c.target, 0).exists().label("stop_owed")
    asked = select(jobs.c.id, latch.c.scope, latch.c.reason, stop_owed, left)
    asked = asked.select_from(given.join(jobs, jobs.c.id == given.c.job_id).outerjoin(latch, true()))
    # By their keys: what is going on has an index of its own, which a plan would read from end to end.
    asked = asked.where(jobs.c.id == func.any(job_ids), (jobs.c.fence == given.c.fence).is_(True))
    return prepare(asked, {"job_ids": "int8[]", "fences": "int8[]", "targets": "text[]"})


CLEARANCE = clearance_statement()


def find_clearances(connection: Connection, held: Sequence[tuple[int, int, str]]) -> dict[int, Clearance]:
    """What holds attempts back from their robots, read just before acting; one whose lease is gone is not among them.

    `held`: job id, fence and target of each. Answers by job id.
    """
    job_ids, fences, targets = (list(column) for column in zip(*held, strict=True))
    rows = CLEARANCE.run(connection, {"job_ids": job_ids, "fences": fences, "targets": targets})
    return {row["id"]: clearance_of(row) for row in rows}


def clearance_of(row: Mapping[str, Any]) -> Clearance:
    emergency = row["scope"] and emergency_text(row["scope"], row["reason"])
    return Clearance(row["stop_owed"], emergency, row["lease_left"])


def is_held_by_stop(connection: Connection, job_id: int) -> bool:
    """Whether a motion that nobody has taken waits for a stop that its robot is owed."""
    mine = and_(jobs.c.subject_kind == TICKET.kind, jobs.c.subject_id == tickets.c.id)
    free = (jobs.c.id == job_id, jobs.c.fence.is_(None), jobs.c.lane.is_not(None))
    asked = select(newer_stop(tickets.c.target, 0).exists()).select_from(jobs.join(tickets, mine)).where(*free)
    return bool(connection.scalar(asked))


def emergency_text(scope: str, reason: str) -> str:
    """What a ticket that an e-stop ended, or keeps from starting, is told."""
    return f"Emergency stop of {'everything' if scope == EVERYTHING else scope}: {reason}"


def latched_tickets(state: str, everything: bool) -> Select[Any]:
    """The tickets in one live state that an e-stop ends, with its scope and reason, as a question.

    `everything` says whether the e-stop of every robot is engaged: without it few targets are looked at.
    """
    over = latches.c.scope == (EVERYTHING if everything else tickets.c.target)
    engaged = select(tickets.c.id, tickets.c.revision, latches.c.scope, latches.c.reason)
    engaged = engaged.join(latches, and_(over, latches.c.released_at.is_(None)))
    return engaged.where(tickets.c.state == state, tickets.c.command.not_in(sorted(STOPPING)))


def list_latched_tickets(connection: Connection, state: str, *, everything: bool, limit: int) -> Sequence[Row]:
    """Some of them, without those that somebody is changing at this moment: a sweep waits for no row."""
    free = latched_tickets(state, everything).limit(limit).with_for_update(of=tickets, skip_locked=True)
    return connection.execute(free).mappings().all()


def count_latched_tickets(connection: Connection, *, everything: bool) -> int:
    """How many tickets an e-stop has yet to end, counted up to COUNT_CAP."""
    left = union_all(*(latched_tickets(state, everything) for state in (EXECUTING, QUEUED))).limit(COUNT_CAP)
    return connection.scalar(select(func.count()).select_from(left.subquery())) or 0
