"""Clears what a supervised process leaves behind when it ends.

A process killed with SIGKILL cannot end its own workers; orphaned, they would go
on holding its port or taking its messages beside its successor. supervisord gives
every process a group of its own, so after an exit this listener kills the group.
Standard library only, like the leash.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TextIO


def fields(line: str) -> dict[str, str]:
    """`a:1 b:2` as supervisord writes it in headers and payloads."""
    return dict(part.split(":", 1) for part in line.split() if ":" in part)


def sweep(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def listen(events: TextIO, answers: TextIO) -> None:
    """supervisord's event protocol: READY, an event, RESULT; until it hangs up."""
    while True:
        answers.write("READY\n")
        answers.flush()
        header = fields(events.readline())
        if not header:
            return
        payload = fields(events.read(int(header["len"])))
        if int(payload.get("pid", 0)) > 1:
            sweep(int(payload["pid"]))
        answers.write("RESULT 2\nOK")
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listen(sys.stdin, sys.stdout)
