"""Threads for requests: one hand-over there, one word back for as many answers as are ready by then.

`ThreadPoolExecutor` behind `run_in_executor` costs two futures, two locks and a wake-up of the event loop for each
request; under load most of those wake-ups find the loop awake already (`docs/adr/0023`).
"""

from __future__ import annotations

import asyncio
import collections
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple


class Work(NamedTuple):
    """One call, and the future that waits for it."""

    future: asyncio.Future[Any]
    act: Callable[..., Any]
    arguments: tuple[Any, ...]


class Pool:
    """Up to so many threads, each started when a call finds all others busy; they end with the process.

    `prepare` is called once in each thread. Calls come from one event loop at a time.
    """

    def __init__(self, threads: int, name: str, prepare: Callable[[], None] | None = None) -> None:
        self.most = threads
        self.name = name
        self.prepare = prepare
        self.started = 0
        self.busy = 0
        self.work: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self.done: collections.deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = collections.deque()
        self.is_told = False

    def run(self, act: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Call it in a thread; the future has what it answers or raises."""
        future = asyncio.get_running_loop().create_future()
        self.busy += 1
        if self.busy > self.started and self.started < self.most:
            self.start_thread()
        self.work.put(Work(future, act, arguments))
        return future

    def start_thread(self) -> None:
        threading.Thread(target=self.serve, name=f"{self.name}_{self.started}", daemon=True).start()
        self.started += 1

    def serve(self) -> None:
        if self.prepare is not None:
            self.prepare()
        while True:
            self.carry_out(self.work.get())

    def carry_out(self, work: Work) -> None:
        try:
            self.done.append((work.future, work.act(*work.arguments), None))
        except BaseException as error:
            self.done.append((work.future, None, error))
        # Told once for all that is done before the loop comes to look: it unsays this first, then looks.
        if not self.is_told:
            self.is_told = True
            try:
                work.future.get_loop().call_soon_threadsafe(self.tell)
            except RuntimeError:  # the loop has ended: nobody waits any more
                self.is_told = False

    def tell(self) -> None:
        """On the event loop: give what is done to whoever waits for it."""
        self.is_told = False
        while self.done:
            future, answer, error = self.done.popleft()
            self.busy -= 1
            if future.cancelled() or future.get_loop().is_closed():
                continue
            if error is None:
                future.set_result(answer)
            else:
                future.set_exception(error)
