"""A server as a plain child of this process, for tests and for work without a supervisor."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from orchestrator_cli import leash


class Child:
    """Started on a leash, in a group of its own; ends when told to or with its parent."""

    def __init__(self, command: list[str], log: Path, ending: signal.Signals) -> None:
        self.ending = ending
        self.log = log
        environment = {**os.environ, leash.PARENT: str(os.getpid())}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*leash.prefix(ending), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self, patience: float = 10.0) -> None:
        """Ask, wait, then insist."""
        if self.has_ended():
            return
        self.process.send_signal(self.ending)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
