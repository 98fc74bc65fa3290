"""What happens every so often. Beat ticks; the row of each schedule decides whether a tick fires."""

from __future__ import annotations

import logging

from models.kernel import processes, schedules
from models.kernel.ledger import make_partitions
from models.kernel.logs import about
from models.kernel.session import statement
from models.kernel.tallies import roll_tallies
from models.tickets.stops import forget_old_stops
from orchestrator_tasks.app import app

log = logging.getLogger(__name__)


def tallies() -> None:
    with statement() as connection:
        roll_tallies(connection)


def partitions() -> None:
    with statement() as connection:
        made = make_partitions(connection)
    if made:
        log.info("ledger partitions made ahead", extra={"partitions": made})


def housekeeping() -> None:
    with statement() as connection:
        processes.forget_silent(connection)
        forget_old_stops(connection)


DUTIES = {"tallies": tallies, "partitions": partitions, "housekeeping": housekeeping}


@app.task(name="schedules.tick")
def tick(name: str) -> bool:
    """Fire a schedule if this tick is the one that its due time belongs to."""
    with statement() as connection:
        if not schedules.claim(connection, name):
            return False
    with about(action=f"schedule:{name}"):
        try:
            DUTIES[name]()
        except Exception as error:
            log.exception("a schedule failed")
            finish(name, f"{type(error).__name__}: {error}")
            return False
    finish(name)
    return True


def finish(name: str, error: str | None = None) -> None:
    with statement() as connection:
        schedules.finish(connection, name, error)
