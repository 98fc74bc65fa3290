"""Everything that may be done to a ticket. Each act is one transition; none publishes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Double, Integer, Text, and_, case, func, insert, literal, null, select
from sqlalchemy.dialects.postgresql import JSONB

from models.kernel import jobs as kernel_jobs
from models.kernel.clients import Caller
from models.kernel.dead_letters import letter_for
from models.kernel.errors import Conflict, IllegalTransition, LeaseLost
from models.kernel.job_parts import seconds
from models.kernel.jobs import Held, Spec, fence_seq
from models.kernel.ledger import note
from models.kernel.transition import Birth, Job, Rows, Subject, Told, Transition
from models.tickets import events
from models.tickets.queries import get_ticket
from models.tickets.states import CANCELLED, EXECUTING, FAILED, PENDING, QUEUED, TERMINAL, TICKET
from models.tickets.tables import PRIORITIES, stop_orders, tickets

SUBJECT = Subject(TICKET, tickets)
TASK = "tickets.execute"
QUEUE = "io"

REFUSED = "refused"
STOPS_CHANNEL = "orchestrator_stops"
OUTCOME_UNKNOWN = "outcome_unknown"
LOST = "The worker fell silent while the command was being carried out; whether the robot moved is unknown"
EXPIRED = "The command could not start in time and has expired"

STOPPING = ("stop", "brake")
MOVING = ("drive",)


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


def execution_job(ticket: Any) -> Spec:
    """What an accepted execution owes. Stopping goes before everything and waits in no lane."""
    rank = case(*((ticket.priority == name, rank) for rank, name in enumerate(PRIORITIES)))
    return Spec(
        task=TASK,
        queue=QUEUE,
        priority=case((ticket.command.in_(STOPPING), kernel_jobs.CRITICAL), else_=rank),
        tenant=ticket.tenant,
        lane=case((ticket.command.in_(MOVING), literal("robot:").concat(ticket.target))),
        timeout_seconds=ticket.timeout_seconds,
        expires_at=ticket.expires_at,
        max_attempts=1,
    )


def stop_for(moved: Any) -> list[Any]:
    """A stop for each robot that was moving under what just ended; its commit wakes the guardian."""
    columns = {
        "target": moved.c.target,
        "ticket_id": moved.c.id,
        "fence": fence_seq.next_value(),
        "reason": moved.c.error_code,
        "correlation_id": moved.c.correlation_id,
    }
    source = select(*(value.label(name) for name, value in columns.items())).where(
        moved.c.from_state == EXECUTING, moved.c.command.in_(MOVING)
    )
    wake = func.pg_notify(STOPS_CHANNEL, "")
    return [insert(stop_orders).from_select(list(columns), source).returning(wake)]


CREATE = Birth(
    subject=SUBJECT,
    given={
        "command": Text,
        "params": JSONB,
        "priority": Text,
        "timeout_seconds": Integer,
        "metadata": JSONB,
        "target": Text,
        "tenant": Text,
        "created_by": Text,
    },
    told=Told(topic=lambda _t: literal(events.CREATED), label=events.label, body=events.created),
)


def accepting(sources: frozenset[str]) -> Transition:
    return Transition(
        subject=SUBJECT,
        sources=sources,
        targets=frozenset({QUEUED}),
        given={"expires_in_seconds": Double, "correlation_id": Text},
        set=lambda ticket, given: {
            "execution": ticket.execution + 1,
            "correlation_id": given.correlation_id,
            "expires_at": func.clock_timestamp() + seconds(given.expires_in_seconds),
            "started_at": null(),
            "completed_at": null(),
            "execution_time_ms": null(),
            "result": null(),
            "error": null(),
            "error_code": null(),
        },
        owes=execution_job,
        told=Told(topic=lambda _t: literal(events.QUEUED), label=events.label, body=events.execution),
    )


ACCEPT = accepting(frozenset({PENDING}))
ACCEPT_FORCED = accepting(frozenset({PENDING}) | TERMINAL)

TAKE = Transition(
    subject=SUBJECT,
    sources=frozenset({QUEUED}),
    targets=frozenset({EXECUTING}),
    set=lambda _t, _g: {"started_at": func.clock_timestamp()},
    job=Job.LEASE,
    told=Told(topic=lambda _t: literal(events.STARTED), label=events.label, body=events.execution),
)

RELEASE = Transition(
    subject=SUBJECT,
    sources=frozenset({EXECUTING}),
    targets=frozenset({QUEUED}),
    set=lambda _t, _g: {"started_at": null()},
    job=Job.RETURN,
    told=Told(topic=lambda _t: literal(events.RELEASED), label=events.label, body=events.execution),
)


def letter(moved: Any) -> list[Any]:
    """A dead letter for each failure but a refusal, which no replay could mend."""
    failed = and_(moved.c.state == FAILED, moved.c.error_code != REFUSED)
    return [letter_for(moved, task=TASK, kind=TICKET.kind, when=failed)]


def letter_and_stop(moved: Any) -> list[Any]:
    return letter(moved) + stop_for(moved)


def ending(
    sources: frozenset[str], targets: frozenset[str], job: Job, also: Callable[[Any], Iterable[Any]]
) -> Transition:
    return Transition(
        subject=SUBJECT,
        sources=sources,
        targets=targets,
        given={"result": JSONB, "error": Text, "error_code": Text},
        set=lambda ticket, given: {
            "completed_at": func.clock_timestamp(),
            "execution_time_ms": func.coalesce(events.milliseconds_since(ticket.started_at), 0),
            "result": given.result,
            "error": given.error,
            "error_code": given.error_code,
        },
        job=job,
        also=also,
        told=Told(
            topic=events.topic_of_end,
            label=events.label,
            elapsed_ms=events.elapsed_ms,
            body=events.ended,
            reason=lambda ticket: ticket.error_code,
        ),
    )


SETTLE = ending(frozenset({EXECUTING}), TERMINAL, Job.END, letter)
LOSE = ending(frozenset({EXECUTING}), frozenset({FAILED}), Job.END, letter_and_stop)
EXPIRE = ending(frozenset({QUEUED}), frozenset({FAILED}), Job.END_UNSTARTED, letter)
CANCEL = ending(frozenset({PENDING, QUEUED, EXECUTING}), frozenset({CANCELLED}), Job.END_ANY, stop_for)


def create_tickets(connection: Connection, drafts: Sequence[Mapping[str, Any]], caller: Caller) -> Rows:
    """Create tickets, all or none, from drafts that hold command, params, priority, timeout_seconds, metadata, target.

    Unsafe commands are created too; they fail at execution with the reason.
    """
    own = {"tenant": caller.tenant, "created_by": caller.name}
    rows = [{**draft, **own} for draft in drafts]
    return CREATE(connection, rows, actor=caller.name, correlation_id=caller.correlation_id)


def accept_execution(
    connection: Connection, ticket_id: str, *, expires_in_seconds: float, force: bool, caller: Caller
) -> Mapping[str, Any]:
    """Set a ticket going: it is queued, and a worker owes its execution.

    Raises NotFound; IllegalTransition when it is going already, or ended and not forced.
    """
    act = ACCEPT_FORCED if force else ACCEPT
    row = {
        "id": ticket_id,
        "expires_in_seconds": expires_in_seconds,
        "correlation_id": caller.correlation_id,
    }
    moved = act(connection, [row], actor=caller.name, correlation_id=caller.correlation_id)
    if moved:
        return moved[0]
    state = get_ticket(connection, ticket_id)["state"]
    if state in TERMINAL:
        text = f"Ticket already in terminal state: {state}. Use force=true to re-execute."
        raise IllegalTransition(text, state=state, code="ticket_terminal")
    raise IllegalTransition(f"Ticket is already {state}", state=state, code=f"ticket_{state}")


def take_ticket(connection: Connection, job_id: int, worker: str) -> Attempt | None:
    """Lease the job and start the execution; None when it is no longer to be had. Raises LaneBusy."""
    rows = TAKE(connection, [{"job_id": job_id}], actor=worker)
    if not rows:
        return None
    row = rows[0]
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


def settle_ticket(connection: Connection, attempt: Attempt, outcome: Outcome, worker: str) -> Mapping[str, Any]:
    """Record how an attempt ended.

    Raises LeaseLost when the attempt no longer owns the ticket; its outcome is then kept
    in the ledger as evidence and changes nothing.
    """
    end = {"to": outcome.to, "result": outcome.result, "error": outcome.error, "error_code": outcome.error_code}
    held = {"job_id": attempt.job_id, "fence": attempt.fence}
    rows = SETTLE(connection, [{**held, **end}], actor=worker)
    if rows:
        return rows[0]
    note(
        connection,
        events.EVIDENCE,
        subject=(TICKET.kind, attempt.ticket_id),
        actor=worker,
        correlation_id=attempt.correlation_id,
        reason="lease_lost",
        body={"ticket_id": attempt.ticket_id, "execution": attempt.execution, **held, **end},
    )
    raise LeaseLost(f"The attempt under fence {attempt.fence} no longer owns {attempt.ticket_id}")


def release_ticket(connection: Connection, attempt: Attempt, worker: str) -> bool:
    """Give an attempt back that never reached the driver; it will be taken again. False when the lease was lost."""
    held = {"job_id": attempt.job_id, "fence": attempt.fence}
    return bool(RELEASE(connection, [held], actor=worker, reason="released"))


CANCEL_TRIES = 5


def cancel_ticket(connection: Connection, ticket_id: str, caller: Caller) -> Mapping[str, Any]:
    """Cancel a ticket. One that is moving is stopped: its lease ends now, and the guardian sends the stop.

    Raises NotFound; IllegalTransition when it has ended; Conflict when it keeps changing meanwhile.
    """
    for _ in range(CANCEL_TRIES):
        ticket = get_ticket(connection, ticket_id)
        if ticket["state"] in TERMINAL:
            text = f"Ticket already in terminal state: {ticket['state']}"
            raise IllegalTransition(text, state=ticket["state"], code="ticket_terminal")
        seen = {"id": ticket_id, "revision": ticket["revision"], "error": f"Cancelled by {caller.name}"}
        row = {**seen, "error_code": "cancelled"}
        moved = CANCEL(connection, [row], actor=caller.name, correlation_id=caller.correlation_id)
        if moved:
            return moved[0]
    raise Conflict("The ticket keeps changing; try again", code="contended")


def lose_tickets(connection: Connection, held: Sequence[Held]) -> int:
    """The workers of these fell silent: actuation is never repeated, so they fail as outcome_unknown."""
    verdict = {"error": LOST, "error_code": OUTCOME_UNKNOWN}
    rows = [{"job_id": job.id, "fence": job.fence, **verdict} for job in held]
    return len(LOSE(connection, rows, actor="reaper"))


def expire_tickets(connection: Connection, held: Sequence[Held]) -> int:
    """These could not start in time: they fail as expired, so that nothing moves hours later."""
    rows = [{"job_id": job.id, "error": EXPIRED, "error_code": "expired"} for job in held]
    return len(EXPIRE(connection, rows, actor="reaper"))
