"""How a stream reaches its client: server-sent events (WHATWG HTML, section 9.2) or a WebSocket (RFC 6455).

The server below gives back-pressure: `send` returns once the client's socket has room.
So nothing piles up here, and a client that takes no data for SEND_SECONDS is found out
by the TimeoutError that every method may raise.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any, Protocol

from orchestrator_web.bridge import Receive, Send
from orchestrator_web.connections import Peer
from orchestrator_web.feed import Event
from orchestrator_web.json import dumps

SEND_SECONDS = 10.0
RETRY_MS = 1000
CLOSE_CODES = 4000
"""A WebSocket that a problem ends closes with this plus the problem's status."""

Headers = list[tuple[str, str]]


class Transport(Protocol):
    """One client's end of a stream."""

    peer: Peer | None
    collects: bool
    """Whether the server collects in memory what the client sends."""

    async def open(self, cursor: str) -> None:
        """Tell the client that the stream is open, and the cursor of its beginning."""

    async def tell(self, events: list[Event]) -> None: ...

    async def beat(self, cursor: str) -> None:
        """A sign of life, with the cursor up to which everything was told."""

    async def end(self, problem: dict[str, Any]) -> None:
        """Send the last word; the caller says how long it may take."""

    async def departure(self) -> None:
        """Return when the client is gone."""


class Sender:
    """What both transports share: a bounded send, and listening for the end."""

    gone = ""
    collects = False

    def __init__(self, headers: Headers, receive: Receive, send: Send, peer: Peer | None = None) -> None:
        self.headers, self.receive, self.slow_send, self.peer = headers, receive, send, peer

    async def send(self, message: MutableMapping[str, Any]) -> None:
        async with asyncio.timeout(SEND_SECONDS):
            await self.slow_send(message)

    async def departure(self) -> None:
        while (await self.receive())["type"] != self.gone:
            pass


class ServerSent(Sender):
    """Server-sent events: the topic is the event's type, the problem that ends a stream has the type `problem`."""

    gone = "http.disconnect"

    async def open(self, cursor: str) -> None:
        kept = [(k.lower().encode(), v.encode("latin-1")) for k, v in self.headers if k.lower() != "content-length"]
        await self.send({"type": "http.response.start", "status": 200, "headers": kept})
        await self.write(f"retry: {RETRY_MS}\nid: {cursor}\n\n".encode())

    async def write(self, block: bytes) -> None:
        await self.send({"type": "http.response.body", "body": block, "more_body": True})

    async def tell(self, events: list[Event]) -> None:
        await self.write(b"".join(event.sse for event in events))

    async def beat(self, cursor: str) -> None:
        await self.write(f": heartbeat\nid: {cursor}\n\n".encode())

    async def end(self, problem: dict[str, Any]) -> None:
        block = b"event: problem\ndata: " + dumps(problem) + b"\n\n"
        await self.slow_send({"type": "http.response.body", "body": block, "more_body": False})


class WebSocket(Sender):
    """WebSocket messages, each a JSON object with a `type`. What the client says is read and ignored."""

    gone = "websocket.disconnect"
    collects = True

    async def open(self, cursor: str) -> None:
        named = [(k.lower().encode(), v.encode("latin-1")) for k, v in self.headers if k.lower() == "x-correlation-id"]
        chosen = next((v for k, v in self.headers if k.lower() == "sec-websocket-protocol"), None)
        await self.send({"type": "websocket.accept", "headers": named, "subprotocol": chosen})
        await self.write({"type": "opened", "id": cursor})

    async def write(self, message: dict[str, Any]) -> None:
        await self.send({"type": "websocket.send", "text": dumps(message).decode()})

    async def tell(self, events: list[Event]) -> None:
        for event in events:
            await self.send({"type": "websocket.send", "text": event.text})

    async def beat(self, cursor: str) -> None:
        await self.write({"type": "heartbeat", "id": cursor})

    async def end(self, problem: dict[str, Any]) -> None:
        await self.slow_send(
            {"type": "websocket.send", "text": dumps({"type": "problem", "problem": problem}).decode()}
        )
        code = CLOSE_CODES + int(problem["status"])
        await self.slow_send({"type": "websocket.close", "code": code, "reason": problem["code"]})


class Refusing:
    """Refuses a handshake with an HTTP answer (the ASGI extension `websocket.http.response`): status and problem."""

    def __init__(self, send: Send) -> None:
        self.send = send

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        kind = message["type"]
        await self.send({**message, "type": f"websocket.{kind}" if kind.startswith("http.response") else kind})
