"""Flask behind an ASGI server: one hop into a bounded pool of threads for each request.

The body is read first, on the event loop, under the size limit and a deadline, so that a
slow or endless sender holds no thread. The answer comes back whole. A reserved pool
keeps a few threads for the paths that must answer while everything else is busy;
engaging and releasing the e-stop have threads, and in them database connections, that
they share with nothing.
"""

from __future__ import annotations

import asyncio
import functools
import io
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from models.kernel import ids
from models.kernel.session import RESERVED_CONNECTIONS, use_reserved_connections
from orchestrator_web.exchanges import BODY
from orchestrator_web.json import dumps
from orchestrator_web.metrics import REQUESTS
from orchestrator_web.parsing import larger_bodies
from orchestrator_web.pools import Pool
from orchestrator_web.problems import PROBLEM_JSON, members_of

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

HANDSHAKE = "orchestrator.handshake"
HANDOVER = "orchestrator.handover"
BODY_SECONDS = 30.0
RESERVED_THREADS = 2
RESERVED_PATHS = frozenset({"/healthz", "/readyz"})
ESTOP_ACTS = frozenset({("POST", "/estop"), ("DELETE", "/estop")})  # reading it goes the common way
MOST_WAITING_PER_THREAD = 64
MOST_LARGE_PER_THREAD = 2


