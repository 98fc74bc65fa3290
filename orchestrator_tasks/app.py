"""The Celery application, and what its processes do when they start and end."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any

from celery import Celery, signals
from celery.concurrency.thread import TaskPool

import celeryconfig
from models.kernel import logs
from models.kernel.errors import OrchestratorError
from models.kernel.processes import Presence, refuse_without_servers
from models.kernel.schedules import declare
from models.kernel.session import statement
from orchestrator_tasks.events import TogetherToFlower
from orchestrator_tasks.keeper import keeper
from orchestrator_tasks.pool import WakingPool

app = Celery("orchestrator")
app.config_from_object(celeryconfig)
app.steps["consumer"].add(TogetherToFlower)

presences: list[Presence] = []
stop_heard, stop_said = os.pipe()
"""Ends once this worker is told to stop, or is no more: how the processes that it forked hear of it."""
worker_pid = os.getpid()


def role_of(hostname: str) -> str:
    """`io@host` works as `io`."""
    return hostname.partition("@")[0]


@signals.setup_logging.connect
def log_as_json(**_: Any) -> None:
    logs.configure(next((word for word in ("worker", "beat", "flower") if word in sys.argv), "celery"))
    for chatty in ("celery.worker.strategy", "celery.app.trace", "celery.beat"):
        logging.getLogger(chatty).setLevel(logging.WARNING)  # our own lines say the same, with the ticket's id


@signals.worker_init.connect
def worker_is_made(sender: Any, **_: Any) -> None:
    """A worker that cannot call the engine must not take its runs: each would fail for good."""
    refuse_without_servers()
    if sender.pool_cls is TaskPool:
        sender.pool_cls = WakingPool
    if role_of(sender.hostname) == "cpu":
        from orchestrator_tasks.engine.announce import begin_worker

        try:
            begin_worker("cpu")
        except OrchestratorError as error:
            raise SystemExit(error.message) from None


@signals.worker_process_init.connect
def fork_starts(**_: Any) -> None:
    if os.getpid() == worker_pid:  # a pool that forks nobody
        return
    say_stop()
    threading.Thread(target=hear_stop, name="stop", daemon=True).start()


def hear_stop() -> None:
    os.read(stop_heard, 1)
    keeper.begin_shutdown()


@signals.worker_ready.connect
def worker_starts(sender: Any, **_: Any) -> None:
    presences.append(Presence(role_of(sender.hostname)).start())


@signals.worker_shutting_down.connect
def worker_is_told_to_stop(**_: Any) -> None:
    keeper.begin_shutdown()
    say_stop()


def say_stop() -> None:
    """Close this process's end; the others hear it when the last one is closed, and that is the worker's own."""
    global stop_said  # noqa: PLW0603 - of this process; closed once
    if stop_said >= 0:
        os.close(stop_said)
        stop_said = -1


@signals.worker_shutdown.connect
def worker_ends(**_: Any) -> None:
    while presences:
        presences.pop().stop()


@signals.beat_init.connect
def beat_starts(**_: Any) -> None:
    """Without a database there is nothing to tick for: end, and be started again."""
    from orchestrator_tasks.engine.config import accept_file

    refuse_without_servers()
    try:
        with statement() as connection:
            declare(connection, celeryconfig.SCHEDULES)
        accept_file()
    except OrchestratorError as error:
        raise SystemExit(error.message) from None
    presences.append(Presence("beat").start())
