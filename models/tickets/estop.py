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
from models.tickets.stops import list_stopped
from models.tickets.tables import EVERYTHING

BATCH = 500
SWEEP_SECONDS = 2.0
"""How long a request sweeps; the guardian goes on where it ends."""


@dataclass(frozen=True)
class Swept:
    """How many tickets a sweep ended, and how many are left."""

    revoked: int = 0
    left: int = 0


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
    connection: Connection, actor: str, *, correlation_id: str | None = None, seconds: float = SWEEP_SECONDS
) -> Swept:
    """End what is carried out, then what is queued, under every engaged latch, for about `seconds` at most.

    They fail as `emergency_stop` and leave dead letters; robots that moved are ordered a stop.
    """
    if not latch.list_latches(connection, limit=1):
        return Swept()
    everything = latch.find_latch(connection, EVERYTHING) is not None
    until = clock.monotonic() + seconds
    revoked = 0
    for state in (EXECUTING, QUEUED):
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
    """Under which tickets robots moved and were stopped since the latch of this scope was engaged, whoever swept."""
    engaged = latch.find_latch(connection, scope)
    target = None if scope == EVERYTHING else scope
    if engaged is None:
        return []
    return list_stopped(connection, target, engaged["engaged_at"], transitions.EMERGENCY_STOP)


def release_estop(connection: Connection, scope: str, reason: str, caller: Caller) -> tuple[bool, Swept]:
    """Let motions begin again that are ordered from now on; False when it was not engaged.

    What was ordered before stays ended: the sweep is completed first, and an attempt that it could not see is held
    back by the moment of the release. Raises Conflict (`estop_sweeping`), and releases nothing, while the sweep is
    not done.
    """
    if latch.find_latch(connection, scope) is None:
        return False, Swept()
    swept = sweep_tickets(connection, caller.name, correlation_id=caller.correlation_id)
    if swept.left:
        text = f"{swept.left} tickets are still being ended; try again"
        raise Conflict(text, code="estop_sweeping")
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
