"""The subscription: raw market events from a Redis stream into the log, each acknowledged once it is appended.

Any number may run, as consumers of one group. An entry is acknowledged after the commit, so that it may
come twice and never not at all; one that is no event goes to the stream `<stream>:refused` with the reason. While
the buffer is full, the engine stopped or the database away, nothing new is read: the stream grows, which its
sender sees. What was appended is deleted from the stream, unless another group reads it too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import threading
from collections.abc import Iterator
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry as NoRetry

from models.engine.config import REFUSED, Config, Retry
from models.engine.contract import Received, check_event
from models.engine.control import get_config, pause_ingestion, resume_ingestion
from models.engine.delays import retry_delays
from models.engine.inputs import append_events, tell_batch, tell_failure
from models.engine.queries import get_status
from models.engine.states import STOPPED
from models.kernel import clock
from models.kernel.errors import Invalid, OrchestratorError, Unavailable
from models.kernel.hints import redis_url
from models.kernel.once import once
from models.kernel.session import statement, transaction
from models.kernel.settings import settings

log = logging.getLogger(__name__)

BATCH = 500
BLOCK_MS = 1000
LOOK_SECONDS = 0.5
CLAIM_SECONDS = 10.0
CLAIM_IDLE_MS = 30_000
FORGET_IDLE_MS = 3_600_000
ANSWER_SECONDS = 5.0
MS_IN_SECOND = 1000.0
FIELD = b"event"
MOST_REFUSED = 10_000  # enough to see what is wrong with a sender, and never all of the broker's memory
FORGET = """
if #redis.call('XINFO', 'GROUPS', KEYS[1]) == 1 then return redis.call('XDEL', KEYS[1], unpack(ARGV)) end
"""
"""Deletes entries unless another group is there at that very moment: one that was just made has yet to read them."""

Entry = tuple[bytes, dict[bytes, bytes]]


@once
def client() -> redis.Redis:
    """This process's client for the subscription; no call waits for longer than ANSWER_SECONDS, none is repeated."""
    url = redis_url(settings().broker_url)
    retry = NoRetry(NoBackoff(), 0)
    return redis.Redis.from_url(url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=1.0, retry=retry)


