"""The event streams of a process: what each still has to be told, and when it ends.

Flask decides whether a stream may begin and hands an `Opening` over; from then on the
stream lives on the event loop. It reads the past in pages up to the process's place in
the ledger, listens from there, and is cut off with a problem when it is too slow, when
its credential no longer holds, when its past is gone, or when the process stops.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.kernel import clock
from models.kernel.errors import Forbidden, OrchestratorError, TooMany, Unauthenticated, Unavailable
from models.kernel.feed import Selection
from models.kernel.settings import settings
from orchestrator_web.connections import Peer, count_received, drop_connection
from orchestrator_web.cursors import write_event_cursor
from orchestrator_web.feed import LONGEST_BACKOFF, Event, Feed, Render
from orchestrator_web.problems import members_of, status_of
from orchestrator_web.transports import RETRY_MS, SEND_SECONDS, Transport

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
LAST_WORD_SECONDS = 20.0
RECHECK_SECONDS = 1.0
"""With the three seconds for which a proof is remembered, a revocation ends a stream within five."""

MOST_RECEIVED = 65_536
MOST_RECEIVED_A_SECOND = 256
"""What a client may send on a WebSocket whose messages nobody reads: its pings, and a little more."""

BATCH = 100
NEAR = 200


@dataclass(frozen=True)
class Opening:
    """A stream that may begin: what it tells, and from where on (None: from now).

    `check` raises Unauthenticated or Forbidden once the stream may not go on; it may block.
    """

    stream: str
    selection: Selection
    after: int | None
    client: str
    credential: str | None
    check: Callable[[], None]
    correlation_id: str
    path: str


class Stream:
    """One open stream: what waits to be sent, and why it ends."""

    def __init__(self, opening: Opening, buffer: int) -> None:
        self.opening = opening
        self.selection = opening.selection
        self.buffer = buffer
        self.after = 0
        self.waiting: collections.deque[Event] = collections.deque()
        self.bell = asyncio.Event()
        self.problem: dict[str, Any] | None = None
        self.left = False
        self.began = clock.monotonic()
        self.collecting: Peer | None = None
        """The client, when what it sends is collected in memory."""

    @property
    def goes_on(self) -> bool:
        return self.problem is None and not self.left

    @property
    def is_behind(self) -> bool:
        return bool(self.waiting)

    def cursor(self, seq: int) -> str:
        return write_event_cursor(self.opening.stream, seq)

    def offer(self, event: Event) -> None:
        """Take an event to send; a stream that is too far behind is cut off and its backlog let go."""
        if event.seq <= self.after or not self.goes_on:
            return
        if len(self.waiting) >= self.buffer:
            self.cut(408, "reader_too_slow", f"More than {self.buffer} events behind; resume from the last one read")
            return
        self.waiting.append(event)
        self.bell.set()

    def cut(self, status: int, code: str, detail: str, **members: Any) -> None:
        """End the stream with a problem; the first one counts."""
        if self.problem is None:
            here = {"instance": self.opening.path, "correlation_id": self.opening.correlation_id}
            self.problem = members_of(status, code, detail, **here, **members)
        self.waiting.clear()
        self.bell.set()

    def leave(self) -> None:
        """The client is gone."""
        self.left = True
        self.waiting.clear()
        self.bell.set()

    def take(self) -> list[Event]:
        """The next events to send, in order."""
        return [self.waiting.popleft() for _ in range(min(BATCH, len(self.waiting)))]


class Streams:
    """The open streams of this process."""

    def __init__(self, render: Render) -> None:
        chosen = settings()
        self.buffer = chosen.stream_buffer
        self.most, self.share = chosen.stream_readers, chosen.stream_readers_per_client
        self.feed = Feed(render, self.buffer)
        self.open: set[Stream] = set()
        self.watch: asyncio.Task[None] | None = None
        self.over = False

    async def serve(self, opening: Opening, transport: Transport) -> None:
        """One stream, from its beginning to its end.

        Raises Unavailable or TooMany, before anything is sent, when it cannot be.
        """
        self.check_room(opening.client)
        stream = Stream(opening, self.buffer)
        stream.collecting = transport.peer if transport.collects else None
        self.open.add(stream)
        leaving = asyncio.create_task(notice_departure(stream, transport))
        self.keep_watch()
        try:
            with self.feed.held():
                position = await self.feed.find_position()
                stream.after = position if opening.after is None else opening.after
                await self.tell(stream, transport)
        finally:
            leaving.cancel()
            self.open.discard(stream)
            self.feed.listeners.discard(stream)

    def check_room(self, client: str) -> None:
        """Raises Unavailable when no stream may begin here now, TooMany when none of this client may."""
        if self.over:
            raise Unavailable("The service stops", code="going_away")
        if len(self.open) >= self.most:
            raise Unavailable("Too many event streams are open", code="too_many_streams", retry_after=5.0)
        if sum(stream.opening.client == client for stream in self.open) >= self.share:
            text = f"{self.share} event streams of this client are open"
            raise TooMany(text, code="too_many_streams_of_client", retry_after=5.0)

    async def tell(self, stream: Stream, transport: Transport) -> None:
        ending = "client_left"
        try:
            await transport.open(stream.cursor(stream.after))
            await self.tell_past(stream, transport)
            await self.tell_present(stream, transport)
        except TimeoutError:
            stream.cut(408, "reader_too_slow", f"No data was taken for {SEND_SECONDS:g} s; resume from the last event")
        except OrchestratorError as error:
            stream.cut(status_of(error), error.code, error.message)
        if not stream.left and stream.problem is not None:
            ending = stream.problem["code"]
            await self.say_last_word(stream.problem, transport)
        facts = {"correlation_id": stream.opening.correlation_id, "seconds": round(clock.monotonic() - stream.began, 3)}
        log.info("a stream ended", extra={"code": ending, "path": stream.opening.path, **facts})

    async def say_last_word(self, problem: dict[str, Any], transport: Transport) -> None:
        """Give the client time to hear why; who does not take it is dropped, lest its stream seem to end well."""
        floods = problem["code"] == "too_much_received"
        try:
            async with asyncio.timeout(SEND_SECONDS / 10 if floods else LAST_WORD_SECONDS):
                await transport.end(problem)
        except (TimeoutError, RuntimeError):  # the latter is the server's, of a WebSocket that has just gone
            floods = True
        if floods and transport.peer is not None:
            await self.feed.ask(drop_connection, transport.peer)

    async def tell_past(self, stream: Stream, transport: Transport) -> None:
        """What lies between the cursor and the present. Afterwards the stream listens, and nothing fell between.

        The long way is gone without listening, so that nothing piles up; the last page while listening.
        """
        after = stream.after
        while stream.goes_on and after < self.feed.now() - NEAR:
            after = await self.tell_page(stream, transport, after, self.feed.now())
        upto = self.feed.now()
        stream.after = max(after, upto)
        self.feed.listeners.add(stream)
        while stream.goes_on and after < upto:
            after = await self.tell_page(stream, transport, after, upto)

    async def tell_page(self, stream: Stream, transport: Transport, after: int, upto: int) -> int:
        """One page of the past; answers the seq up to which everything was told. A database away is waited for."""
        try:
            events, reached = await self.feed.list_past(stream.selection, after, upto)
        except Unavailable:
            await asyncio.sleep(LONGEST_BACKOFF)
            return after
        if events and stream.goes_on:
            await transport.tell(events)
        return reached

    async def tell_present(self, stream: Stream, transport: Transport) -> None:
        while stream.goes_on:
            if stream.waiting:
                await transport.tell(stream.take())
                continue
            stream.bell.clear()
            if not await rings(stream.bell, HEARTBEAT_SECONDS):
                # nothing waits, so everything up to here was told: a quiet reader's cursor stays young
                await transport.beat(stream.cursor(max(stream.after, self.feed.now())))

    def keep_watch(self) -> None:
        if self.watch is None or self.watch.done():
            self.watch = asyncio.create_task(self.recheck())

    async def recheck(self) -> None:
        """While streams are open, ask again and again whether their credentials still hold."""
        while self.open:
            await asyncio.sleep(RECHECK_SECONDS)
            checks = {stream.opening.credential: stream.opening.check for stream in self.open}
            for credential, error in (await self.feed.ask(refusals, checks)).items():
                for stream in [one for one in self.open if one.opening.credential == credential]:
                    stream.cut(status_of(error), error.code, error.message)
            await self.stop_floods()

    async def stop_floods(self) -> None:
        """End the WebSockets whose clients have sent more than there is to say."""
        peers = {stream.collecting: stream for stream in self.open if stream.collecting is not None}
        received = await self.feed.ask(count_received, set(peers)) if peers else {}
        for peer, count in received.items():
            if count > MOST_RECEIVED + MOST_RECEIVED_A_SECOND * (clock.monotonic() - peers[peer].began):
                peers[peer].cut(413, "too_much_received", "A client of this WebSocket has nothing to send")

    def end_all(self) -> None:
        """The process stops: every stream ends now, and its client comes back to another."""
        self.over = True
        for stream in self.open:
            stream.cut(503, "going_away", "The service stops; resume", retriable=True, retry_after_ms=RETRY_MS)

    async def stop(self) -> None:
        self.end_all()
        if self.watch is not None:
            self.watch.cancel()
            await asyncio.gather(self.watch, return_exceptions=True)
        await self.feed.stop()


def refusals(checks: Mapping[str | None, Callable[[], None]]) -> dict[str | None, OrchestratorError]:
    """The credentials that no longer hold, and why. What cannot be asked now is asked again."""
    refused: dict[str | None, OrchestratorError] = {}
    for credential, check in checks.items():
        try:
            check()
        except (Unauthenticated, Forbidden) as error:
            refused[credential] = error
        except Exception:  # the streams of every other credential hang on this one too
            log.warning("a stream's credential cannot be checked now", exc_info=True)
    return refused


async def notice_departure(stream: Stream, transport: Transport) -> None:
    await transport.departure()
    stream.leave()


async def rings(bell: asyncio.Event, seconds: float) -> bool:
    """Whether the bell rang within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            return await bell.wait()
    except TimeoutError:
        return False
