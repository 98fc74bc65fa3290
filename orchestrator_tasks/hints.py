"""Reminding and being reminded, over Redis. A hint that cannot be sent is dropped: rows decide."""

from __future__ import annotations

import logging

import redis

from models.kernel import clock
from models.kernel.hints import OUTCOMES, WORK, redis_url
from models.kernel.once import once
from models.kernel.settings import settings
from models.kernel.silence import Silence

log = logging.getLogger(__name__)


@once
def client() -> redis.Redis:
    """This process's Redis client; no call waits for longer than a second."""
    return redis.Redis.from_url(redis_url(settings().broker_url), socket_timeout=1.0, socket_connect_timeout=1.0)


silence = Silence()


def send(*hints: tuple[str, str]) -> None:
    """Send (channel, text) hints in one round trip; none while Redis was silent just now: nobody may wait for that."""
    address = settings().broker_url
    if silence.lasts(address):
        return
    try:
        pipeline = client().pipeline(transaction=False)
        for channel, message in hints:
            pipeline.publish(channel, message)
        pipeline.execute()
    except redis.RedisError as error:
        silence.note(address)
        log.warning("a hint was not sent", extra={"error": str(error)})


def owed(queue: str = "") -> None:
    """A queue, or any, owes work: dispatchers may look."""
    send((WORK, queue))


def ended(*subject_ids: str, queue: str | None = "") -> None:
    """These ended: whoever waits for them may look, and dispatchers whether their queue, or any, owes work now.

    Without a queue no dispatcher is woken: one that has more than it may send looks by itself.
    """
    of_work = [] if queue is None else [(WORK, queue)]
    send((OUTCOMES, " ".join(subject_ids)), *of_work)


class Bell:
    """Waits for hints of work; without Redis it only keeps time."""

    def __init__(self) -> None:
        self.pubsub: redis.client.PubSub | None = None

    def wait(self, seconds: float) -> set[str]:
        """The queues that hints named within so many seconds: none when there was no hint, "" for all queues."""
        began = clock.monotonic()
        try:
            return self.hear(self.listen(), seconds)
        except (redis.RedisError, OSError) as error:
            log.warning("not listening for hints", extra={"error": str(error)})
            self.pubsub = None
            clock.pause(max(0.0, seconds - (clock.monotonic() - began)))
        return set()

    def hear(self, pubsub: redis.client.PubSub, seconds: float) -> set[str]:
        """What the first hint says, and those that have piled up behind it."""
        named: set[str] = set()
        message = pubsub.get_message(timeout=seconds)
        while message is not None:
            named.add(message["data"].decode(errors="replace"))
            message = pubsub.get_message(timeout=0)
        return named

    def listen(self) -> redis.client.PubSub:
        if self.pubsub is None:
            self.pubsub = client().pubsub(ignore_subscribe_messages=True)
            self.pubsub.subscribe(WORK)
        return self.pubsub
