"""Carrying an operation over many subjects out: chunk by chunk, each committed before the next begins."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from celery import current_task

from models.kernel import bulk, bulk_moves, clock
from models.kernel.bulk import OperationExpired, Progress, Run
from models.kernel.errors import Conflict, LeaseLost, OrchestratorError, Unavailable
from models.kernel.jobs import Work, register
from models.kernel.logs import about
from models.kernel.messages import CORRELATION
from models.kernel.session import statement, transaction
from orchestrator_tasks import hints
from orchestrator_tasks.app import app
from orchestrator_tasks.keeper import SHUTDOWN, TIMEOUT, keeper
from orchestrator_tasks.kernel.worker import worker

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 30.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 1.0

T = TypeVar("T")

register(
    Work(
        task=bulk_moves.TASK,
        queue=bulk_moves.QUEUE,
        lost=bulk.lose_operations,
        expired=bulk.expire_operations,
    )
)


class Notice:
    """Why to end early, as the keeper says it; the first reason stays."""

    reason: str | None = None

    def set(self, reason: str) -> None:
        self.reason = self.reason or reason


@app.task(name=bulk_moves.TASK)
def run(job_id: int, subject_id: str) -> str:
    """Carry the operation out if it is still owed; answers what became of it, for Flower to show."""
    correlation_id = getattr(current_task.request, CORRELATION, None)
    with about(correlation_id=correlation_id, operation_id=subject_id, action="bulk"):
        with statement() as connection:
            taken = bulk.take_operation(connection, job_id, worker())
        if taken is None:
            log.info("nothing to do: the job is gone, taken or not due")
            return "not taken"
        notice = Notice()
        try:
            with keeper.holding(taken.job_id, taken.fence, taken.timeout_seconds, notice):
                ended = work(taken, notice)
        except LeaseLost:
            ended = "lease lost"
        hints.ended(subject_id)
        log.info("operation left", extra={"outcome": ended})
        return ended


def work(taken: Run, notice: Notice) -> str:
    """Chunk after chunk, until there is none or there is a reason to stop. Raises LeaseLost."""
    try:
        while not notice.reason:
            progress = patiently(lambda: advance(taken), notice)
            if progress.over:
                return end(taken)
            hints.ended(*progress.ended)
    except LeaseLost:
        raise
    except OperationExpired as error:
        return end(taken, error)
    except Exception as error:
        log.exception("a chunk failed")
        return try_again(taken, error)
    return leave(taken, notice.reason)


def advance(taken: Run) -> Progress:
    with transaction() as connection:
        return bulk.advance_operation(connection, taken)


def leave(taken: Run, reason: str) -> str:
    """End early as it stands: given back at a shutdown, failed when its time is over, nobody's when it was revoked."""
    if reason == TIMEOUT:
        return end(taken, OperationExpired(bulk.EXPIRED))
    if reason == SHUTDOWN:
        with statement() as connection:
            bulk.release_operation(connection, taken, worker())
        return "given back"
    raise LeaseLost(f"The lease of {taken.operation_id} is gone: {reason}")


def end(taken: Run, error: Conflict | None = None) -> str:
    def settle() -> None:
        with statement() as connection:
            bulk.settle_operation(connection, taken, worker(), error)

    patiently(settle, Notice())
    return error.code if error else "completed"


def try_again(taken: Run, error: Exception) -> str:
    """Leave the rest to another attempt. When even that cannot be recorded, the lease runs out and says the same."""
    code = error.code if isinstance(error, OrchestratorError) else "internal"
    text = f"A chunk failed ({error.message if isinstance(error, OrchestratorError) else type(error).__name__})"
    with statement() as connection:
        bulk.retry_operation(connection, taken, worker(), Conflict(text, code=code))
    return "tried again"


def patiently(act: Callable[[], T], notice: Notice) -> T:
    """Do it as soon as the database and the rows are free, within PATIENCE_SECONDS; the fence decides if it counts."""
    began = clock.monotonic()
    pause = SHORTEST_PAUSE
    while True:
        try:
            return act()
        except (LeaseLost, OperationExpired):
            raise
        except (Unavailable, Conflict) as error:
            if notice.reason or clock.monotonic() - began > PATIENCE_SECONDS:
                raise
            log.warning("a chunk has to wait", extra={"error": error.message})
            clock.pause(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
