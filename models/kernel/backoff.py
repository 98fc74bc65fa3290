"""How long to wait before the next attempt."""

from __future__ import annotations

DOUBLINGS = 62  # beyond this a float is exact no more, and every cap is reached


def backoff_seconds(attempt: int, base: float, cap: float) -> float:
    """The pause after the given attempt (the first is 1): `base`, then twice as long each time, at most `cap`."""
    return min(cap, base * 2.0 ** min(max(attempt, 1) - 1, DOUBLINGS))
