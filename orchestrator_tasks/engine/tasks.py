"""Carrying one run out: take, select, call the engine under a deadline, settle.

Several that one message names are taken, looked at and settled in one statement each.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from models.engine import control, events, operations, transitions
from models.engine.canonical import NotSerialisable
from models.engine.config import HYSTERESIS, Config
from models.engine.inputs import find_snapshot
from models.engine.operations import Attempt
from models.engine.queries import find_state
from models.engine.tables import ENGINE_FAILURE
from models.kernel import clock
from models.kernel.backlog import park_job
from models.kernel.errors import Conflict, LeaseLost, Unavailable
from models.kernel.jobs import Work, register
from models.kernel.logs import about
from models.kernel.session import statement, transaction
from models.kernel.transition import LaneBusy
from models.kernel.webhooks.feeding import register_source
from orchestrator_tasks import hints
from orchestrator_tasks.app import app
from orchestrator_tasks.engine import together
from orchestrator_tasks.engine.asking import decide
from orchestrator_tasks.engine.hosts import Interrupt, Interrupted
from orchestrator_tasks.engine.message import Message, Turn
from orchestrator_tasks.engine.together import Given, Made, Outcome
from orchestrator_tasks.keeper import LEASE_LOST, REVOKED, SHUTDOWN, keeper
from orchestrator_tasks.kernel.crew import Order, orders_of, told
from orchestrator_tasks.kernel.worker import worker

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 120.0
PATIENCE_AT_SHUTDOWN = 3.0
NOT_TAKEN = "not taken"

MOST_TOGETHER = 16  # runs in one message

register(
    Work(
        task=transitions.TASK,
        queue=transitions.QUEUE,
        lost=operations.lose_runs,
        expired=operations.expire_runs,
        together=MOST_TOGETHER,
    )
)
register_source(transitions.SUBJECT, events.PUBLIC_TOPICS, "symbol", "engine_mode")


@app.task(name=transitions.TASK)
def run(job_id: int, subject_id: str, others: Sequence[Order] = ()) -> str:
    """Carry out the jobs that are still owed, one after the other; answers what became of them, for Flower to show."""
    first, *more = orders_of(job_id, subject_id, others)
    return perform_all([first, *more]) if more else perform(*first)


def perform_all(orders: Sequence[Order]) -> str:
    """Take all in one statement, carry them out in turn, settle together; raises the first failure after all."""
    turns = begin_all(orders)
    message = Message(turns, settle_all)
    message.became.update([NOT_TAKEN] * (len(orders) - len(turns)))
    failures: list[Exception] = []
    with message.wound_up_soon():
        while not keeper.is_shutting_down() and (turn := message.next()):
            try:
                carry_out_turn(message, turn)
            except Exception as error:  # its lease runs out; those behind it are not to wait for that
                turn.lease.close()
                failures.append(error)
    if failures:
        raise failures[0]
    return told(message.became)


def begin_all(orders: Sequence[Order]) -> list[Turn]:
    """The turns of those that are to be had. Where one spoils a statement for all, each goes alone when its turn comes.

    One of these is the symbol that a message names twice: its second run is taken when the first is settled.
    """
    try:
        taken = together.take([job_id for job_id, _, _ in orders])
    except Exception as error:
        log.warning("taken one by one", extra={"error": str(error)})
        return [Turn(order) for order in orders]
    turns = [Turn(order, attempt) for order, attempt in zip(orders, taken, strict=True) if attempt is not None]
    for turn in turns:
        turn.hold(keeper)
    attempts = [attempt for attempt in taken if attempt is not None]
    try:
        given: Sequence[Given | None] = together.look(attempts) if attempts else []
    except Exception as error:
        log.warning("looked at one by one", extra={"error": str(error)})
        given = [None] * len(turns)
    for turn, each in zip(turns, given, strict=True):
        turn.given = each
    return turns


def carry_out_turn(message: Message, turn: Turn) -> None:
    if turn.attempt is None:
        message.note(turn, perform(*turn.order))
        return
    with about_attempt(turn.attempt):
        message.note(turn, make(turn.attempt, turn.interrupt, turn.given))


def settle_all(made: Sequence[Made]) -> Iterator[str]:
    """Record what attempts came to; one that spoils it for all, or the database being away, lets each wait for itself.

    They wait together: PATIENCE_SECONDS count for all from here on.
    """
    began = clock.monotonic()
    try:
        settled = together.settle(made)
    except Exception as error:
        log.warning("settled one by one", extra={"error": str(error)})
        settled = [None] * len(made)
    if ended := [each.attempt.run_id for each, row in zip(made, settled, strict=True) if isinstance(row, Mapping)]:
        hints.ended(*ended, queue=transitions.QUEUE)
    for each, row in zip(made, settled, strict=True):
        with about_attempt(each.attempt):
            yield settle_one(each, row, began)


def settle_one(made: Made, row: Mapping[str, Any] | LeaseLost | None, began: float) -> str:
    """What became of one; one that cannot be recorded at all keeps none of its companions from it."""
    if isinstance(row, Mapping):
        tell(made.outcome, row["state"])
        return str(row["state"])
    if isinstance(row, LeaseLost):
        keep_evidence(made.attempt, made.outcome)
        return "lease lost"
    try:
        return settle_alone(made, began)
    except Exception:
        log.exception("the outcome cannot be recorded")
        return "not recorded"


def perform(job_id: int, subject_id: str, _correlation_id: str | None) -> str:
    with about(correlation_id=subject_id, run_id=subject_id, action="engine_run"):
        attempt = take(job_id)
        if attempt is None:
            log.info("nothing to do: the job is gone, taken or not due")
            return NOT_TAKEN
        with about_attempt(attempt):
            return carry_out(attempt)


def about_attempt(attempt: Attempt) -> contextlib.AbstractContextManager[None]:
    facts = {name: attempt.run[name] for name in transitions.FACTS}
    named = {"correlation_id": attempt.run_id, "run_id": attempt.run_id, "action": "engine_run"}
    return about(**named, **facts, attempt=attempt.number)


def take(job_id: int) -> Attempt | None:
    with statement() as connection:
        try:
            return operations.take_run(connection, job_id, worker())
        except LaneBusy:
            park_job(connection, job_id)
            return None


def carry_out(attempt: Attempt) -> str:
    """Make the attempt and record how it ended."""
    interrupt = Interrupt()
    with keeper.holding(attempt.job_id, attempt.fence, attempt.timeout_seconds, interrupt):
        made = make(attempt, interrupt)
    return made if isinstance(made, str) else settle_alone(made, clock.monotonic())


def make(attempt: Attempt, interrupt: Interrupt, given: Given | None = None) -> Made | str:
    """Make the attempt; one that was interrupted is made again by somebody else, and is answered by a word."""
    try:
        found = given or patiently(lambda: look(attempt))
        if reason := interrupt.reason or (SHUTDOWN if keeper.is_shutting_down() else None):
            raise Interrupted(reason)
        return Made(attempt, found.config, decide(attempt, found, interrupt))
    except Interrupted as interrupted:
        return give_up(attempt, interrupted.reason)
    except Unavailable as error:
        log.error("the attempt could not be made; it is made again", extra={"error": error.message})
        return "not recorded"


def settle_alone(made: Made, began: float) -> str:
    try:
        return end(made.attempt, made.config, made.outcome, began)
    except LeaseLost:
        return "lease lost"
    except Unavailable as error:
        log.error("the attempt could not be recorded; it is made again", extra={"error": error.message})
        return "not recorded"


def look(attempt: Attempt) -> Given:
    run = attempt.run
    with statement() as connection:
        config = control.get_version(connection, run["config_version"])
        cut = run["cut_start_ingest_seq"], run["cut_end_ingest_seq"]
        snapshot = find_snapshot(connection, run["symbol"], run["engine_timestamp_ms"], *cut)
        restored = run["engine_mode"] == HYSTERESIS and snapshot is not None
        state = find_state(connection, run["symbol"], run["number"], run["state_epoch"]) if restored else None
    return Given(config, snapshot, state)


def give_up(attempt: Attempt, reason: str) -> str:
    """Give back what was interrupted before it had an outcome; a lease that is lost is nothing to give back."""
    log.warning("the attempt was interrupted", extra={"reason": reason})
    if reason in {LEASE_LOST, REVOKED}:
        return "lease lost"
    try:
        with statement() as connection:
            operations.release_run(connection, attempt, worker())
    except (Unavailable, Conflict) as error:
        log.warning("the attempt could not be given back; its lease runs out", extra={"error": error.message})
    return "given back"


def end(attempt: Attempt, config: Config, outcome: Outcome, began: float | None = None) -> str:
    """Record the outcome, or let the run wait for its next attempt."""
    try:
        became = patiently(lambda: record(attempt, config, outcome), began)
    except NotSerialisable as error:
        said = f"the engine's answer: {error.message}"
        outcome = Outcome(error_kind=ENGINE_FAILURE, error_detail=said, engine=outcome.engine)
        became = patiently(lambda: record(attempt, config, outcome), began)
    except LeaseLost:
        keep_evidence(attempt, outcome)
        raise
    tell(outcome, became)
    hints.ended(attempt.run_id, queue=transitions.QUEUE)
    return str(became)


def record(attempt: Attempt, config: Config, outcome: Outcome) -> str:
    if outcome.result is not None:
        door = transaction if "hysteresis_decision" in outcome.result else statement
        with door() as connection:
            ended = operations.settle_completed(connection, attempt, outcome.result, worker(), **outcome.facts)
            return str(ended["state"])
    delay_ms = Made(attempt, config, outcome).retry_delay_ms
    why = outcome.error_kind, outcome.error_detail
    with statement() as connection:
        if delay_ms is None:
            ended = operations.settle_failed(connection, attempt, *why, worker(), **outcome.facts)
        else:
            facts: dict[str, Any] = {name: outcome.facts[name] for name in ("elapsed_ms", "engine")}
            ended = operations.retry_run(connection, attempt, *why, worker(), delay_ms=delay_ms, **facts)
    return str(ended["state"])


def tell(outcome: Outcome, became: str) -> None:
    """The lines of the contract: one for each attempt, one more for one that failed."""
    log.info("orchestrator.engine_run", extra={"status": became, "duration_ms": outcome.elapsed_ms})
    if outcome.result is None:
        error = {"error_kind": outcome.error_kind, "error_detail": operations.short(outcome.error_detail)}
        log.warning("orchestrator.failure", extra={"failure_domain": "engine", **error})


def keep_evidence(attempt: Attempt, outcome: Outcome) -> None:
    log.warning("the outcome came too late and is kept as evidence", extra={"error_kind": outcome.error_kind})
    what = {"error_kind": outcome.error_kind or None, "error_detail": operations.short(outcome.error_detail)}
    try:
        with statement() as connection:
            operations.keep_evidence(connection, attempt, what, worker())
    except (Unavailable, Conflict) as error:
        log.warning("what came too late was not kept", extra={"error": error.message})


def patiently(act: Callable[[], Any], began: float | None = None) -> Any:
    """Do it once the database lets us; the fence decides whether it still counts. Raises LeaseLost, Unavailable.

    `began`: since when it is waited for, if not from here on.
    """
    began = clock.monotonic() if began is None else began
    pause = 0.05
    while True:
        try:
            return act()
        except LeaseLost:
            raise
        except (Unavailable, Conflict) as error:
            patience = PATIENCE_AT_SHUTDOWN if keeper.is_shutting_down() else PATIENCE_SECONDS
            if clock.monotonic() - began > patience:
                raise Unavailable(error.message, code=error.code) from error
            log.warning("the database does not answer yet", extra={"error": error.message})
            clock.pause(pause)
            pause = min(pause * 2, 1.0)
