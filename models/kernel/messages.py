"""The messages that name jobs, as Celery's workers read them from Redis: no Celery is needed to write one.

A message is JSON in a list: Celery's task message, protocol 2
(https://docs.celeryq.dev/en/stable/internals/protocol.html), in the envelope of kombu's Redis transport. A direct queue
is a list for each priority, and is reached straight: after a FLUSHALL a declared exchange has lost its bindings and
would drop every message silently.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from models.kernel import ids
from models.kernel.backlog import Ready
from models.kernel.jobs import CRITICAL, HIGH, LOW, NORMAL

PRIORITIES = (CRITICAL, HIGH, NORMAL, LOW)
SEPARATOR = ":"
CORRELATION = "correlation"  # the header that carries a request's id to the worker
LONGEST_REPR = 8192  # of what Flower shows: enough to find each job of a full message there
EMBEDDED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
NOTHING_ASKED: dict[str, Any] = {
    "lang": "py",
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "parent_id": None,
    "argsrepr": "()",
    "ignore_result": True,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}


def list_of(queue: str, priority: int) -> str:
    """The Redis list behind a queue that holds the messages of one priority."""
    return f"{queue}{SEPARATOR}{priority}" if priority else queue


def lists_of(queue: str) -> tuple[str, ...]:
    """The Redis lists behind a queue, the most urgent first."""
    return tuple(list_of(queue, priority) for priority in PRIORITIES)


def job_message(first: Ready, *others: Ready) -> bytes:
    """The message that names jobs of one task, queue and priority."""
    kwargs: dict[str, Any] = {"job_id": first.id, "subject_id": first.subject_id}
    if others:
        kwargs["others"] = [(job.id, job.subject_id, job.correlation_id) for job in others]
    headers = {CORRELATION: first.correlation_id}
    return message(first.task, kwargs, first.queue, first.priority, task_id=ids.new_uuid(), headers=headers)


def message(
    task: str,
    kwargs: Mapping[str, Any],
    queue: str,
    priority: int,
    *,
    task_id: str,
    headers: Mapping[str, Any] | None = None,
) -> bytes:
    """The message that calls a task, to be pushed to the left of `list_of(queue, priority)`."""
    body: Sequence[Any] = ([], kwargs, EMBEDDED)
    envelope = {
        "body": base64.b64encode(orjson.dumps(body)).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            **NOTHING_ASKED,
            "task": task,
            "id": task_id,
            "root_id": task_id,
            "kwargsrepr": repr(kwargs)[:LONGEST_REPR],
            "origin": f"orchestrator{os.getpid()}@{socket.gethostname()}",
            **(headers or {}),
        },
        "properties": {
            "correlation_id": task_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": priority,
            "body_encoding": "base64",
            "delivery_tag": ids.new_uuid(),
        },
    }
    return orjson.dumps(envelope)
