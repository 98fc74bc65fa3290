"""What `up` shows: one line for each step, with how long it took."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

WIDTH = 26


def say(text: str = "") -> None:
    """Print a line. A terminal that went away must not keep a stop from finishing."""
    show(text + "\n")


def show(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(text.encode(sys.stdout.encoding or "ascii", "replace").decode(sys.stdout.encoding or "ascii"))
        sys.stdout.flush()


class Step:
    """A step under way; `note` says where it stands, then how it ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.started = time.monotonic()
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.draw("·")

    def note(self, text: str) -> None:
        if text != self.text:
            self.text = text
            self.draw("·")

    def draw(self, mark: str) -> None:
        if self.live:
            show(f"\r\033[K  {mark} {self.name:<{WIDTH}} {self.text}")

    def end(self, mark: str) -> None:
        seconds = time.monotonic() - self.started
        start = "\r\033[K" if self.live else ""
        say(f"{start}  {mark} {self.name:<{WIDTH}} {self.text:<44} {seconds:5.1f} s")


@contextlib.contextmanager
def step(name: str) -> Iterator[Step]:
    """Show a step while the block runs, then ✓ or ✗ and the time it took."""
    current = Step(name)
    try:
        yield current
    except BaseException:
        current.end("✗")
        raise
    current.end("✓")
