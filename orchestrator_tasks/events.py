"""Task events, which only Flower hears, leave a worker together a few times a second.

Celery sends them as soon as its loop is free: that is while the task which they tell of begins, and its thread waits
for the interpreter until a message is made, Redis has it, and Flower has been woken.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps

FLUSH_SECONDS = 0.25
MOST_KEPT = 2000  # by a thread that finds more, all are sent at once


class TogetherToFlower(bootsteps.StartStopStep):
    """Of a worker's consumer, anew with each of its connections."""

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, _consumer: Any, **_: Any) -> None:
        self.timer: Any = None

    def include_if(self, consumer: Any) -> bool:
        return consumer.hub is not None

    def start(self, consumer: Any) -> None:
        consumer.event_dispatcher.on_send_buffered = None
        consumer.event_dispatcher.buffer_limit = MOST_KEPT
        self.timer = consumer.hub.call_repeatedly(FLUSH_SECONDS, consumer.event_dispatcher.flush)

    def stop(self, consumer: Any) -> None:
        """The last ones are told; while the broker is away Celery keeps them for the next connection."""
        self.timer.cancel()
        consumer.event_dispatcher.flush()
