"""Processes that a run starts: on a leash, in a session of their own, and what they cost the machine."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.harness import MeasureFailed
from orchestrator_cli import leash
from orchestrator_cli.migrate import ROOT

TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 60.0
PACE_SECONDS = 0.02
OURS = ("ORCHESTRATOR_", "DATABASE_URL", "BROKER_URL", "PORT", "FLOWER_PORT", "LEASH_", "PROMETHEUS_")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without any setting of the service, and with these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **settings}


def wait_for(holds: Callable[[], bool], seconds: float, what: str, pace: float = PACE_SECONDS) -> None:
    """Return as soon as something holds. Raises MeasureFailed when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise MeasureFailed(f"{what}: not within {seconds:g} s")
        time.sleep(pace)


def tree(pid: int) -> list[int]:
    """A process and everything below it."""
    found, parents = [pid], parents_of_all()
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return [each for each in found if each in parents]


def parents_of_all() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def cpu_seconds(pid: int) -> float:
    """The user and system time of a process and everything below it, with what has ended and was waited for."""
    used = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            used += sum(int(field) for field in fields[11:15])
    return used / TICKS


def pss_mib(pids: Sequence[int]) -> float:
    """Their memory, with each shared page counted once among those who share it (proportional set size)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


@functools.cache
def thawer() -> subprocess.Popen[str]:
    """The process that lets go what is frozen when this one is gone."""
    command = [sys.executable, "-m", "benchmarks.thaw"]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True, start_new_session=True)


def tell_thawer(sign: str, pids: Sequence[int]) -> None:
    told = thawer().stdin
    assert told is not None
    told.write(f"{sign}{' '.join(str(pid) for pid in pids)}\n")
    told.flush()


def freeze(pids: Sequence[int]) -> None:
    """SIGSTOP. They are let go at the latest when this process ends."""
    tell_thawer("+", pids)
    signal_all(pids, signal.SIGSTOP)


def thaw(pids: Sequence[int]) -> None:
    signal_all(pids, signal.SIGCONT)
    tell_thawer("-", pids)


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Running:
    """One command that runs until it is stopped; it ends with this process too."""

    def __init__(
        self, command: Sequence[str], log: Path, env: Mapping[str, str], *, ending: int = signal.SIGTERM
    ) -> None:
        self.log, self.ending = log, signal.Signals(ending)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*leash.prefix(self.ending), *command],
                env={**env, leash.PARENT: str(os.getpid())},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pids(self) -> list[int]:
        return tree(self.process.pid)

    def wait_until_it_says(self, text: str, count: int = 1) -> None:
        """Return when its log holds the text so often. Raises MeasureFailed with the log's end."""

        def said() -> bool:
            if self.process.poll() is not None:
                raise MeasureFailed(f"{self.log.stem} ended at once: {self.tail()}")
            return self.log.read_text(errors="replace").count(text) >= count

        wait_for(said, START_SECONDS, f"{self.log.stem} says {text!r}")

    def wait_until_it_answers(self, port: int, path: str = "/healthz") -> None:
        """Return when GET answers 200. Raises MeasureFailed with the log's end."""

        def answers() -> bool:
            if self.process.poll() is not None:
                raise MeasureFailed(f"{self.log.stem} ended at once: {self.tail()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", path)
                return connection.getresponse().status == 200
            return False

        wait_for(answers, START_SECONDS, f"{self.log.stem} answers")

    def tail(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-3:])

    def freeze(self) -> None:
        freeze(self.pids)

    def thaw(self) -> None:
        thaw(self.pids)

    def stop(self, patience: float = 15.0) -> None:
        """Ask, wait, then insist; nothing below it is left."""
        everything = self.pids
        self.thaw()
        if self.process.poll() is None:
            self.process.send_signal(self.ending)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            signal_all(everything, signal.SIGKILL)
            self.process.wait()
        session = [pid for pid in everything if pid in parents_of_all()]
        signal_all(session, signal.SIGKILL)
