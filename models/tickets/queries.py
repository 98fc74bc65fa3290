"""Reading tickets. Nothing here reads history whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, and_, func, select, tuple_

from models.kernel.errors import NotFound
from models.kernel.jobs import jobs
from models.kernel.ledger import ledger
from models.tickets.events import OUTCOME_TOPICS
from models.tickets.states import TICKET
from models.tickets.tables import lane_of, stop_orders, tickets

COUNT_CAP = 10_000
Row = RowMapping
Position = tuple[datetime, str]
Execution = tuple[str, int]


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


def list_outcomes(connection: Connection, executions: Sequence[Execution]) -> dict[Execution, dict[str, Any]]:
    """The recorded outcomes of these (ticket id, execution) pairs, of those that have ended, in one statement.

    They come from the ledger, so that a forced re-run cannot change what an earlier caller is told.
    """
    if not executions:
        return {}
    ids = sorted({ticket_id for ticket_id, _ in executions})
    rows = connection.execute(
        select(ledger.c.subject_id, ledger.c.to_state, ledger.c.body).where(
            ledger.c.subject_kind == TICKET.kind,
            ledger.c.subject_id.in_(ids),
            ledger.c.topic.in_(OUTCOME_TOPICS),
        )
    )
    found = {(row.subject_id, row.body["execution"]): {"status": row.to_state, **row.body} for row in rows}
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


def find_pending_stop(connection: Connection, target: str) -> int | None:
    """A stop that a robot is owed and has not taken yet, by its number."""
    owed = stop_orders.c.target == target, stop_orders.c.done_at.is_(None)
    return connection.scalar(select(stop_orders.c.id).where(*owed).limit(1))
