"""How many jobs of one queue are on their way at once, and how many share a message: more, the faster it drains.

A message costs its sender, Redis, its worker and Flower more than a short job does. So what is on its way to workers,
sent and not taken, is WORTH_SECONDS of what the queue drained lately, in a few messages, and never less than the
queue's window, nor more than MOST_WINDOWS of it. Long jobs drain slowly and go one by one, each to whoever is free
first.
"""

from __future__ import annotations

from models.kernel import clock

WORTH_SECONDS = 0.2
MESSAGES = 4  # that share it: for as many processes, and for those that hand some of it back
MOST_WINDOWS = 10
PERIOD_SECONDS = 0.25


class Tempo:
    """What one queue drained lately: whoever refills it sends as many as were taken. `most`: jobs in a message."""

    def __init__(self, most: int = 1) -> None:
        self.most = most
        self.since = clock.monotonic()
        self.sent = 0
        self.per_second = 0.0

    def note(self, sent: int) -> None:
        self.sent += sent

    def plan(self, window: int) -> tuple[int, int]:
        """Jobs that may be on their way, and jobs in a message; the answer changes once a period."""
        passed = clock.monotonic() - self.since
        if passed >= PERIOD_SECONDS:
            self.per_second = self.sent / passed
            self.since, self.sent = clock.monotonic(), 0
        worth = int(self.per_second * WORTH_SECONDS)
        together = max(1, min(self.most, worth // MESSAGES))
        return (window if together == 1 else max(window, min(worth, MOST_WINDOWS * window))), together
