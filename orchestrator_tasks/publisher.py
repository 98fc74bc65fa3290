"""The one door to Celery: jobs go out as messages here and nowhere else.

A direct queue is reached through the default exchange, straight into its list: after a
FLUSHALL a declared exchange has lost its bindings and would drop every message silently.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import redis
from kombu.exceptions import BatchPublishError, OperationalError

from models.kernel import ids
from models.kernel.backlog import Ready
from models.kernel.errors import Unavailable
from models.kernel.jobs import REGISTRY
from orchestrator_tasks.app import app
from orchestrator_tasks.hints import client

CORRELATION = "correlation"  # the header that carries a request's id to the worker
CANARY = "doctor.canary"  # the task that only says that its queue is read
MOST_SEARCHED = 10_000


@functools.cache
def lists_of(queue: str) -> tuple[str, ...]:
    """The Redis lists behind a queue, one for each priority, as kombu names them."""
    options = app.conf.broker_transport_options
    steps = options["priority_steps"]
    return tuple(f"{queue}{options['sep']}{step}" if step else queue for step in steps)


def count_messages(queue: str) -> int:
    """How many messages wait in a queue, over all priorities. Raises Unavailable."""
    try:
        pipeline = client().pipeline(transaction=False)
        for name in lists_of(queue):
            pipeline.llen(name)
        return sum(pipeline.execute())
    except redis.RedisError as error:
        raise Unavailable("The broker cannot be reached", code="broker_unavailable") from error


def publish(jobs: Sequence[Ready], together: int = 1) -> None:
    """Send messages that name the jobs, in their order; neighbours of one kind and priority share one.

    All go in one round trip. `together`: most jobs in a message, where their kind allows several. Raises Unavailable; what was not sent is sent
    again later.
    """
    if not jobs:
        return
    try:
        with app.producer_pool.acquire(block=True, timeout=2) as producer, producer.batch():
            for group in grouped(jobs, together):
                send(producer, group)
    except (BatchPublishError, OperationalError, redis.RedisError, OSError) as error:
        raise Unavailable("The broker cannot be reached", code="broker_unavailable") from error


def grouped(jobs: Sequence[Ready], together: int) -> Iterator[Sequence[Ready]]:
    for (task, _, _), alike in itertools.groupby(jobs, key=lambda job: (job.task, job.queue, job.priority)):
        most = min(together, REGISTRY[task].together) if task in REGISTRY else 1
        whole = list(alike)
        yield from (whole[start : start + most] for start in range(0, len(whole), most))


def send(producer: Any, group: Sequence[Ready]) -> None:
    first, *others = group
    kwargs: dict[str, Any] = {"job_id": first.id, "subject_id": first.subject_id}
    if others:
        kwargs["others"] = [(job.id, job.subject_id, job.correlation_id) for job in others]
    message = app.amqp.as_task_v2(ids.new_uuid(), first.task, kwargs=kwargs, ignore_result=True)
    app.amqp.send_task_message(
        producer,
        first.task,
        message,
        queue=first.queue,
        declare=[],
        priority=first.priority,
        headers={CORRELATION: first.correlation_id},
        retry=False,
    )


def publish_canary(queue: str, canary: str) -> None:
    """Send the canary's task through a queue, before all jobs. Raises Unavailable."""
    try:
        with app.producer_pool.acquire(block=True, timeout=2) as producer:
            kwargs = {"canary": canary, "queue": queue}
            message = app.amqp.as_task_v2(canary, CANARY, kwargs=kwargs, ignore_result=True)
            app.amqp.send_task_message(producer, CANARY, message, queue=queue, declare=[], priority=0, retry=False)
    except (OperationalError, redis.RedisError, OSError) as error:
        raise Unavailable("The broker cannot be reached", code="broker_unavailable") from error


def withdraw_canary(queue: str, canary: str) -> None:
    """Take back a canary that nobody read, so that none pile up in a queue without readers. Raises Unavailable."""
    name = lists_of(queue)[0]
    try:
        for message in client().lrange(name, 0, MOST_SEARCHED):
            if canary.encode() in message:
                client().lrem(name, 1, message)
    except redis.RedisError as error:
        raise Unavailable("The broker cannot be reached", code="broker_unavailable") from error
