"""The guardian: sends the stops that are owed to robots, whoever else is down.

Woken by NOTIFY on its own connection, it needs neither Redis nor Celery nor a web
process. A stop is repeated, ever less often, until the driver has taken it.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Mapping
from typing import Any

from models.kernel import clock, logs
from models.kernel.errors import OrchestratorError
from models.kernel.listening import Listener
from models.kernel.processes import Presence
from models.kernel.session import statement
from models.tickets.stops import confirm_stop, list_due_stops, postpone_stop
from models.tickets.transitions import STOPS_CHANNEL
from orchestrator_tasks.tickets.drivers.registry import driver

log = logging.getLogger(__name__)

PACE_SECONDS = 0.25


def send_due_stops() -> int:
    """Send every stop that is due; answers how many were taken."""
    with statement() as connection:
        due = list_due_stops(connection)
    return sum(send_stop(order) for order in due)


def send_stop(order: Mapping[str, Any]) -> bool:
    with logs.about(correlation_id=order["correlation_id"], ticket_id=order["ticket_id"], action="stop"):
        try:
            driver().stop(order["target"], order["fence"], order["reason"])
        except Exception as error:  # whatever it is, it must not hold the stops of other robots back
            reason = error.message if isinstance(error, OrchestratorError) else f"{type(error).__name__}: {error}"
            log.exception("a stop was not taken", extra={"target": order["target"], "error": reason})
            with statement() as connection:
                postpone_stop(connection, order["id"], reason)
            return False
        with statement() as connection:
            confirm_stop(connection, order["id"])
        log.info("stopped", extra={"target": order["target"], "reason": order["reason"]})
        return True


def run(over: threading.Event) -> None:
    listener = Listener(STOPS_CHANNEL)
    while not over.is_set():
        try:
            send_due_stops()
            listener.wait(PACE_SECONDS)
        except OrchestratorError as error:
            log.warning("a pass of the guardian failed", extra={"error": error.message})
            clock.pause(PACE_SECONDS)
    listener.close()


def main() -> None:
    logs.configure("guardian")
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    presence = Presence("guardian").start()
    driver()  # now, not when the first stop is due
    log.info("guarding")
    run(over)
    presence.stop()


if __name__ == "__main__":
    main()
