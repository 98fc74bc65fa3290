"""Keeps the logs small: what a full one holds goes into a numbered copy, and the log is emptied under its writers.

Processes write their own logs, several of them into one file, and none would hear that it has another name now. So the
file stays and is emptied: whoever has it open to append goes on at its beginning. It is emptied as soon as the copy has
caught up with its end. What is written between that look and the emptying is lost: at 4,000 lines a second one line in
dozens of rotations, more only of a writer that is as fast as the copy. That is accepted: logs help to understand, and
what has to be known stands in the ledger.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

LARGEST = 10 * 1024 * 1024
KEPT = 3
CHUNK = 1 << 20
PASSES = 10
"""Each has less to copy than the one before it, unless somebody writes faster than this copies."""


class Rotation:
    """Looks after logs. A look at one that has room costs one stat; what fails is told once, and tried at each look."""

    def __init__(self, tell: Callable[[str], None], largest: int = LARGEST) -> None:
        self.tell = tell
        self.largest = largest
        self.told: dict[Path, str] = {}

    def look(self, logs: Iterable[Path]) -> None:
        for log in logs:
            try:
                if log.stat().st_size >= self.largest:
                    rotate(log)
                self.told.pop(log, None)
            except FileNotFoundError:
                self._tell_once(log, "somebody deleted it; what its program logs is lost until that is started again")
            except OSError as error:
                self._tell_once(log, error.strerror or str(error))

    def _tell_once(self, log: Path, reason: str) -> None:
        if self.told.get(log) != reason:
            self.told[log] = reason
            self.tell(f"{log} cannot be rotated: {reason}")


def rotate(log: Path) -> None:
    """Empty the log into its first copy, the older copies one number up. An error leaves the log as it is."""
    fresh = numbered(log, "new")
    try:
        with log.open("r+b", buffering=0) as source, fresh.open("wb") as copy:
            catch_up(source, copy)
            make_room(log)
            fresh.rename(numbered(log, 1))
            catch_up(source, copy)
            source.truncate(0)
    finally:
        fresh.unlink(missing_ok=True)


def catch_up(source: BinaryIO, copy: BinaryIO) -> None:
    for _ in range(PASSES):
        end = os.fstat(source.fileno()).st_size
        if source.tell() >= end:
            return
        while source.tell() < end and (chunk := source.read(CHUNK)):
            copy.write(chunk)
        copy.flush()


def make_room(log: Path) -> None:
    for number in range(KEPT - 1, 0, -1):
        older = numbered(log, number)
        if older.exists():
            older.rename(numbered(log, number + 1))


def numbered(log: Path, number: int | str) -> Path:
    return log.with_name(f"{log.name}.{number}")
