"""Reminding the other processes, over Redis. A hint that cannot be sent is dropped: the row is committed already."""

from __future__ import annotations

import logging
from collections.abc import Callable

import redis

from models.kernel.hints import OUTCOMES, WORK, redis_url
from models.kernel.once import once
from models.kernel.settings import settings
from models.kernel.silence import Silence

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.5


@once
def client() -> redis.Redis:
    """This process's Redis client; no call waits for longer than PATIENCE_SECONDS."""
    url = redis_url(settings().broker_url)
    return redis.Redis.from_url(url, socket_timeout=PATIENCE_SECONDS, socket_connect_timeout=PATIENCE_SECONDS)


def work_is_owed(queue: str = "") -> None:
    """Wake the dispatcher, for one queue or for all; without the hint it looks by itself within its pace."""
    send((WORK, queue))


def ended(subject_id: str) -> None:
    """Wake whoever waits for this outcome, and the dispatcher for what waited behind it."""
    send((OUTCOMES, subject_id), (WORK, ""))


silence = Silence()


def send(*hints: tuple[str, str]) -> None:
    def publish(server: redis.Redis) -> None:
        pipeline = server.pipeline(transaction=False)
        for channel, message in hints:
            pipeline.publish(channel, message)
        pipeline.execute()

    reach(publish, "a hint was not sent")


def reach(act: Callable[[redis.Redis], object], failure: str) -> bool:
    """Whether Redis did this. It is not asked while it was silent just now: a request waits for that once, not each."""
    address = settings().broker_url
    if silence.lasts(address):
        return False
    try:
        act(client())
    except redis.RedisError as error:
        silence.note(address)
        log.warning(failure, extra={"error": str(error)})
        return False
    return True
