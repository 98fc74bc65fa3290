"""Pushes the engine's outputs to a Redis stream, in the order of the ledger, at least once, and none is left out.

Any number may run: whoever holds the position's row publishes. The position moves once
Redis has taken a batch, so that a batch may come twice and never not at all. Redis that
takes nothing for too long, or outputs that pile up, pause the planning of runs; it goes
on by itself once they are gone. What Redis forgets is still read with GET /engine/outputs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from models.engine import publications
from models.engine.config import Config, OutputPublish
from models.engine.control import degrade_engine, get_config, recover_engine
from models.engine.delays import retry_delays
from models.engine.inputs import tell_failure
from models.engine.publications import count_pending, find_publication
from models.engine.queries import get_status
from models.engine.tables import PUBLISH_FAILURE
from models.kernel import clock
from models.kernel.errors import OrchestratorError, Unavailable
from models.kernel.hints import redis_url
from models.kernel.once import once
from models.kernel.session import statement, transaction
from models.kernel.settings import settings

log = logging.getLogger("orchestrator.publish")

BATCH = 200
PACE_SECONDS = 0.1
LOOK_SECONDS = 0.5
SEND_SECONDS = 5.0
MS_IN_SECOND = 1000.0


@once
def client() -> redis.Redis:
    """This process's client for streams; no call waits for longer than SEND_SECONDS, and none is repeated by itself."""
    url = redis_url(settings().broker_url)
    retry = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(url, socket_timeout=SEND_SECONDS, socket_connect_timeout=1.0, retry=retry)


def send(events: Sequence[Mapping[str, Any]], chosen: OutputPublish) -> None:
    """Have the stream take these outputs, all or none. Raises Unavailable."""
    try:
        pipeline = client().pipeline(transaction=True)
        for row in events:
            fields = {name: row[name] for name in ("event", "event_type", "symbol", "run_id", "seq")}
            pipeline.xadd(chosen.stream, fields, maxlen=chosen.stream_max_len, approximate=True)
        pipeline.execute()
    except redis.RedisError as error:
        why = f"The stream {chosen.stream} takes no outputs: {error}"
        raise Unavailable(why, code=PUBLISH_FAILURE) from error


def publish_next(chosen: OutputPublish) -> bool | None:
    """Push the next outputs; whether more wait, or None when another publisher is at it. Raises Unavailable."""
    with statement() as connection:
        if not publications.is_due(connection):
            return False
        upto = publications.find_decided(connection)
    with transaction() as connection:
        after = publications.hold_publication(connection)
        if after is None:
            return None
        events, reached = publications.list_outputs(connection, {}, after=after, upto=upto, limit=BATCH)
        if events:
            send(events, chosen)
        if reached > after:
            publications.move_publication(connection, reached, [row["seq"] for row in events])
    if events:
        log.debug("outputs published", extra={"events": len(events), "last_seq": reached, "stream": chosen.stream})
    return reached < upto


class Publisher:
    """The publisher of one process."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.config: Config | None = None
        self.next_look = 0.0
        self.failures = 0
        self.failing_since = 0.0

    def run(self) -> None:
        while not self.over.is_set():
            self.over.wait(self.attempt())

    def stop(self) -> None:
        self.over.set()

    def attempt(self) -> float:
        """One pass; answers how many seconds to wait for the next."""
        try:
            self.find_config()
            if clock.monotonic() >= self.next_look:
                self.look()
            if self.config is None or not self.config.output_publish.stream:
                return LOOK_SECONDS
            return self.step(self.config)
        except OrchestratorError as error:
            log.warning("outputs cannot be published now", extra={"error": error.message, "code": error.code})
        except Exception:
            log.exception("a pass of the publisher failed in a way it should not")
        return LOOK_SECONDS

    def find_config(self) -> None:
        """In each pass: what is accepted holds for the next output."""
        with statement() as connection:
            found = get_config(connection)
        self.config = found[1] if found else None

    def look(self) -> None:
        """Whether runs may be planned."""
        if self.config is not None:
            watch(self.config, self.failing_ms())
        self.next_look = clock.monotonic() + LOOK_SECONDS

    def step(self, config: Config) -> float:
        try:
            more = publish_next(config.output_publish)
        except Unavailable as error:
            if error.code != PUBLISH_FAILURE:
                raise
            return self.fail(config, error)
        if more is not None:
            self.failures = 0
        return 0.0 if more else PACE_SECONDS

    def fail(self, config: Config, error: Unavailable) -> float:
        """Note what went wrong; answers after how many seconds to try again."""
        tell_failure("publish", error)
        if not self.failures:
            self.failing_since = clock.monotonic()
        self.failures += 1
        with statement() as connection:
            publications.record_failure(connection, error.message)
        watch(config, self.failing_ms())
        delays = retry_delays(config.publish_retry)
        return delays[min(self.failures, len(delays)) - 1] / MS_IN_SECOND

    def failing_ms(self) -> float:
        """For how long the stream has taken nothing; 0 while it does."""
        return (clock.monotonic() - self.failing_since) * MS_IN_SECOND if self.failures else 0.0


def watch_outputs() -> None:
    """Look for whoever publishes nothing itself: outputs pile up, too, while no publisher runs."""
    with statement() as connection:
        found = get_config(connection)
    if found is not None:
        watch(found[1])


def watch(config: Config, failing_ms: float = 0.0) -> None:
    """Pause the planning of runs when publishing lags too far behind, and let it go on when it no longer does."""
    with transaction() as connection:
        paused = get_status(connection)["scheduling_paused"]
        why = find_reason(connection, config, paused, failing_ms)
        if why and not paused:
            degrade_engine(connection, why)
        elif paused and not why and not is_failing(connection, config):
            recover_engine(connection, "outputs are published again")


def find_reason(connection: Any, config: Config, paused: bool, failing_ms: float) -> str | None:
    """Why runs must not be planned now. Once they are not, half of the outputs must be gone until they are."""
    chosen = config.output_publish
    if not chosen.stream:
        return None
    most = chosen.max_pending // 2 if paused else chosen.max_pending
    if count_pending(connection, most + 1) > most:
        return f"more than {most} outputs wait to be published to {chosen.stream}"
    if failing_ms and failing_ms >= longest_block_ms(config):
        return f"{chosen.stream} has taken no outputs for {failing_ms:.0f} ms"
    return None


def is_failing(connection: Any, config: Config) -> bool:
    """Whether the last publisher that tried, here or elsewhere, was refused."""
    publication = find_publication(connection)
    return bool(config.output_publish.stream and publication and publication["last_error"])


def longest_block_ms(config: Config) -> int:
    """How long publishing may be blocked: until every retry is used up, and no longer than max_block_ms."""
    retried = sum(retry_delays(config.publish_retry))
    longest = config.output_publish.max_block_ms
    return retried if longest is None else min(retried, longest)
