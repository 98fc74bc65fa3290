"""Carrying out several jobs of one message.

A message names one job or, when its queue drains fast, several (`tempo`). The thread that has such a message carries
none of them out itself: a crew does, and the thread gathers what they come to, so that those which end together are
recorded together. The crew sends one thread first, which does one after the other: what ends at once costs no hand-over
between threads. What that thread has not begun within ALONE_SECONDS is begun by threads of its own; until then other
messages wait for their turn, if it comes soon: side by side they would take longer each, and end in pieces. What finds
no place soon goes back to the backlog, where other workers may have it: nothing waits long in one process's memory.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from celery import current_task

from models.kernel import clock
from models.kernel.backlog import hand_back_jobs
from models.kernel.errors import OrchestratorError
from models.kernel.messages import CORRELATION
from models.kernel.session import statement
from orchestrator_tasks import hints

Order = tuple[int, str, str | None]
"""What a message says of a job: its id, its subject's, the correlation id."""

log = logging.getLogger(__name__)

T = TypeVar("T")

SOON_SECONDS = 0.5
ALONE_SECONDS = 0.02
GATHER_SECONDS = 0.02  # in which what began together may end together, to be recorded in one statement
TURN_SECONDS = 0.1  # that a message waits for those before it, of which each holds its turn for ALONE_SECONDS
HANDED_BACK = "handed back"


class Round(Generic[T]):
    """The acts of one message, each done once, by whichever thread comes to it first."""

    def __init__(self, acts: Sequence[Callable[[], T]], leave: Callable[[], object]) -> None:
        self.left = deque(acts)
        self.ended: deque[T | Exception] = deque()
        self.count = self.missing = len(acts)
        self.leave = leave
        self.lock = threading.Lock()
        self.all_called = False
        self.word: queue.SimpleQueue[None] = queue.SimpleQueue()
        """For who gathers: all has ended or, once everybody is called, one more has."""
        self.is_over = threading.Event()

    def work(self) -> None:
        """Do what is left, one after the other."""
        while True:
            try:
                act = self.left.popleft()
            except IndexError:
                return
            try:
                self.end(act())
            except Exception as error:
                self.end(error)

    def end(self, result: T | Exception) -> None:
        self.leave()
        self.ended.append(result)
        with self.lock:
            self.missing -= 1
            is_last = self.missing == 0
        if is_last:
            self.is_over.set()
        if is_last or self.all_called:
            self.word.put(None)

    def gather(self) -> list[T | Exception]:
        """What has ended and was not gathered before; waits until there is some, and a moment for what ends with it."""
        while not self.ended:
            self.word.get()
        self.is_over.wait(GATHER_SECONDS)
        return [self.ended.popleft() for _ in range(len(self.ended))]


class Crew:
    """Threads beside the worker's own, started as they are needed; `size` bounds how many are at work."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pool = ThreadPoolExecutor(size, "crew")
        self.places = threading.Semaphore(size)
        self.turn = threading.Lock()
        self.alone = threading.Lock()

    def claim(self, most: int, patience: float = SOON_SECONDS) -> int:
        """Places for so many, or for as many as become free in time: whoever asks first is served first, in full."""
        until = clock.monotonic() + patience
        claimed = 0
        if self.turn.acquire(timeout=patience):
            while claimed < min(most, self.size) and self.places.acquire(timeout=max(0.0, until - clock.monotonic())):
                claimed += 1
            self.turn.release()
        return claimed

    def carry_out(self, prepare: Callable[[], Sequence[Callable[[], T]]]) -> Iterator[list[T]]:
        """Do these, in places that were claimed, none behind another that takes long; yields what they come to.

        `prepare` says what they are, just before they begin. Raises the first failure, after all have ended.
        """
        of_these = self.begin(prepare)
        failures: list[Exception] = []
        missing = of_these.count
        while missing:
            got = of_these.gather()
            missing -= len(got)
            failures += [each for each in got if isinstance(each, Exception)]
            yield [each for each in got if not isinstance(each, Exception)]
        if failures:
            raise failures[0]

    def begin(self, prepare: Callable[[], Sequence[Callable[[], T]]]) -> Round[T]:
        """Send one thread, and the others if it takes long.

        One message at a time, while its turn comes soon: they would only share the interpreter, and end in pieces.
        """
        has_turn = self.alone.acquire(timeout=TURN_SECONDS)
        try:
            of_these = Round(prepare(), self.places.release)
            self.pool.submit(of_these.work)
            if not of_these.is_over.wait(ALONE_SECONDS):
                of_these.all_called = True
                for _ in range(len(of_these.left)):
                    self.pool.submit(of_these.work)
        finally:
            if has_turn:
                self.alone.release()
        return of_these


def orders_of(job_id: int, subject_id: str, others: Sequence[Order]) -> list[Order]:
    """What the present message asks for."""
    return [(job_id, subject_id, getattr(current_task.request, CORRELATION, None)), *others]


def side_by_side(
    orders: Sequence[Order], crew: Crew, carry_out: Callable[[Sequence[Order], Crew], Iterable[str]]
) -> str:
    """Carry out those for which the crew has places, and hand back the others; says how many ended in which way."""
    count = crew.claim(len(orders))
    if orders[count:]:
        hand_back(orders[count:])
    ended = Counter(carry_out(orders[:count], crew))
    return told(ended + Counter({HANDED_BACK: len(orders) - count}))


def told(ended: Counter[str]) -> str:
    return ", ".join(f"{word} {count}" if ended.total() > 1 else word for word, count in ended.items())


def hand_back(orders: Sequence[Order]) -> None:
    """While the database is away they stay sent, and are sent again after a silence as what was lost is."""
    try:
        with statement() as connection:
            hand_back_jobs(connection, [order[0] for order in orders])
    except OrchestratorError as error:
        log.warning("jobs could not be handed back", extra={"jobs": len(orders), "error": error.message})
    hints.owed()