class Subscription:
    """The consumer of one process."""

    def __init__(self, consumer: str = "") -> None:
        self.consumer = consumer or f"{platform.node()}-{os.getpid()}"
        self.over = threading.Event()
        self.config: Config | None = None
        self.next_look = self.next_claim = 0.0
        self.joined = "", ""  # the stream and the group that it reads as
        self.owes = True  # entries may be ours that are not acknowledged
        self.appended: set[bytes] = set()  # in the log, and perhaps not acknowledged
        self.count = self.read_last = BATCH
        self.failures = 0
        self.paused: bool | None = None

    def run(self) -> None:
        """Read until `stop`."""
        while not self.over.is_set():
            self.over.wait(self.attempt())

    def stop(self) -> None:
        """End within about a second."""
        self.over.set()

    def attempt(self) -> float:
        """One pass; answers how many seconds to wait for the next."""
        try:
            if clock.monotonic() >= self.next_look:
                self.look()
            if self.config is None:
                return LOOK_SECONDS
            reads = bool(self.config.subscription.stream)
            if reads:
                self.step(self.config)
            self.succeed()
            return 0.0 if reads else LOOK_SECONDS
        except redis.RedisError as error:
            return self.lose_stream(error)
        except Unavailable as error:
            return self.fail("buffer", error, self.config.buffer_retry if self.config else Retry())
        except Exception:
            log.exception("a pass of the subscription failed in a way it should not")
            return LOOK_SECONDS

    def look(self) -> None:
        """From which stream to read; from none while the engine is stopped."""
        with statement() as connection:
            found = get_config(connection)
            stopped = get_status(connection)["state"] == STOPPED
        self.config = found[1] if found and not stopped else None
        self.next_look = clock.monotonic() + LOOK_SECONDS

    def step(self, config: Config) -> None:
        stream, group = config.subscription.stream, config.subscription.group
        if self.joined != (stream, group):
            self.join(stream, group)
        entries = self.read(stream, group)
        if entries:
            more = self.owes
            self.owes, self.read_last = True, len(entries)
            self.look()  # while it waited for them another configuration may have been accepted, or the engine stopped
            if self.config is not None:
                self.append(self.config, entries)
                self.owes = more

    def join(self, stream: str, group: str) -> None:
        """Make the group, which reads the stream from its beginning, unless it is there."""
        try:
            client().xgroup_create(stream, group, id="0", mkstream=True)
            log.info("the group of the subscription was made", extra={"stream": stream, "group": group})
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        self.joined, self.owes, self.next_claim = (stream, group), True, 0.0

    def read(self, stream: str, group: str) -> list[Entry]:
        """The next entries: our own that failed before, then those of the dead, then new ones."""
        if self.owes and (own := self.read_own(stream, group)):
            return own
        self.owes = False
        if clock.monotonic() >= self.next_claim:
            if claimed := self.claim(stream, group):
                return claimed
            self.next_claim = clock.monotonic() + CLAIM_SECONDS
        found: Any = client().xreadgroup(group, self.consumer, {stream: ">"}, count=self.count, block=BLOCK_MS)
        return found[0][1] if found else []

    def read_own(self, stream: str, group: str) -> list[Entry]:
        """Entries that were delivered to us; claimed anew, so that nobody else takes them for those of a dead one."""
        pending: Any = client().xpending_range(stream, group, "-", "+", self.count, self.consumer)
        if not pending:
            return []
        ids = [each["message_id"] for each in pending]
        found: Any = client().xclaim(stream, group, self.consumer, 0, ids)
        tell_deleted(stream, set(ids) - {entry for entry, _ in found})
        return found or self.read_own(stream, group)

    def claim(self, stream: str, group: str) -> list[Entry]:
        """Entries of consumers that are silent; those that are and hold none are forgotten."""
        for other in client().xinfo_consumers(stream, group):
            if not other["pending"] and other["idle"] > FORGET_IDLE_MS:
                client().xgroup_delconsumer(stream, group, other["name"])
        found: Any = client().xautoclaim(stream, group, self.consumer, CLAIM_IDLE_MS, count=self.count)
        tell_deleted(stream, set(found[2]) if len(found) > 2 else set())  # noqa: PLR2004 - since Redis 7
        return found[1]

    def append(self, config: Config, entries: list[Entry]) -> None:
        """Have the events in the log, then acknowledge. Raises Unavailable with nothing appended, or RedisError."""
        received, refused = checked(config, [entry for entry in entries if entry[0] not in self.appended])
        if received:
            room = config.buffer_retention.max_records
            with transaction() as connection:
                appended = append_events(connection, list(received.values()), max_records=room)
            self.appended |= received.keys()
            tell_batch(list(received.values()), appended)
        self.acknowledge([entry for entry, _ in entries], refused)
        self.appended.clear()

    def acknowledge(self, ids: list[bytes], refused: list[Entry]) -> None:
        stream, group = self.joined
        pipeline = client().pipeline(transaction=True)
        for _, fields in refused:
            pipeline.xadd(stream + REFUSED, fields, maxlen=MOST_REFUSED)  # type: ignore[arg-type]
        pipeline.xack(stream, group, *ids)
        pipeline.eval(FORGET, 1, stream, *ids)
        pipeline.execute()

    def succeed(self) -> None:
        if self.paused is not False:
            with transaction() as connection:
                resume_ingestion(connection, "events are appended again")
        self.failures, self.count, self.paused = 0, BATCH, False

    def lose_stream(self, error: redis.RedisError) -> float:
        if str(error).startswith("NOGROUP"):
            log.warning("the group of the subscription is gone", extra={"error": str(error)})
            self.joined = "", ""
            return 0.0
        self.owes = True  # an answer that was lost may have brought entries
        why = Unavailable(f"The stream cannot be read: {error}", code="stream_unavailable")
        return self.fail("ingest", why, self.config.ingestion_retry if self.config else Retry())

    def fail(self, domain: str, error: Unavailable, policy: Retry) -> float:
        """Tell what went wrong; answers after how many seconds to try again.

        Once the policy's retries are used up the status says that ingestion is paused, and its last delay is kept to.
        """
        tell_failure(domain, error)
        self.failures += 1
        self.count = max(1, self.read_last // 2)  # a part of it may find room
        delays = retry_delays(policy)
        if self.failures >= len(delays) and not self.paused:
            with contextlib.suppress(OrchestratorError), transaction() as connection:
                pause_ingestion(connection, error.message)
                self.paused = True
        return delays[min(self.failures, len(delays)) - 1] / MS_IN_SECOND


def checked(config: Config, entries: list[Entry]) -> tuple[dict[bytes, Received], list[Entry]]:
    """The events of these entries, and what is to be kept of those that are none."""
    received: dict[bytes, Received] = {}
    refused: list[Entry] = []
    sources, alignment_ms = config.symbols_by_source, config.engine.alignment_ms
    for entry, fields in entries:
        try:
            if FIELD not in fields:
                raise Invalid("The entry has no field `event`", code="invalid_event")
            received[entry] = check_event(fields[FIELD], sources, alignment_ms)
        except Invalid as error:
            tell_failure("ingest", error)
            refused.append((entry, {**fields, **dict(reasons(entry, error))}))
    return received, refused


def reasons(entry: bytes, error: Invalid) -> Iterator[tuple[bytes, bytes]]:
    yield b"refused_id", entry
    yield b"refused_code", error.code.encode()
    yield b"refused_reason", error.message.encode()


def tell_deleted(stream: str, ids: set[bytes]) -> None:
    """Somebody deleted entries from the stream, or it was trimmed, before they were in the log."""
    if ids:
        why = f"{len(ids)} entries were deleted from {stream} before they were appended: {sorted(ids)[:10]}"
        tell_failure("ingest", OrchestratorError(why, code="entries_deleted"))
