"""The keeper: renews the leases this process holds and interrupts what must end.

One thread a process renews all held leases in one statement. Another interrupts an
attempt whose time is up, whose lease is gone, or whose process is shutting down; it asks
no database, so that one which hangs keeps no robot moving. An attempt that does not
answer its interruption within GRACE_SECONDS is no longer renewed: its lease runs out,
the reaper ends it as unknown, and the guardian stops the robot.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from models.kernel import clock
from models.kernel.errors import OrchestratorError
from models.kernel.jobs import renew
from models.kernel.session import statement
from models.kernel.settings import settings

log = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
SHUTDOWN_GRACE_SECONDS = 2.0
SHORTEST_PAUSE = 0.02

TIMEOUT, LEASE_LOST, REVOKED, SHUTDOWN = "timeout", "lease_lost", "revoked", "shutdown"


class Interruptible(Protocol):
    def set(self, reason: str) -> None: ...


@dataclass
class Hold:
    """One lease held by this process; times are monotonic seconds."""

    job_id: int
    fence: int
    interrupt: Interruptible
    deadline: float
    renewed_at: float = field(default_factory=clock.monotonic)
    interrupted: bool = False

    def end(self, reason: str) -> None:
        if not self.interrupted:
            self.interrupted = True
            self.interrupt.set(reason)


class Keeper:
    def __init__(self) -> None:
        self.holds: dict[int, Hold] = {}
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []
        self.shutdown_at: float | None = None
        self.next_renewal = 0.0
        self.next_interruption = 0.0

    @contextlib.contextmanager
    def holding(self, job_id: int, fence: int, timeout_seconds: float, interrupt: Interruptible) -> Iterator[None]:
        """Keep this lease for the length of the block, and interrupt it when its time is up."""
        hold = Hold(job_id, fence, interrupt, clock.monotonic() + timeout_seconds)
        with self.changed:
            self.holds[fence] = hold
            self.start()
            if self.interrupted_at(hold) < self.next_interruption:  # else both wake soon enough by themselves
                self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                del self.holds[fence]

    def start(self) -> None:
        if self.threads and all(thread.is_alive() for thread in self.threads):
            return
        duties = ((self.interrupt_due, self.interruption_due_at), (self.renew_due, self.renewal_due_at))
        self.threads = [threading.Thread(target=self.run, args=duty, name="keeper", daemon=True) for duty in duties]
        for thread in self.threads:
            thread.start()

    def begin_shutdown(self) -> None:
        """What still runs after a short grace is interrupted: its robot stops, its ticket says so."""
        with self.changed:
            self.shutdown_at = clock.monotonic() + SHUTDOWN_GRACE_SECONDS
            self.changed.notify_all()

    def is_shutting_down(self) -> bool:
        return self.shutdown_at is not None

    def run(self, duty: Callable[[list[Hold]], None], due_at: Callable[[], float]) -> None:
        while True:
            with self.changed:
                self.changed.wait(max(due_at() - clock.monotonic(), SHORTEST_PAUSE))
                holds = list(self.holds.values())
            try:
                duty(holds)
            except Exception:
                log.exception("a pass of the keeper failed")

    def interruption_due_at(self) -> float:
        """When the next of those that nobody has interrupted may have to be, or one that begins later."""
        moments = [self.interrupted_at(hold) for hold in self.holds.values() if not hold.interrupted]
        if moments and self.shutdown_at is not None:
            moments.append(self.shutdown_at)
        self.next_interruption = min([*moments, clock.monotonic() + settings().lease_seconds])
        return self.next_interruption

    def interrupted_at(self, hold: Hold) -> float:
        return min(hold.deadline, self.lease_ends(hold))

    def renewal_due_at(self) -> float:
        return self.next_renewal

    def lease_ends(self, hold: Hold) -> float:
        return hold.renewed_at + settings().lease_seconds

    def interrupt_due(self, holds: list[Hold]) -> None:
        """Interrupt what has to end. A lease that could not be renewed for its whole length is lost."""
        now = clock.monotonic()
        for hold in holds:
            if now >= hold.deadline:
                hold.end(TIMEOUT)
            elif self.shutdown_at is not None and now >= self.shutdown_at:
                hold.end(SHUTDOWN)
            elif now > self.lease_ends(hold):
                hold.end(LEASE_LOST)

    def renew_due(self, holds: list[Hold]) -> None:
        """Renew three times within a lease, whenever in it a hold began; what failed is tried again soon."""
        now = clock.monotonic()
        if now >= self.next_renewal:
            done = self.renew([hold for hold in holds if now < hold.deadline + GRACE_SECONDS])
            self.next_renewal = now + settings().lease_seconds / (3 if done else 12)

    def renew(self, holds: list[Hold]) -> bool:
        """Renew in one statement; a lease that is gone is lost. False when the database did not answer."""
        if not holds:
            return True
        asked_at = clock.monotonic()
        try:
            with statement() as connection:
                live = renew(connection, [(hold.job_id, hold.fence) for hold in holds])
        except OrchestratorError as error:
            log.warning("leases could not be renewed", extra={"error": error.message, "leases": len(holds)})
            return False
        for hold in holds:
            if (hold.job_id, hold.fence) in live:
                hold.renewed_at = asked_at
            else:
                hold.end(REVOKED)
        return True


keeper = Keeper()
