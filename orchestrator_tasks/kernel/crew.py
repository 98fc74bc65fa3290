"""Carrying out several jobs of one message.

A message names one job or, when its queue drains fast, several (`tempo`). The thread that has such a message carries
none of them out itself: a crew does, all at once, and the thread gathers what they come to, so that those which end
together are recorded together. What finds no place soon goes back to the backlog, where other workers may have it:
nothing waits long in one process's memory.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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
HANDED_BACK = "handed back"


class Crew:
    """Threads beside the worker's own, started as they are needed; `size` bounds how many are at work."""

    def __init__(self, size: int) -> None:
        self.pool = ThreadPoolExecutor(size, "crew")
        self.places = threading.Semaphore(size)
        self.turn = threading.Lock()

    def claim(self, most: int, patience: float = SOON_SECONDS) -> int:
        """Places for so many, or for as many as become free in time: whoever asks first is served first, in full."""
        until = clock.monotonic() + patience
        claimed = 0
        if self.turn.acquire(timeout=patience):
            while claimed < most and self.places.acquire(timeout=max(0.0, until - clock.monotonic())):
                claimed += 1
            self.turn.release()
        return claimed

    def carry_out(self, acts: Sequence[Callable[[], T]]) -> Iterator[list[T]]:
        """Do these at once, in places that were claimed; yields what they come to, as it comes.

        Raises the first failure, after all have ended.
        """
        ended: queue.SimpleQueue[T | Exception] = queue.SimpleQueue()
        for act in acts:
            self.pool.submit(self.fill_place, act, ended)
        failures: list[Exception] = []
        left = len(acts)
        while left:
            got = [ended.get()]
            while not ended.empty():
                got.append(ended.get())
            left -= len(got)
            failures += [each for each in got if isinstance(each, Exception)]
            yield [each for each in got if not isinstance(each, Exception)]
        if failures:
            raise failures[0]

    def fill_place(self, act: Callable[[], T], ended: queue.SimpleQueue[T | Exception]) -> None:
        try:
            ended.put(act())
        except Exception as error:
            ended.put(error)
        finally:
            self.places.release()


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


def in_turn(orders: Sequence[Order], perform: Callable[[int, str, str | None], str]) -> str:
    """Carry out one after the other, and hand back those that could not begin soon."""
    ended: Counter[str] = Counter()
    until = clock.monotonic() + SOON_SECONDS
    while ended.total() < len(orders) and clock.monotonic() < until:
        ended[perform(*orders[ended.total()])] += 1
    if late := orders[ended.total() :]:
        hand_back(late)
        ended[HANDED_BACK] = len(late)
    return told(ended)


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
