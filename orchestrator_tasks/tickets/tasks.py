"""Carrying one ticket out: take, check, drive under a deadline, settle.

Several that one message names are taken in one statement, and settled together as they end.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from models.kernel import clock
from models.kernel.backlog import park_job
from models.kernel.errors import Conflict, LeaseLost, Unavailable
from models.kernel.jobs import Work, register
from models.kernel.logs import about
from models.kernel.once import once
from models.kernel.session import statement
from models.kernel.settings import settings
from models.kernel.transition import LaneBusy
from models.kernel.webhooks.feeding import register_source
from models.tickets import batches, events, operations, safety, transitions
from models.tickets.operations import Attempt, Outcome
from models.tickets.queries import is_held_by_stop
from models.tickets.states import CANCELLED, COMPLETED, FAILED
from orchestrator_tasks import hints
from orchestrator_tasks.app import app
from orchestrator_tasks.keeper import LEASE_LOST, REVOKED, SHUTDOWN, TIMEOUT, keeper
from orchestrator_tasks.kernel.crew import Crew, Order, orders_of, side_by_side
from orchestrator_tasks.kernel.worker import worker
from orchestrator_tasks.tickets import together
from orchestrator_tasks.tickets.drivers.base import Command, DriverFailed, Interrupt, Interrupted
from orchestrator_tasks.tickets.drivers.registry import driver
from orchestrator_tasks.tickets.together import End, Sight

log = logging.getLogger(__name__)

PENDING_STOP_PACE = 0.05
PENDING_STOP_PATIENCE = 0.25  # most stops are taken within; a motion that waits for longer goes back to its lane
SETTLE_PATIENCE_SECONDS = 120.0
SETTLE_PATIENCE_AT_SHUTDOWN = 3.0

MOST_TOGETHER = 32  # tickets in one message
SEEN_SECONDS = 0.05  # for which a look at all tickets of a message holds for each of them

register(
    Work(
        task=transitions.TASK,
        queue=transitions.QUEUE,
        lost=operations.lose_tickets,
        expired=operations.expire_tickets,
        together=MOST_TOGETHER,
    )
)
batches.register_acts()

register_source(transitions.SUBJECT, events.PUBLIC_TOPICS, "command", "target")


@app.task(name=transitions.TASK)
def execute(job_id: int, subject_id: str, others: Sequence[Order] = ()) -> str:
    """Carry out the jobs that are still owed; answers what became of them, for Flower to show."""
    first, *more = orders_of(job_id, subject_id, others)
    return side_by_side([first, *more], crew(), perform_all) if more else perform(*first)


@once
def crew() -> Crew:
    """This process's crew."""
    return Crew(settings().io_concurrency)


def perform_all(orders: Sequence[Order], crew: Crew) -> Iterator[str]:
    """Take all in one statement, look at all in the next, carry them out, settle together what ends together."""
    taken = take_all(orders)

    def prepare() -> list[Callable[[], str | End]]:
        return [functools.partial(begin, *each) for each in zip(orders, taken, look_at_all(taken), strict=True)]

    for results in crew.carry_out(prepare):
        yield from (result for result in results if isinstance(result, str))
        yield from settle_all([result for result in results if not isinstance(result, str)])


def take_all(orders: Sequence[Order]) -> Sequence[Attempt | None]:
    try:
        return together.take([job_id for job_id, _, _ in orders])
    except Exception as error:  # one of them spoils it, or the database is away: the places are claimed already
        log.warning("taken one by one", extra={"error": str(error)})
        return [None] * len(orders)


def look_at_all(taken: Sequence[Attempt | None]) -> Sequence[Sight | None]:
    attempts = [attempt for attempt in taken if attempt is not None]
    try:
        seen = iter(together.look(attempts) if attempts else [])
    except Exception as error:  # the database is away, say
        log.warning("looked at one by one", extra={"error": str(error)})
        return [None] * len(taken)
    return [None if attempt is None else next(seen) for attempt in taken]


