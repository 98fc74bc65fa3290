"""Everything that may be done to a ticket. Each act is one transition; none publishes anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from models.kernel import commits
from models.kernel.clients import Caller
from models.kernel.errors import Conflict, IllegalTransition, LeaseLost
from models.kernel.jobs import Held
from models.kernel.latch import find_latch
from models.kernel.ledger import note
from models.kernel.transition import Rows
from models.tickets import events, transitions
from models.tickets.queries import Row, emergency_text, get_ticket, list_moving_tickets
from models.tickets.states import TERMINAL, TICKET
from models.tickets.stops import release_robot
from models.tickets.tables import EVERYTHING

LOST = "The worker fell silent while the command was being carried out; whether the robot moved is unknown"
EXPIRED = "The command could not start in time and has expired"

CONTENDED_TRIES = 5


@dataclass(frozen=True)
class Attempt:
    """One leased try at one ticket: what the worker needs, and the fence it acts under."""

    job_id: int
    fence: int
    ticket_id: str
    execution: int
    command: str
    params: dict[str, Any]
    target: str
    timeout_seconds: float
    not_after: datetime
    correlation_id: str


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: `to` is completed, failed or cancelled."""

    to: str
    result: Mapping[str, Any] | None = None
    error: str | None = None
    error_code: str | None = None


def create_tickets(connection: Connection, drafts: Sequence[Mapping[str, Any]], caller: Caller) -> Rows:
    """Create tickets, all or none, from drafts that hold command, params, priority, timeout_seconds, metadata, target.

    Unsafe commands are created too; they fail at execution with the reason.
    """
    rows = births(drafts, caller)
    return transitions.CREATE(connection, rows, actor=caller.name, correlation_id=caller.correlation_id)


def create_ticket(connection: Connection | None, draft: Mapping[str, Any], caller: Caller) -> Mapping[str, Any]:
    """Create one ticket as `create_tickets` does; without a connection it commits with others of this moment."""
    if connection is not None:
        return create_tickets(connection, [draft], caller)[0]
    rows = births([draft], caller)
    return commits.share(transitions.CREATE, rows, actor=caller.name, correlation_id=caller.correlation_id)[0]


def births(drafts: Sequence[Mapping[str, Any]], caller: Caller) -> list[dict[str, Any]]:
    return [{**draft, "tenant": caller.tenant, "created_by": caller.name} for draft in drafts]


def accept_execution(
    connection: Connection,
    ticket_id: str,
    *,
    expires_in_seconds: float,
    force: bool,
    caller: Caller,
    sends: bool = False,
) -> Mapping[str, Any]:
    """Set a ticket going: it is queued, and a worker owes its execution.

    Whoever `sends` is answered what to send, if that falls to it, as `sent`: the columns of a `backlog.Ready`.
    Raises NotFound; IllegalTransition when it is going already, or ended and not forced; Conflict
    (`emergency_stop`) while its robot is stopped: the ticket then stays as it was.
    """
    if sends:
        act = transitions.ACCEPT_FORCED_AND_SEND if force else transitions.ACCEPT_AND_SEND
    else:
        act = transitions.ACCEPT_FORCED if force else transitions.ACCEPT
    row = {
        "id": ticket_id,
        "expires_in_seconds": expires_in_seconds,
        "correlation_id": caller.correlation_id,
    }
    for _ in range(CONTENDED_TRIES):
        moved = act(connection, [row], actor=caller.name, correlation_id=caller.correlation_id)
        if moved:
            if moved[0]["command"] in transitions.STOPPING:
                connection.execute(select(func.pg_notify(transitions.STOPS_CHANNEL, "")))
            return moved[0]
        ticket = get_ticket(connection, ticket_id)
        state = ticket["state"]
        if state not in act.sources:
            break
        refuse_stopped(connection, ticket)
        # else it has become possible meanwhile: try again
    raise refusal_of(state)


def refusal_of(state: str) -> IllegalTransition:
    """Why a ticket in this state is not set going."""
    if state in TERMINAL:
        text = f"Ticket already in terminal state: {state}. Use force=true to re-execute."
        return IllegalTransition(text, state=state, code="ticket_terminal")
    return IllegalTransition(f"Ticket is already {state}", state=state, code=f"ticket_{state}")


def refuse_stopped(connection: Connection, ticket: Row) -> None:
    """Raises Conflict when an e-stop keeps this ticket from starting."""
    latch = find_latch(connection, EVERYTHING, ticket["target"])
    if latch is not None and ticket["command"] not in transitions.STOPPING:
        raise Conflict(emergency_text(latch["scope"], latch["reason"]), code=transitions.EMERGENCY_STOP)


def take_tickets(connection: Connection, job_ids: Sequence[int], worker: str) -> dict[int, Attempt]:
    """Lease the jobs and start their executions; answers, by job, those that were to be had. Raises LaneBusy."""
    rows = transitions.TAKE(connection, [{"job_id": job_id} for job_id in job_ids], actor=worker)
    return {row["job_id"]: attempt_of(row) for row in rows}


def take_ticket(connection: Connection, job_id: int, worker: str) -> Attempt | None:
    """Lease the job and start the execution; None when it is no longer to be had. Raises LaneBusy."""
    return take_tickets(connection, [job_id], worker).get(job_id)


