"""The e-stop of the robots: a latch over all of them or over one, and the sweep that ends what it finds.

Engaging waits for nobody: the latch commits by itself, and only then, in new statements, is
ended what moves and what is queued. A sweep may be cut short, by its own bound or by the death
of its process: the guardian sweeps too for as long as a latch is engaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from models.kernel import clock, latch
from models.kernel.clients import Caller
from models.kernel.errors import Conflict
from models.kernel.ledger import note
from models.tickets import events, transitions
from models.tickets.queries import Row, count_latched_tickets, emergency_text, list_latched_tickets
from models.tickets.states import EXECUTING, QUEUED
from models.tickets.stops import (
    MOST_SHOWN,
    count_taken_stops,
    count_untaken_stops,
    list_stopped,
    list_untaken_stops,
)
from models.tickets.tables import EVERYTHING

BATCH = 500
MOVING_STATES = (EXECUTING,)
MOST_NAMED = 10
SWEEP_SECONDS = 2.0
"""How long a request sweeps; the guardian goes on where it ends."""


@dataclass(frozen=True)
class Swept:
    """How many tickets a sweep ended, and how many are left."""

    revoked: int = 0
    left: int = 0


@dataclass(frozen=True)
class Delivery:
    """How many stops robots have yet to take, and have taken; the first of those that they have yet to take."""

    owed: int
    taken: int
    untaken: Sequence[Row]


def engage_estop(connection: Connection, scope: str, reason: str, caller: Caller) -> bool:
    """Stop every robot (`all`) or one: committed when this returns. False when it was engaged before.

    The latch commits before anything else is tried, even before the ledger is told: nothing that fails may undo it.
    The caller sweeps next. Wants a connection on which each statement commits.
    """
    engaged = latch.engage_latch(connection, scope, reason, caller)
    if engaged:
        tell(connection, events.ESTOP_ENGAGED, scope, reason, caller)
    return engaged


def sweep_tickets(
    connection: Connection,
    actor: str,
    *,
    correlation_id: str | None = None,
    seconds: float = SWEEP_SECONDS,
    states: Sequence[str] = (EXECUTING, QUEUED),
) -> Swept:
    """End what is carried out, then what is queued, under every engaged latch, for about `seconds` at most.

    `states`: only what is in these; whatever else there is counts as left. They fail as `emergency_stop` and
    leave dead letters; robots that moved are ordered a stop.
    """
    if not latch.list_latches(connection, limit=1):
        return Swept()
    everything = latch.find_latch(connection, EVERYTHING) is not None
    until = clock.monotonic() + seconds
    revoked = 0
    for state in states:
        while found := list_latched_tickets(connection, state, everything=everything, limit=BATCH):
            rows = [verdict(row) for row in found]
            revoked += len(transitions.REVOKE(connection, rows, actor=actor, correlation_id=correlation_id))
            if clock.monotonic() > until:
                break
    left = count_latched_tickets(connection, everything=everything)
    return Swept(revoked, left)


def verdict(row: Row) -> dict[str, object]:
    error = emergency_text(row["scope"], row["reason"])
    return {"id": row["id"], "revision": row["revision"], "error": error, "error_code": transitions.EMERGENCY_STOP}


def list_stopped_tickets(connection: Connection, scope: str) -> Sequence[str]:
    """Under which tickets robots moved and were ordered a stop since this scope was engaged, whoever swept."""
    engaged = latch.find_latch(connection, scope)
    if engaged is None:
        return []
    return list_stopped(connection, target_of(scope), engaged["engaged_at"], transitions.EMERGENCY_STOP)


def target_of(scope: str) -> str | None:
    """The robot that a scope is about; None for all of them."""
    return None if scope == EVERYTHING else scope


def get_delivery(connection: Connection, scope: str = EVERYTHING) -> Delivery:
    """Which robots of a scope have yet to take a stop that they were ordered, whatever for; how many have taken one.

    Those taken are counted since the first latch that is engaged now, in the scope, was engaged.
    """
    target = target_of(scope)
    scoped = [row for row in latch.list_latches(connection) if target is None or row["scope"] in (EVERYTHING, target)]
    untaken = list_untaken_stops(connection, target)
    listed = [row["id"] for row in untaken]  # one that is taken meanwhile is counted once
    taken = count_taken_stops(connection, target, scoped[0]["engaged_at"], listed) if scoped else 0
    owed = len(untaken)  # counted anew only where the list ends early: a stop taken meanwhile would belie the list
    return Delivery(count_untaken_stops(connection, target) if owed == MOST_SHOWN else owed, taken, untaken)


def refuse_moving(connection: Connection, scope: str) -> None:
    """Raises Conflict (`estop_stops_owed`) while a robot of this scope may still be moving."""
    delivery = get_delivery(connection, scope)
    if delivery.owed:
        targets = sorted({row["target"] for row in delivery.untaken})
        names = ", ".join(targets[:MOST_NAMED]) + (" and others" if len(targets) > MOST_NAMED else "")
        text = f"{delivery.owed} stops were ordered and not taken, so that these may still move: {names}"
        raise Conflict(text, code="estop_stops_owed")


def release_estop(
    connection: Connection, scope: str, reason: str, caller: Caller, *, force: bool = False
) -> tuple[bool, Swept]:
    """Let motions begin again that are ordered from now on; False when it was not engaged.

    What was ordered before stays ended: the sweep is completed first, and an attempt that it could not see is held
    back by the moment of the release. Raises Conflict (`estop_sweeping`), and releases nothing, while the sweep is
    not done; so does `estop_stops_owed` while a robot has not taken its stop once, unless `force` is given.
    """
    if latch.find_latch(connection, scope) is None:
        return False, Swept()
    swept = sweep_tickets(connection, caller.name, correlation_id=caller.correlation_id)
    if swept.left:
        text = f"{swept.left} tickets are still being ended; try again"
        raise Conflict(text, code="estop_sweeping")
    if not force:
        refuse_moving(connection, scope)
    released = latch.release_latch(connection, scope, reason, caller)
    if released:
        tell(connection, events.ESTOP_RELEASED, scope, reason, caller)
    return released, swept


def tell(connection: Connection, topic: str, scope: str, reason: str, caller: Caller) -> None:
    note(
        connection,
        topic,
        subject=(latch.KIND, scope),
        actor=caller.name,
        correlation_id=caller.correlation_id,
        reason=reason,
        body={"scope": scope, "reason": reason, "by": caller.name},
    )
