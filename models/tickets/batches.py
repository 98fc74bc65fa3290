"""What may be done to many tickets at once: executing, cancelling, replaying, by ids or by filter.

Executing takes pending tickets. Replaying takes tickets that have ended: a filter finds the
failed and the cancelled, and only who names a completed ticket by its id runs it again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Text, and_, exists, func, literal, select, tuple_, union_all
from sqlalchemy.dialects.postgresql import ARRAY

from models.kernel import bulk, bulk_acts, bulk_moves, dead_letters
from models.kernel.bulk_acts import Act, Order, Outcome, Page
from models.kernel.latch import barred_since, latches
from models.kernel.transition import Rows, Transition
from models.tickets import transitions
from models.tickets.operations import CONTENDED_TRIES, refusal_of
from models.tickets.queries import matching
from models.tickets.states import CANCELLED, EXECUTING, FAILED, PENDING, QUEUED, TERMINAL
from models.tickets.tables import EVERYTHING, tickets

EXECUTE, CANCEL, REPLAY = "tickets.execute", "tickets.cancel", "tickets.replay"
FOUND_BY_FILTER = {EXECUTE: (PENDING,), CANCEL: (PENDING, QUEUED, EXECUTING), REPLAY: (FAILED, CANCELLED)}

AGAIN = transitions.accepting(TERMINAL)
AGAIN_UNLESS_COMPLETED = transitions.accepting(frozenset(FOUND_BY_FILTER[REPLAY]))


def execute_many(connection: Connection, ticket_ids: Sequence[str], order: Order) -> Outcome:
    return accept_many(connection, transitions.ACCEPT, ticket_ids, order)


def replay_many(connection: Connection, ticket_ids: Sequence[str], order: Order) -> Outcome:
    act = AGAIN if order.named else AGAIN_UNLESS_COMPLETED
    return accept_many(connection, act, ticket_ids, order)


def replay_dead(connection: Connection, ticket_ids: Sequence[str], order: Order) -> Mapping[str, str]:
    """Set tickets going again that left dead letters; one that has completed since stays as it is."""
    return accept_many(connection, AGAIN_UNLESS_COMPLETED, ticket_ids, order).refused


def accept_many(connection: Connection, act: Transition, ticket_ids: Sequence[str], order: Order) -> Outcome:
    """Set tickets going, but none that an e-stop has held back since they were ordered: a release starts nothing."""
    caller = order.caller
    barred = list_barred(connection, ticket_ids, order)
    given = {"expires_in_seconds": order.seconds_left, "correlation_id": caller.correlation_id}
    rows = [{"id": name, "turn": turn, **given} for turn, name in enumerate(ticket_ids) if name not in barred]
    moved = act(connection, rows, actor=caller.name, correlation_id=caller.correlation_id) if rows else []
    if any(row["command"] in transitions.STOPPING for row in moved):
        connection.execute(select(func.pg_notify(transitions.STOPS_CHANNEL, "")))
    left = set(ticket_ids) - {row["id"] for row in moved}
    return Outcome(len(moved), why_not(connection, left, act, order))


def named(ticket_ids: Iterable[str]) -> Any:
    """The condition that a ticket is one of these."""
    return tickets.c.id == func.any(literal(sorted(ticket_ids), ARRAY(Text)))


def is_barred(order: Order) -> Any:
    """The condition that an e-stop has been engaged over a ticket's robot since the order, or still is."""
    moment = func.clock_timestamp() if order.asked_at is None else order.asked_at
    over = latches.c.scope.in_((EVERYTHING, tickets.c.target))
    return and_(tickets.c.command.not_in(transitions.STOPPING), exists().where(over, barred_since(moment)))


def list_barred(connection: Connection, ticket_ids: Sequence[str], order: Order) -> set[str]:
    return set(connection.scalars(select(tickets.c.id).where(named(ticket_ids), is_barred(order))))


def cancel_many(connection: Connection, ticket_ids: Sequence[str], order: Order) -> Outcome:
    """Cancel what has not ended; what changes meanwhile is looked at again."""
    moved: Rows = []
    left = set(ticket_ids)
    for _ in range(CONTENDED_TRIES):
        going = select(tickets.c.id, tickets.c.revision).where(named(left), tickets.c.state.not_in(sorted(TERMINAL)))
        verdict = {"error": f"Cancelled by {order.caller.name}", "error_code": "cancelled"}
        rows = [{"id": seen.id, "revision": seen.revision, **verdict} for seen in connection.execute(going)]
        if not rows:
            break
        now = transitions.CANCEL(connection, rows, actor=order.caller.name, correlation_id=order.caller.correlation_id)
        moved += now
        left -= {row["id"] for row in now}
    return Outcome(len(moved), why_not(connection, left, transitions.CANCEL, order), ended=[row["id"] for row in moved])


def why_not(connection: Connection, ticket_ids: set[str], act: Transition, order: Order) -> dict[str, str]:
    """The code of each of these that was left as it is, read in a statement of its own."""
    if not ticket_ids:
        return {}
    asked = select(tickets.c.id, tickets.c.state, is_barred(order).label("barred"))
    present = connection.execute(asked.where(named(ticket_ids)))
    codes = {row.id: code_of(row.state, row.barred, act) for row in present}
    return {ticket_id: codes.get(ticket_id, "ticket_not_found") for ticket_id in sorted(ticket_ids)}


def code_of(state: str, barred: bool, act: Transition) -> str:
    if state not in act.sources:
        return refusal_of(state).code
    return transitions.EMERGENCY_STOP if barred else "contended"


def list_next(
    connection: Connection,
    filters: Mapping[str, Any],
    until: datetime,
    position: Any,
    limit: int,
    *,
    states: Sequence[str],
) -> Page:
    """The next tickets, oldest first, that match the filters, existed then and are in one of these states.

    One state at a time runs along its index, so that a few failed ones are found among millions that completed.
    """
    exact = {name: value for name, value in filters.items() if name in tickets.c}
    states = [filters["status"]] if "status" in filters else states
    wanted = [matching(exact), tickets.c.created_at <= until]
    if "created_before" in filters:
        wanted.append(tickets.c.created_at < datetime.fromisoformat(filters["created_before"]))
    if "created_after" in filters:
        wanted.append(tickets.c.created_at > datetime.fromisoformat(filters["created_after"]))
    if position is not None:
        behind = (datetime.fromisoformat(position[0]), position[1])
        wanted.append(tuple_(tickets.c.created_at, tickets.c.id) > behind)
    oldest = (tickets.c.created_at, tickets.c.id)
    parts = [
        select(*oldest).where(*wanted, tickets.c.state == state).order_by(*oldest).limit(limit).subquery()
        for state in states
    ]
    every = union_all(*(select(part) for part in parts)).subquery()
    rows = connection.execute(select(every).order_by(every.c.created_at, every.c.id).limit(limit)).all()
    return Page([row.id for row in rows], [rows[-1].created_at.isoformat(), rows[-1].id] if rows else position)


ACTS = [
    Act(name, carry_out, functools.partial(list_next, states=FOUND_BY_FILTER[name]))
    for name, carry_out in ((EXECUTE, execute_many), (CANCEL, cancel_many), (REPLAY, replay_many))
]


def register_acts() -> None:
    """Make these acts, and the replay of what died, known to this process."""
    bulk_acts.register(*ACTS)
    dead_letters.register_replay(transitions.TASK, replay_dead)
    dead_letters.register_replay(bulk_moves.TASK, bulk.resume_operations)
