"""Carrying one run out: take, select, call the engine under a deadline, settle."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from models.engine import control, events, operations, transitions
from models.engine.canonical import NotSerialisable
from models.engine.config import HYSTERESIS, Config
from models.engine.delays import retry_delays
from models.engine.inputs import find_snapshot
from models.engine.operations import NO_ENGINE, Attempt, EngineName
from models.engine.queries import find_state
from models.engine.snapshots import SnapshotNotBuilt, engine_input
from models.engine.tables import ENGINE_FAILURE, ENGINE_TIMEOUT, MISSING_INPUTS, SNAPSHOT_FAILURE
from models.kernel import clock
from models.kernel.backlog import park_job
from models.kernel.errors import Conflict, LeaseLost, Unavailable
from models.kernel.jobs import Work, register
from models.kernel.logs import about
from models.kernel.session import statement, transaction
from models.kernel.settings import settings
from models.kernel.transition import LaneBusy
from models.kernel.webhooks.feeding import register_source
from orchestrator_tasks import hints
from orchestrator_tasks.app import app
from orchestrator_tasks.engine.hosts import Interrupt, Interrupted, call_engine
from orchestrator_tasks.keeper import LEASE_LOST, REVOKED, SHUTDOWN, TIMEOUT, keeper
from orchestrator_tasks.kernel.crew import Order, in_turn, orders_of

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 120.0
PATIENCE_AT_SHUTDOWN = 3.0
MISSING = "missing SnapshotInputs"
FINAL = frozenset({MISSING_INPUTS, SNAPSHOT_FAILURE})
"""What another attempt would only find again."""

MOST_TOGETHER = 16  # runs in one message
HINT_SECONDS = 0.05  # between two hints that runs of one message have ended

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


@dataclass(frozen=True)
class Given:
    """What an attempt starts from: its configuration, the selected record, the state before the run."""

    config: Config
    snapshot: tuple[int, str] | None
    state: str | None


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: with what the engine answered, or with an error."""

    result: Mapping[str, Any] | None = None
    error_kind: str = ""
    error_detail: str = ""
    snapshot_ingest_seq: int | None = None
    elapsed_ms: float | None = None
    engine: EngineName = NO_ENGINE

    @property
    def facts(self) -> dict[str, Any]:
        names = ("snapshot_ingest_seq", "elapsed_ms", "engine")
        return {name: getattr(self, name) for name in names}


@app.task(name=transitions.TASK)
def run(job_id: int, subject_id: str, others: Sequence[Order] = ()) -> str:
    """Carry out the jobs that are still owed, one after the other; answers what became of them, for Flower to show."""
    try:
        return in_turn(orders_of(job_id, subject_id, others), perform)
    finally:
        endings.tell()


def perform(job_id: int, subject_id: str, _correlation_id: str | None) -> str:
    with about(correlation_id=subject_id, run_id=subject_id, action="engine_run"):
        attempt = take(job_id)
        if attempt is None:
            log.info("nothing to do: the job is gone, taken or not due")
            return "not taken"
        with about(**{name: attempt.run[name] for name in transitions.FACTS}, attempt=attempt.number):
            return carry_out(attempt)


def worker() -> str:
    return f"worker:{socket.gethostname()}"


def take(job_id: int) -> Attempt | None:
    with statement() as connection:
        try:
            return operations.take_run(connection, job_id, worker())
        except LaneBusy:
            park_job(connection, job_id)
            return None


def carry_out(attempt: Attempt) -> str:
    """Make the attempt and record how it ended; one that was interrupted is made again by somebody else."""
    try:
        interrupt = Interrupt()
        with keeper.holding(attempt.job_id, attempt.fence, attempt.timeout_seconds, interrupt):
            given = patiently(lambda: look(attempt))
            if reason := interrupt.reason or (SHUTDOWN if keeper.is_shutting_down() else None):
                raise Interrupted(reason)
            outcome = decide(attempt, given, interrupt)
        return end(attempt, given.config, outcome)
    except Interrupted as interrupted:
        return give_up(attempt, interrupted.reason)
    except LeaseLost:
        return "lease lost"
    except Unavailable as error:
        log.error("the attempt could not be made or recorded; it is made again", extra={"error": error.message})
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


