"""Clients of event streams, driven in-process: what each was sent, when it takes data, and when it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from tests.web.server import Headers, Message, Server, until
from tests.web.service import Api


class Listening:
    """One open stream, whatever carries it."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.taking = asyncio.Event()
        self.taking.set()
        self.left = asyncio.Event()

    async def send(self, message: Message) -> None:
        await self.taking.wait()
        self.sent.append(message)

    @property
    def status(self) -> int:
        return next(int(m["status"]) for m in self.sent if m["type"].endswith("response.start"))

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent)

    def events(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    async def heard(self, *types: str) -> list[dict[str, Any]]:
        """The events, once one of each of these types was among them."""
        await until(lambda: {e["type"] for e in self.events()} >= set(types))
        return self.events()

    async def first(self, count: int) -> list[dict[str, Any]]:
        await until(lambda: len(self.events()) >= count)
        return self.events()


class Blocks(Listening):
    """A stream of server-sent events, taken apart as the standard says (WHATWG HTML, section 9.2.6)."""

    async def receive(self) -> Message:
        if not self.sent and not self.left.is_set() and not hasattr(self, "asked"):
            self.asked = True
            return {"type": "http.request", "body": b""}
        await self.left.wait()
        return {"type": "http.disconnect"}

    def blocks(self) -> list[dict[str, str]]:
        found = []
        for block in self.body.decode().split("\n\n")[:-1]:
            lines = [line.partition(": ") for line in block.split("\n")]
            found.append({name or "comment": value for name, _, value in lines})
        return found

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(block["data"]) for block in self.blocks() if "data" in block and block["event"] != "problem"]

    def last_id(self) -> str:
        return [block["id"] for block in self.blocks() if "id" in block][-1]

    def problem(self) -> dict[str, Any] | None:
        return next((json.loads(b["data"]) for b in self.blocks() if b.get("event") == "problem"), None)


class Messages(Listening):
    """A WebSocket."""

    connected = False

    async def receive(self) -> Message:
        if not self.connected:
            self.connected = True
            return {"type": "websocket.connect"}
        await self.left.wait()
        return {"type": "websocket.disconnect", "code": 1001}

    def said(self) -> list[dict[str, Any]]:
        return [json.loads(m["text"]) for m in self.sent if m["type"] == "websocket.send"]

    def events(self) -> list[dict[str, Any]]:
        return [message for message in self.said() if "seq" in message]

    def last_id(self) -> str:
        return str([message["id"] for message in self.said() if "id" in message][-1])

    def problem(self) -> dict[str, Any] | None:
        return next((message["problem"] for message in self.said() if message["type"] == "problem"), None)

    @property
    def closed(self) -> tuple[int, str]:
        return next((m["code"], m["reason"]) for m in self.sent if m["type"] == "websocket.close")


Client = Blocks | Messages
PATHS = {Blocks: "/tickets/events", Messages: "/ws/tickets"}


@contextlib.asynccontextmanager
async def listening(
    server: Server,
    kind: type[Client] = Blocks,
    query: str = "",
    headers: Headers | None = None,
    client: Client | None = None,
    *,
    path: str | None = None,
) -> AsyncIterator[Any]:
    """A client of a stream that was answered; it leaves with the block."""
    client = client or kind()
    upgrade = [("connection", "upgrade"), ("upgrade", "websocket")] if isinstance(client, Messages) else []
    scope = server.scope("GET", (path or PATHS[type(client)]) + (query and f"?{query}"), b"", upgrade + (headers or []))
    scope["orchestrator.peer"] = ("192.0.2.1", 50_000)
    if isinstance(client, Messages):
        scope |= {"type": "websocket", "scheme": "ws"}
        del scope["method"]
    serving = asyncio.create_task(server.application(scope, client.receive, client.send))
    await until(lambda: client.sent or serving.done() or not client.taking.is_set())
    try:
        yield client
    finally:
        client.left.set()
        client.taking.set()
        await serving


async def ended(client: Client) -> dict[str, Any]:
    """The problem that ended a stream."""
    await until(client.problem)
    problem = client.problem()
    assert problem is not None
    return problem


async def opened(client: Client) -> str:
    """The cursor with which a stream began."""
    await until(lambda: len(client.sent) > 1)
    return client.last_id()


def scan(api: Api, **ticket: Any) -> str:
    """One more event."""
    return str(api.create(**{"command": "scan", **ticket})["id"])