def begin(order: Order, attempt: Attempt | None, seen: Sight | None) -> str | End:
    """Carry out what was taken, for others to settle; what was not is tried by itself."""
    if attempt is None:
        return perform(*order)
    with about_order(*order):
        outcome = carry_out(attempt, seen)
        return give_back(attempt) if outcome is None else (attempt, outcome)


def settle_all(ends: Sequence[End]) -> Iterator[str]:
    try:
        settled = together.settle(ends) if ends else []
    except Exception as error:  # one of them spoils it, or the database is away: each waits for itself
        log.warning("settled one by one", extra={"error": str(error)})
        settled = [None] * len(ends)
    for (attempt, outcome), row in zip(ends, settled, strict=True):
        with about_order(attempt.job_id, attempt.ticket_id, attempt.correlation_id):
            yield settle_alone(attempt, outcome) if row is None else tell(outcome, row)


def settle_alone(attempt: Attempt, outcome: Outcome) -> str:
    """One that cannot be recorded at all keeps none of its companions from it; its lease runs out."""
    try:
        return settle(attempt, outcome)
    except Exception:
        log.exception("the outcome cannot be recorded")
        return "not recorded"


def about_order(_job_id: int, ticket_id: str, correlation_id: str | None) -> contextlib.AbstractContextManager[None]:
    return about(correlation_id=correlation_id, ticket_id=ticket_id, action="execute")


def perform(job_id: int, subject_id: str, correlation_id: str | None) -> str:
    """Take, carry out, settle: in a worker, or for stops in the guardian."""
    with about_order(job_id, subject_id, correlation_id):
        attempt = take(job_id)
        if attempt is None:
            log.info("nothing to do: the job is gone, taken or not due")
            return "not taken"
        outcome = carry_out(attempt)
        if outcome is None:
            return give_back(attempt)
        if attempt.command in transitions.STOPPING and outcome.to == COMPLETED:
            end_what_moved(attempt)
        return settle(attempt, outcome)


def take(job_id: int) -> Attempt | None:
    """Lease the job. A motion whose robot is owed a stop waits untaken: neither lease nor timeout runs meanwhile."""
    until = clock.monotonic() + PENDING_STOP_PATIENCE
    while True:
        try:
            attempt = together.TAKES.go(job_id)
            if attempt is None and not is_held(job_id):
                return together.TAKES.go(job_id)  # its stop may have been taken between the two statements
        except LaneBusy:
            return park(job_id)
        if attempt is not None:
            return attempt
        if clock.monotonic() >= until:
            log.info("waits in its lane: its robot has not taken a stop yet")
            return park(job_id)
        clock.pause(PENDING_STOP_PACE)


def is_held(job_id: int) -> bool:
    with statement() as connection:
        return is_held_by_stop(connection, job_id)


def park(job_id: int) -> None:
    with statement() as connection:
        park_job(connection, job_id)


def carry_out(attempt: Attempt, seen: Sight | None = None) -> Outcome | None:
    """Bring the command to the driver and say how it ended; None when it never got there."""
    log.info("execution started", extra={"command": attempt.command, "fence": attempt.fence})
    if reason := safety.refusal(attempt.command, attempt.params):
        return Outcome(FAILED, error=reason, error_code=transitions.REFUSED)
    interrupt = Interrupt()
    with keeper.holding(attempt.job_id, attempt.fence, attempt.timeout_seconds, interrupt):
        if keeper.is_shutting_down():
            return None
        return drive(attempt, interrupt, seen)


def drive(attempt: Attempt, interrupt: Interrupt, seen: Sight | None = None) -> Outcome | None:
    try:
        cleared = look(attempt, seen)
        if not isinstance(cleared, Command):
            return cleared
        return Outcome(COMPLETED, result=driver().carry_out(cleared, interrupt))
    except Interrupted as error:
        return interrupted(attempt, error)
    except (DriverFailed, Unavailable) as error:
        return Outcome(FAILED, error=error.message, error_code=error.code)
    except Exception as error:
        log.exception("the driver failed in a way it should not")
        text = f"The driver failed unexpectedly ({type(error).__name__}); whether the robot moved is unknown"
        return Outcome(FAILED, error=text, error_code=transitions.OUTCOME_UNKNOWN)


