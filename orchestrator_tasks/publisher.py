"""The dispatcher's door to Celery: jobs go out as messages, and are counted, here."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import redis

from models.kernel.backlog import Ready
from models.kernel.errors import Unavailable
from models.kernel.jobs import CRITICAL, REGISTRY
from models.kernel.messages import job_message, list_of, lists_of, message
from orchestrator_tasks.hints import client

CANARY = "doctor.canary"  # the task that only says that its queue is read
MOST_SEARCHED = 10_000


@contextlib.contextmanager
def in_our_words() -> Iterator[None]:
    """A broker that is away, or one that refuses and says why: out of memory, or a queue's key that is no list.

    Raises Unavailable.
    """
    try:
        yield
    except redis.ResponseError as error:
        raise Unavailable(f"The broker refused: {error}", code="broker_refused") from error
    except redis.RedisError as error:
        raise Unavailable("The broker cannot be reached", code="broker_unavailable") from error


def count_messages(queue: str) -> int:
    """How many messages wait in a queue, over all priorities. Raises Unavailable."""
    with in_our_words():
        pipeline = client().pipeline(transaction=False)
        for name in lists_of(queue):
            pipeline.llen(name)
        return sum(pipeline.execute())


def publish(jobs: Sequence[Ready], together: int = 1) -> None:
    """Send messages that name the jobs, in their order; neighbours of one kind and priority share one.

    All go in one round trip. `together`: most jobs in a message, where their kind allows several. Raises Unavailable;
    what was not sent is sent again later.
    """
    if jobs:
        push([(list_of(group[0].queue, group[0].priority), job_message(*group)) for group in grouped(jobs, together)])


def grouped(jobs: Sequence[Ready], together: int) -> Iterator[Sequence[Ready]]:
    for (task, _, _), alike in itertools.groupby(jobs, key=lambda job: (job.task, job.queue, job.priority)):
        most = min(together, REGISTRY[task].together) if task in REGISTRY else 1
        whole = list(alike)
        yield from (whole[start : start + most] for start in range(0, len(whole), most))


def push(messages: Sequence[tuple[str, bytes]]) -> None:
    """Put messages into their lists in one round trip. Raises Unavailable."""
    with in_our_words():
        pipeline = client().pipeline(transaction=False)
        for name, each in messages:
            pipeline.lpush(name, each)
        pipeline.execute()


def publish_canary(queue: str, canary: str) -> None:
    """Send the canary's task through a queue, before all jobs. Raises Unavailable."""
    kwargs = {"canary": canary, "queue": queue}
    push([(list_of(queue, CRITICAL), message(CANARY, kwargs, queue, CRITICAL, task_id=canary))])


def withdraw_canary(queue: str, canary: str) -> None:
    """Take back a canary that nobody read, so that none pile up in a queue without readers. Raises Unavailable."""
    name = list_of(queue, CRITICAL)
    with in_our_words():
        for each in client().lrange(name, 0, MOST_SEARCHED):
            if canary.encode() in each:
                client().lrem(name, 1, each)
