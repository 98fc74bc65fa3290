"""What a process has one of, made when it is first needed.

Not `functools.cache`: two threads that ask for the first time each make their own there, and the one that is forgotten
may take with it what somebody uses (a Redis client that is collected closes its pool's connections).
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Thing = TypeVar("Thing")


class Once(Generic[Thing]):
    """Calls a function without arguments once, whoever asks, and answers what it made."""

    def __init__(self, make: Callable[[], Thing]) -> None:
        functools.update_wrapper(self, make)
        self.make = make
        self.made: list[Thing] = []
        self.begin_anew()
        every.add(self)

    def begin_anew(self) -> None:
        self.lock = threading.RLock()

    def __call__(self) -> Thing:
        if not self.made:
            with self.lock:
                if not self.made:
                    self.made.append(self.make())
        return self.made[0]

    @property
    def is_made(self) -> bool:
        return bool(self.made)

    def cache_clear(self) -> None:
        """The next who asks has it made anew."""
        self.made.clear()


every: weakref.WeakSet[Once[Any]] = weakref.WeakSet()
once = Once


def begin_anew() -> None:
    """A lock that a thread of the parent held is held by nobody in the child."""
    for each in every:
        each.begin_anew()


os.register_at_fork(after_in_child=begin_anew)
