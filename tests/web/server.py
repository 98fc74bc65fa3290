"""The ASGI application driven in-process, as the server would: requests, lifespan, and a client that may leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

DEADLINE = 20.0
Headers = list[tuple[str, str]]
Message = MutableMapping[str, Any]


@dataclass
class Heard:
    """What a client was sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


@contextlib.contextmanager
def own_logs() -> Iterator[None]:
    """The module of the ASGI application takes the process's logs over; not the ones of the tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario to its end, and never for longer than the deadline."""

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE):
            await scenario()

    asyncio.run(bounded())


async def until(condition: Callable[[], object]) -> None:
    """Let everything else run until the condition holds."""
    while not condition():
        await asyncio.sleep(0)


class Server:
    """The server's half of ASGI for one application."""

    def __init__(self, application: Any, credential: str = "") -> None:
        self.application = application
        self.credential = credential
        self.life: asyncio.Queue[Message] = asyncio.Queue()
        self.said: asyncio.Queue[Message] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        living = asyncio.create_task(self.application({"type": "lifespan"}, self.life.get, self.said.put))
        await self.life.put({"type": "lifespan.startup"})
        assert (await self.said.get())["type"] == "lifespan.startup.complete"
        try:
            yield self
        finally:
            await self.shut_down()
            await living

    async def shut_down(self) -> None:
        await self.life.put({"type": "lifespan.shutdown"})

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Headers | None = None,
        parts: list[Message] | None = None,
        left: asyncio.Event | None = None,
    ) -> Heard | None:
        """What the client hears; None when it left first. `parts` are the messages of a body sent in pieces."""
        content = b"" if body is None else json.dumps(body).encode()
        messages = parts if parts is not None else [{"type": "http.request", "body": content}]
        remaining = iter(messages)
        sent: list[Message] = []

        async def receive() -> Message:
            message = next(remaining, None)
            if message is None:
                await (left or asyncio.Event()).wait()
                return {"type": "http.disconnect"}
            return message

        async def send(message: Message) -> None:
            sent.append(message)

        await self.application(self.scope(method, path, content, headers or []), receive, send)
        if not sent:
            return None
        start, end = sent
        told = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        return Heard(start["status"], told, end["body"])

    def scope(self, method: str, path: str, content: bytes, headers: Headers) -> Message:
        path, _, query = path.partition("?")
        own: Headers = [("content-type", "application/json")] if content else []
        own += [("authorization", f"Bearer {self.credential}")] if self.credential else []
        return {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in own + headers],
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50_000),
            "scheme": "http",
            "http_version": "1.1",
        }
