"""The application as the server sees it: Flask behind the bridge, waits beside it, one port for all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import MutableMapping
from typing import Any

from granian.utils.proxies import wrap_asgi_with_proxy_headers

from models.engine.states import RUN
from models.kernel import clock, logs
from models.kernel.errors import TooMany, Unavailable
from models.kernel.processes import Presence
from models.kernel.settings import settings
from models.tickets.states import TICKET
from orchestrator_web.app import create_app
from orchestrator_web.bridge import Answer, Bridge, Disconnected, Receive, Scope, Send, plain_problem
from orchestrator_web.connections import PEER, remembering_peer
from orchestrator_web.engine.streams import render_output
from orchestrator_web.feed import by_kind
from orchestrator_web.headers import Guarded
from orchestrator_web.idempotency import REPLAYED
from orchestrator_web.outcomes import HEADER, LET_GO, Outcomes
from orchestrator_web.problems import status_of
from orchestrator_web.streams import Streams
from orchestrator_web.tickets.streams import read_outcomes, render_event, render_outcome
from orchestrator_web.transports import Refusing, ServerSent, WebSocket

log = logging.getLogger(__name__)

FAILURES = 400
WAIT_MARGIN_SECONDS = 60.0  # for the lease of a worker that falls silent to run out and be reaped


class Application:
    """One web process."""

    def __init__(self) -> None:
        chosen = settings()
        self.bridge = Bridge(create_app(), chosen.web_threads, chosen.max_body_bytes)
        self.outcomes: Outcomes | None = None
        self.streams: Streams | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            handshake = {**scope, "method": "GET", "scheme": scope.get("scheme", "ws").replace("ws", "http")}
            # Werkzeug would route what asks for an upgrade to routes of another sort.
            handshake["headers"] = [header for header in scope["headers"] if header[0] != b"upgrade"]
            await self.serve(handshake, no_body, Refusing(send), WebSocket, receive)
        else:
            await self.serve(scope, receive, send, ServerSent, receive)

    async def live(self, receive: Receive, send: Send) -> None:
        """Start with the server, stop with it."""
        await receive()
        presence = Presence("web").start()
        self.outcomes = Outcomes(read_outcomes)
        self.outcomes.start()
        self.streams = Streams(by_kind({TICKET.kind: render_event, RUN.kind: render_output}))
        asyncio.get_running_loop().add_signal_handler(LET_GO, self.let_go)
        await send({"type": "lifespan.startup.complete"})
        while (await receive())["type"] != "lifespan.shutdown":
            pass
        await self.streams.stop()
        await self.outcomes.stop()
        await asyncio.to_thread(presence.stop)
        await send({"type": "lifespan.shutdown.complete"})

    def let_go(self) -> None:
        """The server is about to stop: tell whoever waits or listens what is known."""
        if self.outcomes is not None and self.streams is not None:
            self.outcomes.over.set()
            self.streams.end_all()

    async def serve(
        self, scope: Scope, receive: Receive, send: Send, transport: type[ServerSent | WebSocket], events: Receive
    ) -> None:
        """Answer one request, or stream what it asks for. `events` says what the client does meanwhile."""
        with contextlib.suppress(Disconnected):
            try:
                answer = await self.bridge(scope, receive)
                awaited = answer.take_header(HEADER)
                if awaited is not None:
                    answer = await self.wait(answer, awaited, receive)
                if answer.handover is not None and self.streams is not None:
                    await self.streams.serve(answer.handover, transport(answer.headers, events, send, scope.get(PEER)))
                    return
                if scope["type"] == "websocket" and answer.status < FAILURES:
                    answer = plain_problem(scope, 404, "not_found", "There is no WebSocket here")
            except Disconnected:
                raise
            except (TooMany, Unavailable) as error:
                later = ("retry-after", str(math.ceil(error.retry_after)))
                answer = plain_problem(scope, status_of(error), error.code, error.message, later)
            except Exception:
                log.exception("a request failed outside Flask")
                answer = plain_problem(scope, 500, "internal", "Something went wrong")
            await answer.send(send)

    async def wait(self, accepted: Answer, awaited: str, receive: Receive) -> Answer:
        """The outcome of an accepted execution; the acceptance itself if it takes too long. Raises Disconnected."""
        if self.outcomes is None:
            return accepted
        ticket_id, execution, seconds = awaited.split(" ")
        began = clock.monotonic()
        if accepted.header(REPLAYED):
            self.outcomes.hear(ticket_id)  # it may have ended long ago, and no hint comes twice
        waiting = asyncio.create_task(
            self.outcomes.wait((ticket_id, int(execution)), float(seconds) + WAIT_MARGIN_SECONDS)
        )
        gone = asyncio.create_task(disconnection(receive))
        try:
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise Disconnected
            outcome = waiting.result()
        finally:
            waiting.cancel()
            gone.cancel()
        if outcome is None:
            return accepted
        facts = {"correlation_id": accepted.header("X-Correlation-Id"), "ticket_id": ticket_id, "status": 200}
        log.info("answered with the outcome", extra={**facts, "ms": round((clock.monotonic() - began) * 1000, 2)})
        body = render_outcome(outcome)
        kept = [(k, v) for k, v in accepted.headers if k.lower() not in {"content-length", "location"}]
        return Answer(200, [*kept, ("Content-Length", str(len(body)))], body)


async def no_body() -> MutableMapping[str, Any]:
    return {"type": "http.request", "body": b""}


async def disconnection(receive: Receive) -> None:
    message: MutableMapping[str, Any] = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


def create_asgi() -> Any:
    """The whole: trusted proxies say who calls, every answer carries its headers."""
    chosen = settings()
    whole: Any = Guarded(Application(), chosen)
    if chosen.trusted_proxies:
        whole = wrap_asgi_with_proxy_headers(whole, sorted(chosen.trusted_proxies))
    return remembering_peer(whole)


logs.configure("web")
app = create_asgi()
