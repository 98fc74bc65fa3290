"""What happens every so often. Beat ticks once a second; the rows decide what a tick runs.

A tick runs what is due, one after the other. A duty that takes its time holds up nothing:
the next tick has a thread of its own and claims what is left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from models.engine.queries import live_runs
from models.engine.retention import tend_inputs
from models.engine.states import RUN
from models.kernel import processes, schedules
from models.kernel.errors import OrchestratorError
from models.kernel.ledger import make_partitions
from models.kernel.logs import about
from models.kernel.retention import drop_old_partitions
from models.kernel.schedules import Run
from models.kernel.session import statement, transaction
from models.kernel.tallies import roll_tallies
from models.kernel.webhooks.deliveries import forget_old_deliveries
from models.tickets.queries import live_tickets
from models.tickets.states import TICKET
from models.tickets.stops import forget_old_stops
from orchestrator_tasks.app import app
from orchestrator_tasks.engine import planner
from orchestrator_tasks.keeper import keeper

log = logging.getLogger(__name__)

MOST_IN_A_TICK = 100


def forget_old_history(connection: Any) -> None:
    """Drop the parts of the ledger that are older than `ledger_keep_days` and that nobody needs."""
    drop_old_partitions(connection, {TICKET.kind: live_tickets(), RUN.kind: live_runs()})


CHORES: list[Callable[[Any], object]] = [
    processes.forget_silent,
    forget_old_stops,
    forget_old_deliveries,
    forget_old_history,
]
"""What housekeeping does, each on a connection of its own: delete what nobody needs any more."""


def tallies() -> None:
    with statement() as connection:
        roll_tallies(connection)


def partitions() -> None:
    with statement() as connection:
        made = make_partitions(connection)
    if made:
        log.info("ledger partitions made ahead", extra={"partitions": made})


def engine_inputs() -> None:
    """Make room in the engine's log, and partitions ahead."""
    with statement() as connection:
        tend_inputs(connection)


def housekeeping() -> None:
    """Do all chores; one that fails keeps no other from being done. Raises RuntimeError naming those that failed."""
    failed = []
    for chore in CHORES:
        try:
            with statement() as connection:
                chore(connection)
        except Exception as error:
            log.exception("a chore failed")
            failed.append(f"{chore.__name__}: {error}")
    if failed:
        raise RuntimeError("; ".join(failed))


DUTIES: dict[str, Callable[..., object]] = {
    "tallies": tallies,
    "partitions": partitions,
    "engine_inputs": engine_inputs,
    "housekeeping": housekeeping,
    "engine": planner.plan,
}
"""By the first part of a schedule's name; the duty of `name:subject` is given the subject."""

BOUNDS = {"engine": 10.0}
"""Seconds after which a duty's run counts as dead, where a minute is too long. Two planners at once do no harm."""


@app.task(name="schedules.tick")
def tick() -> int:
    """Run what is due; answers how much that was."""
    ran = 0
    while ran < MOST_IN_A_TICK and not keeper.is_shutting_down() and (run := claim_due()) is not None:
        carry_out(run)
        ran += 1
    return ran


def claim_due() -> Run | None:
    try:
        with statement() as connection:
            return schedules.claim(connection, DUTIES, BOUNDS)
    except OrchestratorError as error:
        log.warning("nothing can be claimed", extra={"error": error.message})
        return None


def carry_out(run: Run) -> None:
    """One run of one schedule, and the record of how it ended; what could not be recorded ends by its bound."""
    with about(action=f"schedule:{run.name}", correlation_id=run.correlation_id):
        if run.missed or run.abandoned:
            log.warning("a schedule is late", extra={"missed": run.missed, "abandoned": run.abandoned})
        error = attempt(run.name)
        try:
            with transaction() as connection:
                if not schedules.finish(connection, run, error):
                    log.warning("a schedule took longer than its bound; a later run counts instead")
        except OrchestratorError as unrecorded:
            log.warning("the end of a schedule was not recorded", extra={"error": unrecorded.message})


def attempt(name: str) -> str | None:
    """Do the duty of a schedule; answers what went wrong."""
    duty, _, subject = name.partition(":")
    try:
        DUTIES[duty](*([subject] if subject else []))
    except Exception as error:
        log.exception("a schedule failed")
        return f"{type(error).__name__}: {error}"
    return None
