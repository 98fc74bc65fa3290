"""What the embedded servers share: a directory, a command, readiness, and a life as a plain child."""

from __future__ import annotations

import abc
import signal
import time
from pathlib import Path
from typing import ClassVar

from orchestrator_cli.embedded.child import Child
from orchestrator_cli.errors import CannotStart
from orchestrator_cli.home import release_sockets

PACE_SECONDS = 0.02
START_SECONDS = 30.0


class Server(abc.ABC):
    """One embedded server whose data lies in `directory`. `ending` is the signal that ends it well."""

    name: ClassVar[str]
    ending: ClassVar[signal.Signals]

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.child: Child | None = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @abc.abstractmethod
    def prepare(self) -> None:
        """Make what the server needs, and end one that outlived its run. Idempotent."""

    @abc.abstractmethod
    def command(self) -> list[str]:
        """The server's argv, for a supervisor."""

    @abc.abstractmethod
    def answers(self) -> bool:
        """Whether the server accepts work now."""

    def wait_ready(self, deadline: float) -> None:
        """Return when the server accepts work; `deadline` is a time.monotonic().

        Raises CannotStart when it passes or the child ends.
        """
        while not self.answers():
            if time.monotonic() >= deadline or (self.child and self.child.has_ended()):
                raise CannotStart(f"{self.name} does not answer in {self.directory}", next_step="its log says why")
            time.sleep(PACE_SECONDS)

    def start(self) -> None:
        """Run as a plain child of this process."""
        self.prepare()
        self.child = Child(self.command(), self.directory / f"{self.name.lower()}.log", self.ending)
        self.wait_ready(time.monotonic() + START_SECONDS)

    def stop(self) -> None:
        if self.child:
            self.child.stop()
            self.child = None
            release_sockets(self.directory)
