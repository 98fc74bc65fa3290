"""The keeper: renews the leases this process holds and interrupts what must end.

One thread a process renews all held leases in one statement. It interrupts an attempt
whose time is up, whose lease is gone, or whose process is shutting down. An attempt
that does not answer its interruption within GRACE_SECONDS is no longer renewed: its
lease runs out, the reaper ends it as unknown, and the guardian stops the robot.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
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

TIMEOUT, LEASE_LOST, SHUTDOWN = "timeout", "lease_lost", "shutdown"


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
        self.thread: threading.Thread | None = None
        self.shutdown_at: float | None = None
        self.next_renewal = 0.0

    @contextlib.contextmanager
    def holding(self, job_id: int, fence: int, timeout_seconds: float, interrupt: Interruptible) -> Iterator[None]:
        """Keep this lease for the length of the block, and interrupt it when its time is up."""
        hold = Hold(job_id, fence, interrupt, clock.monotonic() + timeout_seconds)
        with self.changed:
            self.holds[fence] = hold
            self.start()
            self.changed.notify()
        try:
            yield
        finally:
            with self.changed:
                del self.holds[fence]

    def start(self) -> None:
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self.run, name="keeper", daemon=True)
            self.thread.start()

    def begin_shutdown(self) -> None:
        """What still runs after a short grace is interrupted: its robot stops, its ticket says so."""
        with self.changed:
            self.shutdown_at = clock.monotonic() + SHUTDOWN_GRACE_SECONDS
            self.changed.notify()

    def is_shutting_down(self) -> bool:
        return self.shutdown_at is not None

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait(self.pause())
                holds = list(self.holds.values())
            try:
                self.look_after(holds)
            except Exception:
                log.exception("a pass of the keeper failed")

    def pause(self) -> float:
        """Seconds until something is due."""
        if not self.holds:
            return 60.0
        due = [self.next_renewal, *(h.deadline for h in self.holds.values() if not h.interrupted)]
        if self.shutdown_at is not None:
            due.append(self.shutdown_at)
        return min(max(min(due) - clock.monotonic(), 0.02), 60.0)

    def look_after(self, holds: list[Hold]) -> None:
        now = clock.monotonic()
        for hold in holds:
            if now >= hold.deadline:
                hold.end(TIMEOUT)
            elif self.shutdown_at is not None and now >= self.shutdown_at:
                hold.end(SHUTDOWN)
        if now >= self.next_renewal:
            self.next_renewal = now + settings().lease_seconds / 3
            self.renew([hold for hold in holds if now < hold.deadline + GRACE_SECONDS])

    def renew(self, holds: list[Hold]) -> None:
        """Renew in one statement; a lease that is gone, or could not be renewed for its whole length, is lost."""
        if not holds:
            return
        asked_at = clock.monotonic()
        try:
            with statement() as connection:
                live = renew(connection, [(hold.job_id, hold.fence) for hold in holds])
        except OrchestratorError as error:
            log.warning("leases could not be renewed", extra={"error": error.message, "leases": len(holds)})
            live = None
        for hold in holds:
            if live is None:
                if clock.monotonic() - hold.renewed_at > settings().lease_seconds:
                    hold.end(LEASE_LOST)
            elif (hold.job_id, hold.fence) in live:
                hold.renewed_at = asked_at
            else:
                hold.end(LEASE_LOST)


keeper = Keeper()
