"""How many jobs a message of one queue carries: one, unless the queue drains fast.

A message costs its sender, Redis, its worker and Flower more than a short job does. So a queue's window of messages
holds about WORTH_SECONDS of work: as many jobs as it drained lately in that time, spread over the window. Long jobs
drain slowly and go one by one, each to whoever is free first.
"""

from __future__ import annotations

from models.kernel import clock

WORTH_SECONDS = 0.5
PERIOD_SECONDS = 0.25


class Tempo:
    """What one queue drained lately: whoever refills it up to the same window sends as many as were taken."""

    def __init__(self, most: int = 1) -> None:
        self.most = most
        self.since = clock.monotonic()
        self.sent = 0
        self.per_second = 0.0

    def note(self, sent: int) -> None:
        self.sent += sent

    def jobs_per_message(self, window: int) -> int:
        """At least one, at most `most`; the answer changes once a period."""
        passed = clock.monotonic() - self.since
        if passed >= PERIOD_SECONDS:
            self.per_second = self.sent / passed
            self.since, self.sent = clock.monotonic(), 0
        return max(1, min(self.most, int(self.per_second * WORTH_SECONDS / window)))