def decide(attempt: Attempt, given: Given, interrupt: Interrupt) -> Outcome:
    """Call the engine, if there is something to call it with. Raises Interrupted, Unavailable."""
    if given.snapshot is None:
        return Outcome(error_kind=MISSING_INPUTS, error_detail=MISSING)
    seq, text = given.snapshot
    try:
        asked = engine_input(text, attempt.run["engine_timestamp_ms"])
    except SnapshotNotBuilt as error:
        return Outcome(error_kind=SNAPSHOT_FAILURE, error_detail=error.message, snapshot_ingest_seq=seq)
    engine = given.config.engine
    request = {"mode": attempt.run["engine_mode"], "input": asked}
    if attempt.run["engine_mode"] == HYSTERESIS:
        state = None if given.state is None else orjson.loads(given.state)
        request |= {"state": state, "config": engine.hysteresis}
    began = clock.monotonic()
    answer = called(request, engine.timeout_ms / 1000, engine.memory_mb, interrupt)
    elapsed_ms = round((clock.monotonic() - began) * 1000, 3)
    name = EngineName(settings().engine_module, answer.get("engine_version"))
    facts: dict[str, Any] = {"snapshot_ingest_seq": seq, "elapsed_ms": elapsed_ms, "engine": name}
    if "ok" in answer:
        return Outcome(result=answer["ok"], **facts)
    return Outcome(error_kind=answer["error_kind"], error_detail=answer["error_detail"], **facts)


def called(request: Mapping[str, Any], timeout: float, memory_mb: int, interrupt: Interrupt) -> Mapping[str, Any]:
    """The engine's answer. A host that does not even keep the engine's time is ended by the keeper."""
    try:
        return call_engine(request, timeout, memory_mb, interrupt)
    except Interrupted as interrupted:
        if interrupted.reason != TIMEOUT:
            raise
        return {"error_kind": ENGINE_TIMEOUT, "error_detail": "the engine did not answer within its time"}


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


def end(attempt: Attempt, config: Config, outcome: Outcome) -> str:
    """Record the outcome, or let the run wait for its next attempt."""
    try:
        became = patiently(lambda: record(attempt, config, outcome))
    except NotSerialisable as error:
        said = f"the engine's answer: {error.message}"
        outcome = Outcome(error_kind=ENGINE_FAILURE, error_detail=said, engine=outcome.engine)
        became = patiently(lambda: record(attempt, config, outcome))
    except LeaseLost:
        keep_evidence(attempt, outcome)
        raise
    tell(outcome, became)
    endings.note(attempt.run_id)
    return became


class Endings:
    """The runs of a message whose end nobody was told of yet: a hint wakes a dispatcher and all web processes.

    The first is told at once, and what ends soon after it with the next, or at the message's end.
    """

    def __init__(self) -> None:
        self.run_ids: list[str] = []
        self.told_at = -HINT_SECONDS

    def note(self, run_id: str) -> None:
        self.run_ids.append(run_id)
        if clock.monotonic() - self.told_at >= HINT_SECONDS:
            self.tell()

    def tell(self) -> None:
        if self.run_ids:
            hints.ended(*self.run_ids, queue=transitions.QUEUE)
            self.run_ids.clear()
            self.told_at = clock.monotonic()


endings = Endings()


def record(attempt: Attempt, config: Config, outcome: Outcome) -> str:
    if outcome.result is not None:
        door = transaction if "hysteresis_decision" in outcome.result else statement
        with door() as connection:
            ended = operations.settle_completed(connection, attempt, outcome.result, worker(), **outcome.facts)
            return str(ended["state"])
    delays = retry_delays(config.engine_retry)
    why = outcome.error_kind, outcome.error_detail
    with statement() as connection:
        if outcome.error_kind in FINAL or attempt.number >= len(delays):
            ended = operations.settle_failed(connection, attempt, *why, worker(), **outcome.facts)
        else:
            facts = {"elapsed_ms": outcome.elapsed_ms, "engine": outcome.engine}
            delay_ms = delays[attempt.number - 1]
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


def patiently(act: Callable[[], Any]) -> Any:
    """Do it once the database lets us; the fence decides whether it still counts. Raises LeaseLost, Unavailable."""
    began = clock.monotonic()
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
