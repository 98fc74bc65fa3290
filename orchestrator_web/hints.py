"""Reminding the dispatcher, over Redis. A hint that cannot be sent is dropped: the row is committed already."""

from __future__ import annotations

import functools
import logging

import redis

from models.kernel.hints import WORK, redis_url
from models.kernel.settings import settings

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.5


@functools.cache
def client() -> redis.Redis:
    """This process's Redis client; no call waits for longer than PATIENCE_SECONDS."""
    url = redis_url(settings().broker_url)
    return redis.Redis.from_url(url, socket_timeout=PATIENCE_SECONDS, socket_connect_timeout=PATIENCE_SECONDS)


def work_is_owed() -> None:
    """Wake the dispatcher; without the hint it looks by itself within its pace."""
    try:
        client().publish(WORK, "")
    except redis.RedisError as error:
        log.warning("the dispatcher was not reminded", extra={"error": str(error)})
