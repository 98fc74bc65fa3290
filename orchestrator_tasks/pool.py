"""The workers' threads, which wake their worker when a place becomes free.

While all places are taken a worker asks the broker for nothing (`worker_disable_prefetch`). It looks again whenever its
event loop wakes, and nothing wakes that when a thread is done: it would sit idle until its next timer, for a quarter of
a second.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

from celery.concurrency.thread import ApplyResult, TaskPool


class WakingPool(TaskPool):
    """Celery's thread pool."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heard, self.said = os.pipe()
        for end in (self.heard, self.said):
            os.set_blocking(end, False)
        self.lock = threading.Lock()
        self.taken = 0

    def register_with_event_loop(self, loop: Any) -> None:
        loop.add_reader(self.heard, self.hear)

    def hear(self, *_: Any) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.heard, 4096)

    def on_apply(self, *args: Any, **kwargs: Any) -> ApplyResult:
        with self.lock:
            self.taken += 1
        result = super().on_apply(*args, **kwargs)
        result.f.add_done_callback(self.leave)
        return result

    def leave(self, _done: object) -> None:
        """A worker that had a free place asks for more by itself."""
        with self.lock:
            was_full = self.taken >= self.limit
            self.taken -= 1
        if was_full:
            with contextlib.suppress(BlockingIOError):  # a full pipe has woken it already
                os.write(self.said, b"\0")