@dataclass
class Answer:
    """A whole response."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    handover: Any = None
    """What the view left in the environ's HANDOVER: the work that goes on outside Flask."""

    def header(self, name: str) -> str | None:
        """A header's value."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def take_header(self, name: str) -> str | None:
        """A header's value, removed from the response."""
        for index, (key, value) in enumerate(self.headers):
            if key.lower() == name.lower():
                del self.headers[index]
                return value
        return None

    async def send(self, send: Send) -> None:
        headers = [(sent_name(key), value.encode("latin-1")) for key, value in self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


@functools.lru_cache(256)
def sent_name(name: str) -> bytes:
    """How a header of ours is called on the wire."""
    return name.lower().encode("latin-1")


class Disconnected(Exception):
    """The client left before its request was whole."""


def plain_problem(scope: Scope, status: int, code: str, detail: str, *headers: tuple[str, str]) -> Answer:
    """A problem that is answered without Flask: as whole, logged and counted as any other."""
    offered = next((value for key, value in scope["headers"] if key == b"x-correlation-id"), b"")
    correlation_id = ids.correlation_id(offered.decode("latin-1"))
    body = dumps(members_of(status, code, detail, instance=scope["path"], correlation_id=correlation_id))
    log.warning("refused without Flask", extra={"status": status, "code": code, "correlation_id": correlation_id})
    REQUESTS.labels("none", "none", str(status)).observe(0.0)
    own = [
        ("Content-Type", PROBLEM_JSON),
        ("Content-Length", str(len(body))),
        ("X-Correlation-Id", correlation_id),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
    ]
    return Answer(status, [*own, *headers], body)


def overloaded(scope: Scope) -> Answer:
    return plain_problem(scope, 503, "overloaded", "Too many requests wait", ("retry-after", "1"))


class Allowance:
    """How large one body may become: beyond the common size only while few others of this process are as large."""

    def __init__(self, bridge: Bridge, scope: Scope) -> None:
        self.bridge = bridge
        self.scope = scope
        self.largest = bridge.larger_bodies.get(scope["path"], bridge.largest_body)
        self.is_large = False

    def refusal(self, size: int) -> Answer | None:
        """Why a body may not have this size; the rest of it is not read."""
        closing = ("connection", "close")
        if size > self.largest:
            detail = f"The body is larger than {self.largest} bytes"
            return plain_problem(self.scope, 413, "body_too_large", detail, closing)
        if size > self.bridge.largest_body and not self.is_large:
            if self.bridge.large >= self.bridge.most_large:
                why = "Too many large bodies are being read"
                return plain_problem(self.scope, 503, "overloaded", why, ("retry-after", "1"), closing)
            self.bridge.large += 1
            self.is_large = True
        return None

    def let_go(self) -> None:
        self.bridge.large -= self.is_large


class Bridge:
    """Calls a WSGI application from the event loop."""

    def __init__(self, app: Wsgi, threads: int, largest_body: int) -> None:
        self.app = app
        self.largest_body = largest_body
        self.larger_bodies = larger_bodies()
        self.most_large = threads * MOST_LARGE_PER_THREAD
        self.large = 0
        self.common = Pool(threads, "request")
        self.reserved = Pool(RESERVED_THREADS, "reserved")
        # as many threads as there are such connections, so that none waits for one
        self.estop = Pool(RESERVED_CONNECTIONS, "estop", use_reserved_connections)
        self.most_waiting = threads * MOST_WAITING_PER_THREAD
        self.present = 0
        self.most_acts = RESERVED_CONNECTIONS * MOST_WAITING_PER_THREAD
        self.acts = 0

    async def __call__(self, scope: Scope, receive: Receive) -> Answer:
        """The application's answer to one request. Raises Disconnected."""
        allowance = Allowance(self, scope)
        try:
            body = await self.read_in_time(scope, receive, allowance)
            return body if isinstance(body, Answer) else await self.answer_to(scope, body)
        finally:
            allowance.let_go()

    async def read_in_time(self, scope: Scope, receive: Receive, allowance: Allowance) -> bytes | Answer:
        """The body, or why there is none."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self.read_body(scope, receive, allowance)
        except TimeoutError:
            return plain_problem(scope, 408, "body_too_slow", "The body did not arrive in time")

    async def answer_to(self, scope: Scope, body: bytes) -> Answer:
        if scope["path"] in RESERVED_PATHS:
            return await self.call(self.reserved, scope, body)
        if (scope["method"], scope["path"]) in ESTOP_ACTS:
            return await self.stop_or_release(scope, body)
        if self.present >= self.most_waiting:
            return overloaded(scope)
        self.present += 1
        try:
            return await self.call(self.common, scope, body)
        finally:
            self.present -= 1

    async def stop_or_release(self, scope: Scope, body: bytes) -> Answer:
        if self.acts >= self.most_acts:
            return overloaded(scope)
        self.acts += 1
        try:
            return await self.call(self.estop, scope, body)
        finally:
            self.acts -= 1

    async def read_body(self, scope: Scope, receive: Receive, allowance: Allowance) -> bytes | Answer:
        """The body, or the refusal as soon as it is known to be larger than allowed."""
        named = next((value for key, value in scope["headers"] if key == b"content-length"), b"0")
        refusal = allowance.refusal(int(named) if named.isdigit() else 0)
        parts: list[bytes] = []
        size = 0
        while refusal is None:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            refusal = allowance.refusal(size)
            if refusal is None and not message.get("more_body", False):
                return b"".join(parts)
        return refusal

    async def call(self, pool: Pool, scope: Scope, body: bytes) -> Answer:
        return await pool.run(self.answer, environ_of(scope, body))

    def answer(self, environ: dict[str, Any]) -> Answer:
        """Run the application to its end; in one of the pool's threads."""
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], _exc: Any = None) -> Any:
            started[:] = [int(status[:3]), list(headers)]
            return None

        parts = self.app(environ, start_response)
        try:
            body = b"".join(parts)
        finally:
            close = getattr(parts, "close", None)
            if close is not None:
                close()
        return Answer(started[0], started[1], body, environ.get(HANDOVER))


def environ_of(scope: Scope, body: bytes) -> dict[str, Any]:
    """The WSGI environ (PEP 3333) of an ASGI scope."""
    host, port = scope.get("server") or ("127.0.0.1", 80)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"].encode("utf-8").decode("latin-1"),
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_NAME": str(host),
        "SERVER_PORT": str(port or 0),
        "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
        "REMOTE_ADDR": (scope.get("client") or ("", 0))[0],
        HANDSHAKE: scope["type"] == "websocket",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        BODY: body,
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for key, value in scope["headers"]:
        add_header(environ, key, value.decode("latin-1"))
    environ["CONTENT_LENGTH"] = str(len(body))
    return environ


def add_header(environ: dict[str, Any], key: bytes, value: str) -> None:
    """Headers that WSGI could confuse (an underscore for a dash) are dropped; repeated ones are joined."""
    name = header_name(key)
    if name:
        environ[name] = f"{environ[name]},{value}" if name in environ else value


@functools.lru_cache(256)
def header_name(key: bytes) -> str:
    """What WSGI calls a header; empty for one that it could confuse with another."""
    if b"_" in key:
        return ""
    name = key.decode("latin-1").upper().replace("-", "_")
    return name if name in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{name}"
