"""Finds and ends the processes that an earlier run of the same home left alive.

After a SIGKILL of `up` its processes end by themselves (see the leash), but not at
once. They are known by the members file they hold open, or by its name in their
environment where a child closed all descriptors; a pid in a file could by now
belong to anybody.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from orchestrator_cli import leash

LOOK_AGAIN_SECONDS = 0.05


def pids(members: Path) -> list[int]:
    """The living processes of the home with this members file."""
    everyone = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in everyone if pid != os.getpid() and belongs(pid, str(members))]


def belongs(pid: int, members: str) -> bool:
    return holds(pid, members) or was_told(pid, members)


def holds(pid: int, path: str) -> bool:
    """Whether the process has the file open."""
    directory = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(directory):
            with contextlib.suppress(OSError):
                if os.readlink(f"{directory}/{descriptor}") == path:
                    return True
    return False


def was_told(pid: int, members: str) -> bool:
    """Whether the process inherited the file's name from a leash."""
    with contextlib.suppress(OSError):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return os.fsencode(f"{leash.MEMBERS}={members}") in environment
    return False


def clear(members: Path, patience: float) -> int:
    """Wait until nothing is left, then end by force what outlasts the patience; returns how many that were."""
    deadline = time.monotonic() + patience
    while alive := pids(members):
        if time.monotonic() >= deadline:
            return kill(members, alive)
        time.sleep(LOOK_AGAIN_SECONDS)
    return 0


def kill(members: Path, alive: list[int]) -> int:
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 2
    while pids(members) and time.monotonic() < deadline:
        time.sleep(LOOK_AGAIN_SECONDS)
    return len(alive)
