"""Waiting without sleeping: look again until something holds, and fail at a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], within: float = 20.0, what: str = "") -> T:
    """The first answer that is true; the deadline is what fails the test."""
    deadline = time.monotonic() + within
    between = threading.Event()
    while not (answer := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {within:g} s: {what or condition}; the last answer was {answer!r}")
        between.wait(0.05)
    return answer
