"""The guardian: stops robots, whoever else is down or busy.

It sends the stops that revoked commands are owed, each repeated, ever less often,
until the driver has taken it (and on, where robots know no fences, until the revoked
command can no longer arrive); it carries out the tickets that say `stop` or `brake`; and
while an e-stop is engaged it ends whatever is going on. Woken by NOTIFY on its own
connection, it needs neither Redis nor Celery, and many threads keep robots that do not
answer from holding up the others.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from models.kernel import clock, logs
from models.kernel.backlog import pick_jobs, send_again
from models.kernel.company import go_alone
from models.kernel.errors import OrchestratorError
from models.kernel.listening import Listener
from models.kernel.processes import Presence, refuse_without_servers
from models.kernel.session import statement
from models.kernel.settings import settings
from models.tickets.estop import sweep_tickets
from models.tickets.stops import confirm_stop, list_due_stops, postpone_stop, repeat_stop
from models.tickets.transitions import STOPS_CHANNEL, STOPS_QUEUE
from orchestrator_tasks.tickets.drivers.registry import driver
from orchestrator_tasks.tickets.tasks import perform

log = logging.getLogger(__name__)

PACE_SECONDS = 0.25
LATE_SECONDS = 1.0
BUSY_PACE_SECONDS = 0.02  # while more is due than there are threads
THREADS = 64


class Crew:
    """A few threads; what is given under a name that is still at work is not taken twice."""

    def __init__(self, threads: int = THREADS) -> None:
        self.pool = ThreadPoolExecutor(threads, "stop", initializer=go_alone)  # a stop waits for no other's
        self.threads = threads
        self.at_work: dict[object, Future[Any]] = {}
        self.warned: set[object] = set()

    def free(self) -> int:
        self.at_work = {name: future for name, future in self.at_work.items() if not future.done()}
        return self.threads - len(self.at_work)

    def give(self, name: object, act: Callable[..., Any], *arguments: Any) -> list[Future[Any]]:
        """Have it done; the future, or nothing when there is no room or it is being done already."""
        if self.free() <= 0 or name in self.at_work:
            return []
        future = self.at_work[name] = self.pool.submit(act, *arguments)
        return [future]


def give_due_stops(crew: Crew) -> list[Future[bool]]:
    """Have every stop sent that a robot is owed, as far as there is room; those at work are among the due."""
    with statement() as connection:
        due = list_due_stops(connection, limit=2 * crew.threads)
    warn_of_late(crew, due)
    return [future for order in due for future in crew.give(order["id"], send_stop, order)]


def warn_of_late(crew: Crew, due: Sequence[Mapping[str, Any]]) -> None:
    """Say once of each stop that nobody has taken in time, also while the robot still keeps the first try waiting."""
    late = {order["id"]: order for order in due if not order["tries"] and age_of(order) > LATE_SECONDS}
    for order in (late[number] for number in late.keys() - crew.warned):
        facts = {"target": order["target"], "ticket_id": order["ticket_id"], "seconds": round(age_of(order), 2)}
        log.warning("a stop has not been taken yet: the robot may be moving", extra=facts)
    crew.warned = set(late)


def age_of(order: Mapping[str, Any]) -> float:
    return float((order["now"] - order["ordered_at"]).total_seconds())


def give_stop_tickets(crew: Crew) -> list[Future[str]]:
    """Have the tickets that stop robots carried out: they go through no worker, for those may all be driving."""
    with statement() as connection:
        send_again(connection, STOPS_QUEUE, THREADS, settings().redispatch_seconds)
        owed = pick_jobs(connection, STOPS_QUEUE, crew.free(), settings().aging_seconds)
    return [
        future
        for job in owed
        for future in crew.give(job.subject_id, perform, job.id, job.subject_id, job.correlation_id)
    ]


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
            if driver().obeys_fences:
                confirm_stop(connection, order["id"])
            else:
                chosen = settings()
                repeat_stop(connection, order["id"], order["now"], chosen.estop_repeat_seconds, chosen.actuator_timeout)
        log.info("stopped", extra={"target": order["target"], "reason": order["reason"]})
        return True


def sweep() -> None:
    """End what an engaged e-stop finds going on: whoever engaged it may have died before it did, or been cut short."""
    try:
        with statement() as connection:
            swept = sweep_tickets(connection, "guardian")
    except OrchestratorError as error:
        log.warning("a sweep of the e-stop failed", extra={"error": error.message})
        return
    if swept.revoked:
        log.warning("swept", extra={"revoked": swept.revoked, "left": swept.left})


def pace(crew: Crew) -> float:
    if crew.free() <= 0:
        return BUSY_PACE_SECONDS
    return PACE_SECONDS if driver().obeys_fences else min(PACE_SECONDS, settings().estop_repeat_seconds)


def run(over: threading.Event) -> None:
    listener = Listener(STOPS_CHANNEL)
    crew, sweeper = Crew(), Crew(1)
    while not over.is_set():
        try:
            sweeper.give("sweep", sweep)
            give_due_stops(crew)
            give_stop_tickets(crew)
            listener.wait(pace(crew))
        except OrchestratorError as error:
            log.warning("a pass of the guardian failed", extra={"error": error.message})
            clock.pause(PACE_SECONDS)
    listener.close()
    sweeper.pool.shutdown()
    crew.pool.shutdown()


def main() -> None:
    refuse_without_servers()
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
