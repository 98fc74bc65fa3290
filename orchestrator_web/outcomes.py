"""Waiting for outcomes without holding a thread, a connection or a transaction.

Flask accepts an execution in one statement and marks its 202 with what it awaits. The
ASGI side then waits on the event loop. One listener a process hears hints from Redis
and reads the outcomes they name; once a second, while anybody waits, one statement
reads all that are waited for, so that a lost hint costs a second and never a caller.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import redis.asyncio
from flask import Response
from redis.exceptions import RedisError

from models.kernel.errors import OrchestratorError
from models.kernel.hints import OUTCOMES, redis_url
from models.kernel.settings import settings

log = logging.getLogger(__name__)

HEADER = "Orchestrator-Awaits"
LET_GO = signal.SIGUSR1
"""The parent is about to stop the server: whoever waits is answered with what is known."""

SWEEP_SECONDS = 1.0
RECENT_HINTS = 4096
LONGEST_BACKOFF = 2.0

Execution = tuple[str, int]
Outcome = Mapping[str, Any]


def awaiting(accepted: Response, execution: tuple[str, int, float] | None) -> Response:
    """Mark an accepted execution with what the caller waits for, and for how many seconds at most."""
    if execution is not None:
        accepted.headers[HEADER] = " ".join(map(str, execution))
    return accepted


class Outcomes:
    """The outcomes that callers of this process wait for."""

    def __init__(self, read: Callable[[list[Execution]], Mapping[Execution, Outcome]]) -> None:
        self.read = read
        self.waiting: dict[Execution, set[asyncio.Future[Outcome]]] = {}
        self.recent: collections.OrderedDict[str, None] = collections.OrderedDict()
        self.asked: set[Execution] = set()
        self.bell = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self.over = asyncio.Event()

    def start(self) -> None:
        self.tasks = [asyncio.create_task(run()) for run in (self.listen, self.sweep, self.answer)]

    async def stop(self) -> None:
        """Let every waiting caller go with what is known: accepted, not ended."""
        self.over.set()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def wait(self, execution: Execution, seconds: float) -> Outcome | None:
        """The outcome once it is recorded, or None when the time is up or the process ends."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(execution, set()).add(future)
        ending = asyncio.ensure_future(self.over.wait())
        try:
            if execution[0] in self.recent:
                self.ask([execution])
            await asyncio.wait({future, ending}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return future.result() if future.done() else None
        finally:
            ending.cancel()
            self.leave(execution, future)

    def leave(self, execution: Execution, future: asyncio.Future[Outcome]) -> None:
        others = self.waiting.get(execution, set())
        others.discard(future)
        if not others:
            self.waiting.pop(execution, None)

    async def look(self, executions: list[Execution]) -> None:
        """Read these outcomes in one statement and wake whoever waits for one that is there."""
        try:
            found = await asyncio.to_thread(self.read, executions)
        except OrchestratorError as error:
            log.warning("outcomes cannot be read yet", extra={"error": error.message})
            return
        except Exception:  # this task answers every caller of the process: it outlives any one look
            log.exception("outcomes could not be read")
            return
        for execution, outcome in found.items():
            for future in self.waiting.get(execution, ()):
                if not future.done():
                    future.set_result(outcome)

    async def sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.ask(list(self.waiting))

    def ask(self, executions: Iterable[Execution]) -> None:
        """Have these read soon, together with whatever else was asked for meanwhile."""
        self.asked.update(executions)
        if self.asked:
            self.bell.set()

    async def answer(self) -> None:
        while True:
            await self.bell.wait()
            self.bell.clear()
            asked, self.asked = self.asked, set()
            await self.look(list(asked))

    async def listen(self) -> None:
        backoff = 0.1
        while True:
            try:
                async with (
                    redis.asyncio.Redis.from_url(
                        redis_url(settings().broker_url), socket_connect_timeout=2.0, health_check_interval=5
                    ) as client,
                    client.pubsub(ignore_subscribe_messages=True) as pubsub,
                ):
                    await pubsub.subscribe(OUTCOMES)
                    backoff = 0.1
                    async for message in pubsub.listen():
                        self.hear(message["data"].decode(errors="replace"))
            except (RedisError, OSError) as error:
                log.warning("not listening for outcomes", extra={"error": str(error)})
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF)

    def hear(self, hint: str) -> None:
        """What it names has ended. It may come before the caller waits, so it is remembered for a while."""
        ended = hint.split(" ")
        for subject_id in ended:
            self.recent[subject_id] = None
            self.recent.move_to_end(subject_id)
        while len(self.recent) > RECENT_HINTS:
            self.recent.popitem(last=False)
        self.ask(execution for execution in self.waiting if execution[0] in ended)
