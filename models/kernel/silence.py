"""Remembering that a server does not answer, so that not each call waits for its timeout."""

from __future__ import annotations

from models.kernel import clock

SECONDS = 1.0


class Silence:
    """Which servers, by their addresses, were found silent within the last SECONDS."""

    def __init__(self) -> None:
        self.until: dict[str, float] = {}

    def note(self, address: str) -> None:
        self.until[address] = clock.monotonic() + SECONDS

    def lasts(self, address: str) -> bool:
        """Whether there is no use in asking yet."""
        return clock.monotonic() < self.until.get(address, 0.0)