def attempt_of(row: Mapping[str, Any]) -> Attempt:
    return Attempt(
        job_id=row["job_id"],
        fence=row["fence"],
        ticket_id=row["id"],
        execution=row["execution"],
        command=row["command"],
        params=row["params"],
        target=row["target"],
        timeout_seconds=row["job_timeout_seconds"],
        not_after=row["not_after"],
        correlation_id=row["correlation_id"],
    )


def settle_tickets(
    connection: Connection, ends: Sequence[tuple[Attempt, Outcome]], worker: str
) -> list[Mapping[str, Any] | LeaseLost]:
    """Record how attempts ended; answers, in order, their tickets, or LeaseLost for an attempt that owns its no more.

    The outcome of such an attempt is kept in the ledger as evidence and changes nothing.
    """
    given = [held_by(attempt) | told_by(outcome) for attempt, outcome in ends]
    rows = {row["id"]: row for row in transitions.SETTLE(connection, given, actor=worker)}
    return [
        rows.get(attempt.ticket_id) or keep_late_outcome(connection, attempt, outcome, worker)
        for attempt, outcome in ends
    ]


def settle_ticket(connection: Connection, attempt: Attempt, outcome: Outcome, worker: str) -> Mapping[str, Any]:
    """Record how one attempt ended, as `settle_tickets` does. Raises LeaseLost."""
    (ended,) = settle_tickets(connection, [(attempt, outcome)], worker)
    if isinstance(ended, LeaseLost):
        raise ended
    return ended


def held_by(attempt: Attempt) -> dict[str, Any]:
    return {"job_id": attempt.job_id, "fence": attempt.fence}


def told_by(outcome: Outcome) -> dict[str, Any]:
    return {"to": outcome.to, "result": outcome.result, "error": outcome.error, "error_code": outcome.error_code}


def keep_late_outcome(connection: Connection, attempt: Attempt, outcome: Outcome, worker: str) -> LeaseLost:
    """The outcome of an attempt that no longer owns its ticket; its worker has let go of the robot."""
    about = {name: getattr(attempt, name) for name in ("ticket_id", "command", "target", "execution")}
    note(
        connection,
        events.EVIDENCE,
        subject=(TICKET.kind, attempt.ticket_id),
        actor=worker,
        correlation_id=attempt.correlation_id,
        reason="lease_lost",
        body={**about, **held_by(attempt), **told_by(outcome)},
    )
    release_robot(connection, attempt.ticket_id, attempt.execution)
    return LeaseLost(f"The attempt under fence {attempt.fence} no longer owns {attempt.ticket_id}")


def release_ticket(connection: Connection, attempt: Attempt, worker: str) -> bool:
    """Give an attempt back that never reached the driver; it will be taken again. False when the lease was lost."""
    if transitions.RELEASE(connection, [held_by(attempt)], actor=worker, reason="released"):
        return True
    release_robot(connection, attempt.ticket_id, attempt.execution)
    return False


def cancel_ticket(connection: Connection, ticket_id: str, caller: Caller) -> Mapping[str, Any]:
    """Cancel a ticket. One that is moving is stopped: its lease ends now, and the guardian sends the stop.

    Raises NotFound; IllegalTransition when it has ended; Conflict when it keeps changing meanwhile.
    """
    for _ in range(CONTENDED_TRIES):
        ticket = get_ticket(connection, ticket_id)
        if ticket["state"] in TERMINAL:
            text = f"Ticket already in terminal state: {ticket['state']}"
            raise IllegalTransition(text, state=ticket["state"], code="ticket_terminal")
        seen = {"id": ticket_id, "revision": ticket["revision"], "error": f"Cancelled by {caller.name}"}
        row = {**seen, "error_code": "cancelled"}
        moved = transitions.CANCEL(connection, [row], actor=caller.name, correlation_id=caller.correlation_id)
        if moved:
            return moved[0]
    raise Conflict("The ticket keeps changing; try again", code="contended")


def lose_tickets(connection: Connection, held: Sequence[Held]) -> int:
    """The workers of these fell silent: actuation is never repeated, so they fail as outcome_unknown."""
    verdict = {"error": LOST, "error_code": transitions.OUTCOME_UNKNOWN}
    rows = [{"job_id": job.id, "fence": job.fence, **verdict} for job in held]
    return len(transitions.LOSE(connection, rows, actor="reaper"))


def expire_tickets(connection: Connection, held: Sequence[Held]) -> int:
    """These could not start in time: they fail as expired, so that nothing moves hours later."""
    rows = [{"job_id": job.id, "error": EXPIRED, "error_code": "expired"} for job in held]
    return len(transitions.EXPIRE(connection, rows, actor="reaper"))


def stop_moving_tickets(connection: Connection, attempt: Attempt, worker: str) -> list[str]:
    """End what was moving on a robot that a stop or a brake has just brought to rest; answers the tickets' ids.

    Only what was taken before the stop: a motion that began after it is a new one.
    """
    verdict = {"error": f"The robot was stopped on the way: {attempt.command}", "error_code": attempt.command}
    moving = list_moving_tickets(connection, attempt.target, before=attempt.fence)
    rows = [{"id": row["id"], "revision": row["revision"], **verdict} for row in moving]
    return [row["id"] for row in transitions.STOP(connection, rows, actor=worker)] if rows else []
