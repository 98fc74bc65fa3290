"""The delays of a retry policy: bounded, and the same each time."""

from __future__ import annotations

from models.engine.config import Retry


def retry_delays(policy: Retry) -> list[int]:
    """Milliseconds: one entry for each attempt, doubling from the least to the greatest, within the time allowed.

    Attempt n, if it fails, is followed by the next after the n-th delay; after the last there is none.
    """
    delays: list[int] = []
    delay = policy.min_delay_ms
    while len(delays) < policy.max_attempts:
        if policy.max_elapsed_ms is not None and sum(delays) + delay > policy.max_elapsed_ms:
            break
        delays.append(delay)
        delay = min(delay * 2, policy.max_delay_ms)
    return delays
