"""Following the ledger once a process, for all of its event streams.

The one reader runs while anybody listens. It reads in a thread of its own, turns each
event into bytes once, and hands it to every stream that wants it; no stream holds a
thread or a connection. It polls: a hint could be lost, and none needs to be published
when a ticket is created. A database that is away delays events and ends no stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from models.kernel import clock
from models.kernel.errors import OrchestratorError
from models.kernel.feed import LONGEST_READ, Follower, Selection, begin_at_horizon, list_page
from models.kernel.session import statement

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
GAP_SECONDS = 0.01
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 1.0
PAST_THREADS = 2

Row = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Event:
    """One event, encoded once for everybody: as a server-sent event and as a WebSocket message."""

    seq: int
    row: Row
    sse: bytes
    text: str


Render = Callable[[Row], Event | None]
"""Makes an event of a row of the ledger; None when it is not for the public."""


def by_kind(renders: Mapping[str, Render]) -> Render:
    """One render for several kinds of subjects; what is of no such kind is not for the public."""

    def render(row: Row) -> Event | None:
        of_its_kind = renders.get(row["subject_kind"])
        return of_its_kind(row) if of_its_kind else None

    return render


class Listener(Protocol):
    """Who is handed events."""

    selection: Selection

    @property
    def is_behind(self) -> bool:
        """Whether it still has to tell what it was handed."""

    def offer(self, event: Event) -> None: ...


class Feed:
    """This process's place in the ledger, and who listens."""

    def __init__(self, render: Render, buffer: int) -> None:
        self.render = render
        self.most = min(LONGEST_READ, buffer // 2)  # so that one burst alone overflows nobody
        self.present = ThreadPoolExecutor(1, "feed")
        self.past = ThreadPoolExecutor(PAST_THREADS, "past")
        self.listeners: set[Listener] = set()
        self.wanted = 0
        self.position: int | None = None
        self.starting = asyncio.Lock()
        self.task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While somebody holds the feed, it goes on."""
        self.wanted += 1
        try:
            yield
        finally:
            self.wanted -= 1

    async def find_position(self) -> int:
        """The seq up to which everything was handed out. Raises Unavailable when following cannot begin."""
        async with self.starting:
            if self.position is None:
                follower = await self.in_thread(self.present, begin)
                self.position = follower.position
                self.task = asyncio.create_task(self.follow(follower))
            return self.position

    def now(self) -> int:
        """The same, while somebody holds the feed."""
        assert self.position is not None
        return self.position

    async def ask(self, act: Callable[..., T], *args: Any) -> T:
        """The answer of something that blocks."""
        return await self.in_thread(self.past, act, *args)

    async def list_past(self, selection: Selection, after: int, upto: int) -> tuple[list[Event], int]:
        """The next page of past events, and the seq up to which that is all. Raises CursorExpired."""
        return await self.ask(self.read_past, selection, after, upto)

    def read_past(self, selection: Selection, after: int, upto: int) -> tuple[list[Event], int]:
        with statement() as connection:
            rows, reached = list_page(connection, selection, after, upto)
        return self.rendered(rows), reached

    async def follow(self, follower: Follower) -> None:
        backoff = FIRST_BACKOFF
        while self.wanted:
            try:
                pause = await self.step(follower)
                backoff = FIRST_BACKOFF
            except OrchestratorError as error:
                log.warning("the ledger cannot be followed", extra={"error": error.message})
                pause, backoff = backoff, min(backoff * 2, LONGEST_BACKOFF)
            except Exception:  # every stream of the process hangs on this task: it outlives any one read
                log.exception("the ledger could not be followed")
                pause = LONGEST_BACKOFF
            await asyncio.sleep(pause)
        self.position = None

    async def step(self, follower: Follower) -> float:
        """Read on, hand out, and answer how many seconds to wait. The position moves with what was handed out."""
        follower.position = self.now()
        events, full = await self.in_thread(self.present, self.read_on, follower)
        for event in events:
            for listener in self.listeners:
                if listener.selection.covers(event.row):
                    listener.offer(event)
        self.position = follower.position
        if full:
            await self.let_catch_up()
        return GAP_SECONDS if follower.waits or full else POLL_SECONDS

    async def let_catch_up(self) -> None:
        """After a burst, wait until most listeners have told it: else the pace of reading would cut good ones off."""
        deadline = clock.monotonic() + LONGEST_BACKOFF
        while clock.monotonic() < deadline and 2 * sum(one.is_behind for one in self.listeners) > len(self.listeners):
            await asyncio.sleep(GAP_SECONDS)

    def read_on(self, follower: Follower) -> tuple[list[Event], bool]:
        with statement() as connection:
            rows = follower.read(connection, self.most)
        return self.rendered(rows), len(rows) == self.most

    def rendered(self, rows: Iterable[Row]) -> list[Event]:
        return [event for row in rows if (event := self.render(row)) is not None]

    async def in_thread(self, pool: ThreadPoolExecutor, act: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, act, *args)

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        for pool in (self.present, self.past):
            pool.shutdown(wait=False, cancel_futures=True)


def begin() -> Follower:
    with statement() as connection:
        return begin_at_horizon(connection)
