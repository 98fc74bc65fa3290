"""Cuts: which records a run is over, and the identity that follows from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from models.engine.config import TRUTH


@dataclass(frozen=True, slots=True)
class Last:
    """What a symbol's runs have come to: its first record, the end of its last cut, the timestamp of its last run."""

    first_seq: int
    cut_end: int | None = None
    engine_timestamp_ms: int | None = None

    @property
    def next_start(self) -> int:
        return self.first_seq if self.cut_end is None else self.cut_end + 1


def run_id(symbol: str, engine_timestamp_ms: int, cut_end_ingest_seq: int, engine_mode: str) -> str:
    """The same for the same run, wherever and however often it is planned."""
    text = f"{symbol}|{engine_timestamp_ms}|{cut_end_ingest_seq}|{engine_mode}"
    return hashlib.sha256(text.encode()).hexdigest()


def is_runnable(last: Last | None, engine_timestamp_ms: int, cut_end: int, engine_mode: str) -> bool:
    """Whether a tick makes a run of a symbol: something is new, and its time does not go back.

    Hysteresis counts updates, so that there time has to go on.
    """
    if last is None or last.next_start > cut_end:
        return False
    if last.engine_timestamp_ms is None or last.engine_timestamp_ms < engine_timestamp_ms:
        return True
    return engine_mode == TRUTH and last.engine_timestamp_ms == engine_timestamp_ms
