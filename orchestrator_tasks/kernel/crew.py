"""Carrying out several jobs of one message at once.

A message names one job, or, when its queue drains fast, several (`tempo`). The thread that has the message carries out
one of them itself, and as many others as the crew has places for at that moment. What could not begin soon goes back
to the backlog, where other workers may have it: nothing waits long in one process's memory.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from celery import current_task

from models.kernel import clock
from models.kernel.backlog import hand_back_jobs
from models.kernel.session import statement
from orchestrator_tasks import hints
from orchestrator_tasks.publisher import CORRELATION

Order = tuple[int, str, str | None]
"""What a message says of a job: its id, its subject's, the correlation id."""
Perform = Callable[[int, str, str | None], str]

SOON_SECONDS = 0.5
HANDED_BACK = "handed back"


class Crew:
    """Threads beside the worker's own, started as they are needed; `size` bounds how many are at work."""

    def __init__(self, size: int) -> None:
        self.pool = ThreadPoolExecutor(size, "crew")
        self.places = threading.Semaphore(size)

    def give(self, perform: Perform, order: Order) -> Future[str] | None:
        """Have an order carried out now; None when nobody is free."""
        if not self.places.acquire(blocking=False):
            return None
        return self.pool.submit(self.carry_out, perform, order)

    def carry_out(self, perform: Perform, order: Order) -> str:
        try:
            return perform(*order)
        finally:
            self.places.release()


def orders_of(job_id: int, subject_id: str, others: Sequence[Order]) -> list[Order]:
    """What the present message asks for."""
    return [(job_id, subject_id, getattr(current_task.request, CORRELATION, None)), *others]


def carry_out_all(perform: Perform, named: Sequence[Order], crew: Crew | None = None) -> str:
    """Carry orders out, side by side or, without a crew, one after the other; answers how many ended in which way."""
    orders = deque(named)
    ended: Counter[str] = Counter()
    until = clock.monotonic() + SOON_SECONDS
    while orders and clock.monotonic() < until:
        ended.update(carry_out_some(perform, orders, crew))
    if orders:
        hand_back(orders)
        ended[HANDED_BACK] += len(orders)
    return ", ".join(f"{word} {count}" if ended.total() > 1 else word for word, count in ended.items())


def carry_out_some(perform: Perform, orders: deque[Order], crew: Crew | None) -> list[str]:
    """One in this thread, and beside it as many as there are places for."""
    own = orders.popleft()
    given: list[Future[str]] = []
    while crew and orders and (future := crew.give(perform, orders[0])):
        given.append(future)
        orders.popleft()
    try:
        ended = [perform(*own)]
    finally:
        wait(given)
    return ended + [future.result() for future in given]


def hand_back(orders: Sequence[Order]) -> None:
    with statement() as connection:
        hand_back_jobs(connection, [order[0] for order in orders])
    hints.owed()
