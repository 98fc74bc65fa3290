"""A finding, and how looking for it is kept from hanging on a server that stands still."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Finding:
    """What one check came to: the verdict, what was found, and what to do about it."""

    check: str
    verdict: str
    found: str
    next_step: str = ""


Look = Callable[[], list[Finding]]


def judge(check: str, good: bool, found: str, next_step: str, otherwise: str = FAIL) -> Finding:
    """An ok finding, or one with this verdict that says what to do."""
    return Finding(check, OK, found) if good else Finding(check, otherwise, found, next_step)


def look_all(looks: Mapping[str, Look], seconds: float) -> list[Finding]:
    """What all of them find, in their order, looked for at once; one that has not answered in time has failed.

    Each runs in a thread that the end of the process does not wait for.
    """
    answers: queue.Queue[tuple[str, list[Finding]]] = queue.Queue()
    for name, look in looks.items():
        threading.Thread(target=lambda n=name, f=look: answers.put((n, attempt(n, f))), daemon=True).start()
    found: dict[str, list[Finding]] = {}
    until = time.monotonic() + seconds
    while len(found) < len(looks) and (left := until - time.monotonic()) > 0:
        try:
            name, findings = answers.get(timeout=left)
        except queue.Empty:
            break
        found[name] = findings
    silent = f"no answer within {seconds:g} s"
    return [
        finding
        for name in looks
        for finding in found.get(name, [Finding(name, FAIL, silent, "is it stopped, overloaded or cut off?")])
    ]


def attempt(name: str, look: Look) -> list[Finding]:
    """What is found, or why nothing could be."""
    try:
        return look()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return [Finding(name, FAIL, reason, "its log says more")]
