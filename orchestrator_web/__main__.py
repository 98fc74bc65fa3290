"""`python -m orchestrator_web`: the web processes behind one port, and the word that the service started or stopped."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.kernel import clock, ids, logs
from models.kernel.errors import OrchestratorError
from models.kernel.ledger import note
from models.kernel.processes import refuse_without_servers
from models.kernel.session import dispose_engines, statement
from models.kernel.settings import settings
from models.kernel.tallies import count_states
from models.tickets.telemetry import SERVICE, STARTED, STOPPED
from orchestrator_web.outcomes import LET_GO

log = logging.getLogger(__name__)

NAME, VERSION = "orchestrator-ren", "0.1.0"
BACKLOG = 4096
STOP_SECONDS = 2
LET_GO_SECONDS = 0.25


def tell(topic: str, **body: object) -> None:
    """Record that the service started or stopped; a database that is away must not keep it from doing so."""
    dispose_engines()  # a connection kept from the start may be long dead, or be forked into the workers
    try:
        with statement() as connection:
            if topic == STOPPED:
                body["total_tickets"] = sum(count_states(connection, "ticket").values())
            note(connection, topic, subject=(SERVICE, NAME), actor="web", correlation_id=ids.new_uuid(), body=body)
    except OrchestratorError as error:
        log.warning("the ledger was not told", extra={"topic": topic, "error": error.message})


def fresh_metrics_directory(home: Path) -> Path:
    """An empty directory in which the web processes add up their counters."""
    directory = home / "metrics"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def log_settings() -> dict[str, Any]:
    """The server's own lines as JSON, like everything else's."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "models.kernel.logs.JsonLines", "role": "web"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "loggers": {"_granian": {"handlers": ["stderr"], "level": settings().log_level, "propagate": False}},
    }


def let_waiting_callers_go(pause: Callable[[float], None] = clock.pause) -> None:
    """Tell the workers to answer whoever waits for an outcome, before the server drops its connections."""
    for worker in multiprocessing.active_children():
        if worker.pid is not None:
            os.kill(worker.pid, LET_GO)
    pause(LET_GO_SECONDS)


def main() -> None:
    from granian.constants import Interfaces
    from granian.server import Server

    class PoliteServer(Server):
        """granian, which lets waiting callers go before it stops."""

        def signal_handler_interrupt(self, *args: Any, **kwargs: Any) -> None:
            let_waiting_callers_go()
            super().signal_handler_interrupt(*args, **kwargs)

    refuse_without_servers()
    chosen = settings()
    logs.configure("web")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(fresh_metrics_directory(chosen.home.absolute()))
    tell(STARTED, service=NAME, version=VERSION)
    server = PoliteServer(
        "orchestrator_web.asgi:app",
        address=chosen.host,
        port=chosen.port,
        interface=Interfaces.ASGI,
        workers=chosen.web_processes,
        backlog=BACKLOG,
        backpressure=BACKLOG // 2,
        workers_kill_timeout=STOP_SECONDS,
        respawn_failed_workers=True,
        log_access=False,
        log_dictconfig=log_settings(),
    )
    server.serve()
    tell(STOPPED, service=NAME)


if __name__ == "__main__":
    main()
