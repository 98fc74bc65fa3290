"""The dispatcher: moves ready jobs from Postgres to Celery's queues, and reaps what nobody finished.

Any number may run. It is woken by a hint, else it looks once a pace. Reaping needs no
Redis: a lease that ran out is ended even while the broker is away.
"""

from __future__ import annotations

import functools
import logging
import signal
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from models.kernel import backlog, clock, logs
from models.kernel.errors import OrchestratorError
from models.kernel.jobs import REGISTRY, Held, Sweep, list_expired, list_lost
from models.kernel.processes import Presence, refuse_without_servers
from models.kernel.session import statement
from models.kernel.settings import settings
from orchestrator_tasks import hints, publisher
from orchestrator_tasks.app import app
from orchestrator_tasks.kernel.feeder import Feeder
from orchestrator_tasks.tempo import Tempo

log = logging.getLogger(__name__)

NOTICE_SECONDS = 0.2
SENT_SECONDS = 1.0  # after which a message is with nobody who could begin: lost, or in a queue that counts by itself
BUSY_PACE_SECONDS = 0.02  # while more may be ready than a queue's window holds


def most_together() -> dict[str, int]:
    """The queues of all kinds of work, and how many jobs a message of theirs may carry."""
    queues: dict[str, int] = {}
    for work in REGISTRY.values():
        queues[work.queue] = max(work.together, queues.get(work.queue, 1))
    return queues


class Dispatcher:
    """One dispatcher process."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.bell = hints.Bell()
        self.turn = threading.Lock()
        self.rest_until = 0.0
        self.full: set[str] = set()
        self.room: dict[str, int] = {}
        self.tempos = {queue: Tempo(most) for queue, most in most_together().items()}
        self.shares = {queue: backlog.AgedShare() for queue in self.tempos}

    def run(self) -> None:
        pace = threading.Thread(target=self.keep_pace, name="pace")
        pace.start()
        try:
            while not self.over.is_set():
                for queue in self.rest():
                    self.attempt(functools.partial(self.refill, queue))
        finally:
            self.over.set()
            pace.join()

    def keep_pace(self) -> None:
        """What needs no hint, beside what hints ask for: no job waits until a sweep has ended."""
        while not self.over.is_set():
            self.attempt(self.refill_all)
            self.attempt(self.sweep)
            self.over.wait(settings().dispatch_seconds)

    def rest(self) -> Collection[str]:
        """Until a hint comes; answers the queues to look at, full ones too: no worker says that it took a message.

        It looks often whether to stop: no signal ends a wait on Redis.
        """
        while not self.over.is_set():
            named = self.bell.wait(BUSY_PACE_SECONDS if self.full else NOTICE_SECONDS)
            if named or self.full:
                return self.tempos if "" in named else named & self.tempos.keys() | self.full
        return ()

    def attempt(self, act: Callable[[], None]) -> None:
        """One pass of one duty; a server that is away is tried again at the next pace."""
        try:
            act()
        except OrchestratorError as error:
            log.warning("a pass of the dispatcher failed", extra={"error": error.message, "code": error.code})
            if error.code == "database_unavailable":
                # Workers could not renew either: give them one lease before any is reaped.
                self.rest_until = clock.monotonic() + settings().lease_seconds
        except Exception:
            log.exception("a pass of the dispatcher failed in a way it should not")

    def refill_all(self) -> None:
        for queue in sorted(self.tempos):
            self.find_forgotten(queue)
            self.refill(queue)

    def find_forgotten(self, queue: str) -> None:
        """Make ready again what was sent to a queue and is not there, or never comes to its turn there."""
        chosen = settings()
        waiting = publisher.count_messages(queue)
        slots = chosen.dispatch_window - waiting
        with statement() as connection:
            if waiting == 0:
                again = backlog.send_again(connection, queue, slots, chosen.redispatch_seconds)
                if again:
                    log.warning("messages were lost and are sent again", extra={"queue": queue, "jobs": again})
            else:  # also behind a window that is full: urgent ones fill it again and again
                backlog.send_passed_over(connection, queue, slots, chosen.aging_seconds)

    def refill(self, queue: str) -> None:
        """Fill one queue up to its window, in order."""
        with self.turn:
            self.fill(queue)

    def fill(self, queue: str) -> None:
        self.full.discard(queue)
        chosen = settings()
        most, together = self.tempos[queue].plan(chosen.dispatch_window)
        slots = self.find_room(queue, most, together)
        with statement() as connection:
            aged = self.shares[queue].take(slots)
            ready = backlog.pick_jobs(connection, queue, slots, chosen.aging_seconds, aged)
        if len(ready) >= slots:
            self.full.add(queue)
        self.tempos[queue].note(len(ready))
        publisher.publish(ready, together)
        if together == 1:
            self.room[queue] = slots - len(ready)

    def find_room(self, queue: str, most: int, together: int) -> int:
        """How many jobs may be sent now: counted when less than half is left of what was found last.

        Workers only make room, so that what is left is there. Several dispatchers may fill a window each.
        """
        left = self.room.pop(queue, 0)
        if together == 1 and 2 * left >= most:
            return left
        slots = most - publisher.count_messages(queue) * together
        if together > 1:
            with statement() as connection:
                slots = min(slots, most - backlog.count_sent(connection, queue, SENT_SECONDS, most))
        return slots

    def sweep(self) -> None:
        with statement() as connection:
            backlog.wake_lanes(connection)
        self.settle("expired", list_expired, {task: work.expired for task, work in REGISTRY.items()})
        if clock.monotonic() >= self.rest_until:
            self.settle("lost", list_lost, {task: work.lost for task, work in REGISTRY.items()})

    def settle(
        self,
        what: str,
        find: Callable[..., Mapping[str, Sequence[Held]]],
        policies: Mapping[str, Sweep],
    ) -> None:
        """Let each domain say what becomes of the jobs that were found."""
        with statement() as connection:
            for task, held in find(connection).items():
                if task not in policies:
                    log.error("nobody here knows what becomes of these jobs", extra={"task": task, "jobs": len(held)})
                    continue
                ended = policies[task](connection, held)
                log.warning(f"jobs ended as {what}", extra={"task": task, "jobs": ended})
                hints.ended(*(job.subject_id for job in held))

    def stop(self, *_: object) -> None:
        self.over.set()


def main() -> None:
    refuse_without_servers()
    logs.configure("dispatcher")
    app.loader.import_default_modules()
    dispatcher = Dispatcher()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, dispatcher.stop)
    presence = Presence("dispatcher").start()
    feeder = Feeder().start()
    log.info("dispatching")
    dispatcher.run()
    feeder.stop()
    presence.stop()


if __name__ == "__main__":
    main()
