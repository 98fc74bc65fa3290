"""Ends a server that outlived the run which started it, and forgets pid files of the dead.

A pid file survives a SIGKILL or a power cut, and after a reboot its number belongs to
some other program; so a pid counts only when that process works in the same directory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path


def clear(pid_file: Path, directory: Path, ending: signal.Signals, patience: float = 8.0) -> None:
    """Stop the server named in the file if it is ours and alive, then remove the file."""
    pid = read_pid(pid_file)
    if pid is None:
        return
    if works_in(pid, directory):
        stop(pid, directory, ending, patience)
    pid_file.unlink(missing_ok=True)


def read_pid(pid_file: Path) -> int | None:
    try:
        return abs(int(pid_file.read_text().split("\n", 1)[0]))
    except (OSError, ValueError):
        return None


def works_in(pid: int, directory: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd") == os.path.realpath(directory)
    except OSError:
        return False


def stop(pid: int, directory: Path, ending: signal.Signals, patience: float) -> None:
    for number, seconds in ((ending, patience), (signal.SIGKILL, 2.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while works_in(pid, directory) and time.monotonic() < deadline:
            time.sleep(0.02)
