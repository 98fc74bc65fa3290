"""supervisord as a child: started, asked, told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from supervisor.xmlrpc import SupervisorTransport  # type: ignore[import-untyped]

from orchestrator_cli import leash, leftovers, supervise
from orchestrator_cli.errors import CannotStart
from orchestrator_cli.home import Home, release_sockets
from orchestrator_cli.supervise import Program

STOP_SECONDS = 9.3
"""After this, what still runs is ended by force; Ctrl-C promises ten seconds."""

RUNNING = {"STARTING", "RUNNING"}
LINES_KEPT = 100


class Supervisor:
    """The one supervisord of a home."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.process: subprocess.Popen[bytes] | None = None
        self.password = ""
        self.said: deque[str] = deque(maxlen=LINES_KEPT)
        """What supervisord printed last. A pipe takes it, since it ends over a print that a full disk refuses."""

    def start(self, root: Path, programs: list[Program], environment: Mapping[str, str]) -> None:
        """Start supervisord and the programs that start with it.

        A session of its own keeps the terminal's Ctrl-C away from every process: only
        `up` hears it, and orders the stop.
        """
        self.password = supervise.write(self.home, root, programs)
        prefix = leash.prefix(signal.SIGTERM, str(self.home.members))
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "supervisor.supervisord", "-c", "run/supervisord.conf"],
            cwd=self.home.directory,
            env={**environment, leash.PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        threading.Thread(target=self._hear, args=(self.process.stdout,), name="supervisord", daemon=True).start()
        self._wait_until_it_answers(time.monotonic() + 10)

    def _hear(self, output: IO[bytes]) -> None:
        with output:
            for line in output:
                self.said.append(line.decode(errors="replace").strip())

    def _wait_until_it_answers(self, deadline: float) -> None:
        while not self.states():
            if self.has_ended() or time.monotonic() >= deadline:
                reason = f": {self.said[0]}" if self.said else ""
                raise CannotStart(f"the supervisor did not start{reason}", next_step=f"see {self.home.logs}")
            time.sleep(0.02)

    @contextlib.contextmanager
    def _rpc(self) -> Any:
        address = f"unix://{self.home.supervisor_socket}"
        transport = SupervisorTransport("orchestrator", self.password, address)
        try:
            yield xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor
        finally:
            transport.close()

    def states(self) -> dict[str, dict[str, Any]]:
        """What supervisord says about each program; empty while it does not answer."""
        try:
            with self._rpc() as rpc:
                return {info["name"]: info for info in rpc.getAllProcessInfo() if info["name"] != "sweep"}
        except (OSError, xmlrpc.client.Error, xmlrpc.client.ProtocolError):
            return {}

    def launch(self, programs: list[Program]) -> None:
        """Start programs without waiting for them; each may need another to be ready."""
        with self._rpc() as rpc:
            for program in programs:
                rpc.startProcess(program.address, False)

    def failing(self) -> list[str]:
        """The programs that do not stay up at present."""
        return [name for name, info in self.states().items() if info["statename"] not in RUNNING]

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def stop(self) -> int:
        """Stop everything in order and leave nothing behind; returns how many had to be ended by force."""
        deadline = time.monotonic() + STOP_SECONDS
        if self.process is not None:
            self._ask_to_stop(deadline)
        forced = leftovers.clear(self.home.members, max(0.0, deadline - time.monotonic()))
        for directory in self.home.socket_owners:
            release_sockets(directory)
        return forced

    def _ask_to_stop(self, deadline: float) -> None:
        assert self.process is not None
        try:
            with self._rpc() as rpc:
                rpc.shutdown()
        except (OSError, xmlrpc.client.Error):
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
        while self.process.poll() is None and time.monotonic() < deadline:
            # Left alone, supervisord notices an ended process up to a second late; a question wakes it.
            self.states()
            time.sleep(0.05)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
