"""The moves of a ticket, each one statement: what it starts from, what it changes, what it owes, what it tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Double, Integer, Text, and_, case, cast, func, insert, literal, not_, null, or_, select
from sqlalchemy.dialects.postgresql import JSONB

from models.kernel import jobs as kernel_jobs
from models.kernel.dead_letters import answered_letters, letter_for
from models.kernel.expressions import seconds
from models.kernel.jobs import Spec, fence_seq
from models.kernel.latch import is_engaged
from models.kernel.transition import Birth, Job, Subject, Told, Transition
from models.tickets import events
from models.tickets.queries import newer_stop
from models.tickets.states import CANCELLED, EXECUTING, FAILED, PENDING, QUEUED, TERMINAL, TICKET
from models.tickets.tables import EVERYTHING, PRIORITIES, lane_of, stop_orders, tickets

SUBJECT = Subject(TICKET, tickets)
TASK = "tickets.execute"
QUEUE = "io"
STOPS_QUEUE = "stops"

REFUSED = "refused"
STOPS_CHANNEL = "orchestrator_stops"
OUTCOME_UNKNOWN = "outcome_unknown"
EMERGENCY_STOP = "emergency_stop"
LONGEST_TAKE_SECONDS = 10.0  # between the start that a ticket shows and the one that its deadline counts from

STOPPING = ("stop", "brake")
MOVING = ("drive",)


def execution_job(ticket: Any) -> Spec:
    """What an accepted execution owes. Stopping waits in no lane and in no worker's queue: the guardian does it."""
    rank = case(*((ticket.priority == name, rank) for rank, name in enumerate(PRIORITIES)))
    return Spec(
        task=TASK,
        queue=case((ticket.command.in_(STOPPING), STOPS_QUEUE), else_=QUEUE),
        priority=case((ticket.command.in_(STOPPING), kernel_jobs.CRITICAL), else_=rank),
        tenant=ticket.tenant,
        lane=case((ticket.command.in_(MOVING), lane_of(ticket.target))),
        timeout_seconds=ticket.timeout_seconds,
        expires_at=ticket.expires_at,
        max_attempts=1,
        turn=ticket.given_turn,
    )


def stop_for(moved: Any, job: Any, *when: Any, settled: bool = False) -> list[Any]:
    """A stop for each robot that was moving under what just ended; its commit wakes the guardian.

    The attempt begins nothing after the end of its lease, nor after its own deadline (docs/estop.md).
    `settled`: the attempt's worker is the one that ends it, and lets go of the robot.
    """
    deadline = moved.c.started_at + seconds(moved.c.timeout_seconds + LONGEST_TAKE_SECONDS)
    columns = {
        "target": moved.c.target,
        "ticket_id": moved.c.id,
        "fence": fence_seq.next_value(),
        "reason": moved.c.error_code,
        "correlation_id": moved.c.correlation_id,
        "execution": moved.c.execution,
        "not_after": func.least(job.c.lease_until, deadline),
        "settled_at": func.clock_timestamp() if settled else cast(null(), stop_orders.c.settled_at.type),
    }
    source = (
        select(*(value.label(name) for name, value in columns.items()))
        .select_from(moved.outerjoin(job, job.c.subject_id == moved.c.id))
        .where(moved.c.from_state == EXECUTING, moved.c.command.in_(MOVING), *when)
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


def is_free(ticket: Any) -> Any:
    """No e-stop holds the ticket back; what stops a robot is held back by none.

    One that is engaged while this waits for the ticket's row is not seen: the sweep that follows each engagement,
    and the worker's own look, take what slipped through.
    """
    return or_(ticket.command.in_(STOPPING), not_(is_engaged(EVERYTHING, ticket.target)))


def sent_execution_job(ticket: Any) -> Spec:
    return dataclasses.replace(execution_job(ticket), sends_to=QUEUE)


def accepting(sources: frozenset[str], owes: Callable[[Any], Spec] = execution_job) -> Transition:
    return Transition(
        subject=SUBJECT,
        sources=sources,
        targets=frozenset({QUEUED}),
        given={"expires_in_seconds": Double, "correlation_id": Text, "turn": Integer},
        guard=is_free,
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
        owes=owes,
        also=lambda moved: [answered_letters(moved, kind=TICKET.kind)] if sources & TERMINAL else [],
        told=Told(topic=lambda _t: literal(events.QUEUED), label=events.label, body=events.execution),
    )


ACCEPT = accepting(frozenset({PENDING}))
ACCEPT_FORCED = accepting(frozenset({PENDING}) | TERMINAL)
ACCEPT_AND_SEND = accepting(frozenset({PENDING}), sent_execution_job)
ACCEPT_FORCED_AND_SEND = accepting(frozenset({PENDING}) | TERMINAL, sent_execution_job)


def is_owed_none(ticket: Any) -> Any:
    """A motion is not taken while its robot is owed a stop, which would hit it: it waits in its lane meanwhile."""
    return or_(ticket.command.not_in(MOVING), not_(newer_stop(ticket.target, 0).exists()))


TAKE = Transition(
    subject=SUBJECT,
    sources=frozenset({QUEUED}),
    targets=frozenset({EXECUTING}),
    guard=is_owed_none,
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
    keeps_lane=True,
    told=Told(topic=lambda _t: literal(events.RELEASED), label=events.label, body=events.execution),
)


def letter(moved: Any) -> list[Any]:
    """A dead letter for each failure but a refusal, which no replay could mend."""
    failed = and_(moved.c.state == FAILED, moved.c.error_code != REFUSED)
    return [letter_for(moved, task=TASK, kind=TICKET.kind, when=failed)]


def letter_and_stop(moved: Any, job: Any) -> list[Any]:
    return letter(moved) + stop_for(moved, job)


def letter_only(moved: Any, _job: Any) -> list[Any]:
    return letter(moved)


def letter_and_stop_if_unknown(moved: Any, job: Any) -> list[Any]:
    """A worker that knows the outcome has stopped the robot itself; one that does not may not have reached it."""
    return letter(moved) + stop_for(moved, job, moved.c.error_code == OUTCOME_UNKNOWN, settled=True)


def ending(
    sources: frozenset[str], targets: frozenset[str], job: Job, after: Callable[[Any, Any], Iterable[Any]]
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
        after=after,
        told=Told(
            topic=events.topic_of_end,
            label=events.label,
            elapsed_ms=events.elapsed_ms,
            body=events.ended,
            reason=lambda ticket: ticket.error_code,
        ),
    )


SETTLE = ending(frozenset({EXECUTING}), TERMINAL, Job.END, letter_and_stop_if_unknown)
LOSE = ending(frozenset({EXECUTING}), frozenset({FAILED}), Job.END, letter_and_stop)
EXPIRE = ending(frozenset({QUEUED}), frozenset({FAILED}), Job.END_UNSTARTED, letter_only)
CANCEL = ending(frozenset({PENDING, QUEUED, EXECUTING}), frozenset({CANCELLED}), Job.END_ANY, stop_for)
STOP = ending(frozenset({EXECUTING}), frozenset({FAILED}), Job.END_ANY, stop_for)
REVOKE = ending(frozenset({QUEUED, EXECUTING}), frozenset({FAILED}), Job.END_ANY, letter_and_stop)