def look(attempt: Attempt, seen: Sight | None) -> Command | Outcome | None:
    """The command that may go to the driver now, else how the attempt ends; None when it is to be given back.

    Read in a statement of its own, after the take committed: what was revoked meanwhile must not reach the
    driver, and the take may have begun before an e-stop, or before the robot was owed a stop. What was `seen`
    for all of a message just now is not asked again.
    """
    if seen is None or clock.monotonic() - seen.at > SEEN_SECONDS:
        seen = together.LOOKS.go(attempt)
    clearance = seen.clearance
    if clearance is None:
        return Outcome(CANCELLED, error="Revoked before it started", error_code=REVOKED)
    if clearance.emergency and attempt.command not in transitions.STOPPING:
        return Outcome(FAILED, error=clearance.emergency, error_code=transitions.EMERGENCY_STOP)
    if clearance.stop_owed and attempt.command in transitions.MOVING:
        return None
    return Command(
        ticket_id=attempt.ticket_id,
        name=attempt.command,
        params=safety.safe_params(attempt.command, attempt.params),
        target=attempt.target,
        fence=attempt.fence,
        not_after=attempt.not_after,
        begin_by=seen.at + clearance.lease_left,
    )


def end_what_moved(attempt: Attempt) -> None:
    """The robot has come to rest: whoever waits for what it was doing is told so now."""
    try:
        with statement() as connection:
            ended = operations.stop_moving_tickets(connection, attempt, worker())
    except (Unavailable, Conflict) as error:
        log.warning("what was stopped ends by its own worker", extra={"error": error.message})
        return
    for ticket_id in ended:
        hints.ended(ticket_id, queue=transitions.QUEUE)


def interrupted(attempt: Attempt, error: Interrupted) -> Outcome:
    """The robot was stopped before its command was done: say by what."""
    texts = {
        TIMEOUT: f"Execution timed out after {attempt.timeout_seconds:g}s",
        SHUTDOWN: "The worker was shut down; the robot was stopped",
        LEASE_LOST: "The worker lost its lease; the robot was stopped",
    }
    return Outcome(FAILED, error=texts.get(error.reason, error.message), error_code=error.reason)


def give_back(attempt: Attempt) -> str:
    with statement() as connection:
        operations.release_ticket(connection, attempt, worker())
    return "given back"


def settle(attempt: Attempt, outcome: Outcome) -> str:
    """Record the outcome, waiting for a database that is away or a row that is held: the fence decides if it counts."""
    began = clock.monotonic()
    pause = 0.05
    while True:
        try:
            return tell(outcome, together.SETTLES.go((attempt, outcome)))
        except LeaseLost as lost:
            return tell(outcome, lost)
        except (Unavailable, Conflict) as error:
            patience = SETTLE_PATIENCE_AT_SHUTDOWN if keeper.is_shutting_down() else SETTLE_PATIENCE_SECONDS
            if clock.monotonic() - began > patience:
                log.error("the outcome could not be recorded; the reaper will end the attempt as unknown")
                return "not recorded"
            log.warning("the outcome cannot be recorded yet", extra={"error": error.message})
            clock.pause(pause)
            pause = min(pause * 2, 1.0)


def tell(outcome: Outcome, settled: Mapping[str, Any] | LeaseLost) -> str:
    if isinstance(settled, LeaseLost):
        log.warning("the outcome came too late and is kept as evidence", extra={"outcome": outcome.to})
        return "lease lost"
    log.info("execution ended", extra={"outcome": outcome.to, "error": outcome.error})
    return outcome.to
