"""Cuts: which records a run is over, and the identity that follows from it."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from models.engine.config import TRUTH
from models.engine.contract import SNAPSHOT_INPUTS


@dataclass(frozen=True, slots=True)
class Last:
    """What a symbol's runs have come to: its first record, the end of its last cut, the timestamp of its last run.

    `first_seq` is that of the log where its own is no longer kept: of a symbol that was not configured for a while,
    retention may have dropped what was in no cut yet.
    """

    first_seq: int
    cut_end: int | None = None
    engine_timestamp_ms: int | None = None

    @property
    def next_start(self) -> int:
        return max(self.first_seq, 0 if self.cut_end is None else self.cut_end + 1)


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


@dataclass(slots=True)
class Open:
    """A symbol's open cut in a replay: what has come for it since its last one, and its state of each epoch."""

    start: int
    last: int
    states: dict[int, Any] = field(default_factory=dict)
    seqs: list[int] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    snapshots: list[tuple[int, Any, str]] = field(default_factory=list)

    def take(self, seq: int, event_type: str, timestamp_ms: Any, text: str) -> None:
        self.seqs.append(seq)
        self.types.append(event_type)
        if event_type == SNAPSHOT_INPUTS:
            self.snapshots.append((seq, timestamp_ms, text))

    def count(self, end: int) -> dict[str, int]:
        return dict(Counter(self.types[: bisect_right(self.seqs, end)]))

    def find_snapshot(self, timestamp_ms: int, end: int) -> tuple[int, str] | None:
        """The last SnapshotInputs for this timestamp."""
        for seq, of, text in reversed(self.snapshots):
            if seq <= end and of == timestamp_ms:
                return seq, text
        return None

    def close(self, end: int) -> None:
        """The next cut begins behind this one."""
        self.start = end + 1
        place = bisect_right(self.seqs, end)
        del self.seqs[:place], self.types[:place]
        self.snapshots = [each for each in self.snapshots if each[0] > end]
