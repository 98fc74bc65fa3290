"""The relay: raw market events from a Redis stream into the log, and what came of the runs out to another.

Both are named by the engine's configuration; without a name nothing is read, or pushed. Any number may run: those that
subscribe share a consumer group, and one of them at a time publishes.
"""

from __future__ import annotations

import logging
import signal
import threading
from typing import Protocol

from models.kernel import clock, logs
from models.kernel.processes import Presence, refuse_without_servers
from orchestrator_tasks.engine.ingest import Subscription
from orchestrator_tasks.engine.publish import Publisher

log = logging.getLogger(__name__)

ROLE = "relay"
LOOK_SECONDS = 1.0
ENDING_SECONDS = 10.0
"""How long what is on its way may take; after that it is left, to be done again by the next."""


class Duty(Protocol):
    """Something that goes on until it is stopped."""

    def run(self) -> None: ...

    def stop(self) -> None: ...


def carry_on(duties: list[Duty], over: threading.Event) -> None:
    """Each duty in a thread of its own, until it is over; they are given ENDING_SECONDS together to end."""
    # A thread that hangs must not keep the process from ending.
    threads = [threading.Thread(target=duty.run, name=type(duty).__name__.lower(), daemon=True) for duty in duties]
    for thread in threads:
        thread.start()
    while not over.wait(LOOK_SECONDS):
        if not all(thread.is_alive() for thread in threads):
            log.error("a duty of the relay ended by itself; the process ends, to be started again")
            break
    for duty in duties:
        duty.stop()
    deadline = clock.monotonic() + ENDING_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - clock.monotonic()))
        if thread.is_alive():
            log.warning("a duty of the relay did not end in time", extra={"duty": thread.name})


def main() -> None:
    refuse_without_servers()
    logs.configure(ROLE)
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    presence = Presence(ROLE).start()
    log.info("relaying")
    carry_on([Subscription(), Publisher()], over)
    presence.stop()


if __name__ == "__main__":
    main()
