"""Runs `orchestrator up` as a person would, and reads what it says; every wait has a deadline."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator_cli import leftovers
from orchestrator_cli.migrate import ROOT

STUB = Path(__file__).with_name("stub_web.py")
PROCFILE = f"web: python {STUB}\ndispatcher: sleep 1000\nio: sleep ${{IO_SLEEP:-1000}}\n"
DEADLINE = 60


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def environment(home: Path, **settings: str) -> dict[str, str]:
    """This process's environment without its settings, and with two free ports."""
    ours = ("ORCHESTRATOR_", "DATABASE_URL", "BROKER_URL", "PORT", "FLOWER_PORT", "LEASH_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    places = {"ORCHESTRATOR_HOME": str(home), "PORT": str(free_port()), "FLOWER_PORT": str(free_port())}
    return {**inherited, **places, "PYTHONPATH": str(ROOT), **settings}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator_cli", *arguments]


class Service:
    """One `orchestrator up` on a Procfile of stand-ins."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.members = home / "run" / "members"
        self.environment = environment(home, **settings)
        procfile = home.with_name(home.name + ".Procfile")
        procfile.write_text(PROCFILE)
        self.process = subprocess.Popen(
            command("up", "--procfile", str(procfile)),
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['PORT']}"

    def said(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str) -> str:
        """Read until a line contains the text; the watchdog ends the process, and so the reading, at the deadline."""
        watchdog = threading.Timer(DEADLINE, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        try:
            for line in self.process.stdout:
                self.lines.append(line)
                if text in line:
                    return line
        finally:
            watchdog.cancel()
        raise AssertionError(f"{text!r} was never said:\n{self.said()}")

    def wait_until_ready(self) -> Service:
        self.wait_for("Ctrl-C stops everything")
        return self

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=DEADLINE)
        self.lines.append(rest or "")
        return self.process.returncode

    def pid_of(self, name: str) -> int:
        """The pid that the supervisor gave to a process most recently."""
        log = (self.home / "logs" / "supervisord.log").read_text()
        return int(log.rpartition(f"spawned: '{name}' with pid ")[2].split()[0])

    def alive(self) -> list[int]:
        return leftovers.pids(self.members)


def refused(home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `up` where it must not start."""
    return subprocess.run(
        command("up"),
        env=environment(home, **settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def assert_said_plainly(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """What happened in one line on stderr, and at most one more that says what to do next."""
    assert done.returncode != 0
    happened, *rest = done.stderr.splitlines()
    assert happened.startswith("orchestrator: "), done.stderr
    assert len(rest) <= 1, done.stderr
    assert all(line.startswith("  next: ") for line in rest), done.stderr
    for word in words:
        assert word in done.stderr


def until(holds: Callable[[], bool], seconds: float = 15) -> None:
    """Look again until something holds; the deadline is what fails the test."""
    deadline = time.monotonic() + seconds
    waiting = threading.Event()
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        waiting.wait(0.02)
