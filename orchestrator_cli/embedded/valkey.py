"""The embedded Valkey: a unix socket and no port, so there is nothing to guess and nothing to collide with."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import redis

from orchestrator_cli.embedded import orphans
from orchestrator_cli.embedded.binaries import valkey_binary
from orchestrator_cli.embedded.child import Child
from orchestrator_cli.errors import CannotStart
from orchestrator_cli.home import make_directory, release_sockets, socket_directory

# noeviction: a message may be lost in a crash but never dropped to make room for another.
SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
    "loglevel": "notice",
    "always-show-logo": "no",
}


def client_url(broker_url: str) -> str:
    """Celery's name for a broker as redis-py spells it: only the scheme of a unix socket differs."""
    return broker_url.replace("redis+socket://", "unix://", 1)


class Valkey:
    """One embedded Valkey whose data lies in `directory`."""

    ending = signal.SIGTERM

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.child: Child | None = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def socket(self) -> Path:
        return socket_directory(self.directory) / "valkey.sock"

    def prepare(self) -> None:
        """Idempotent: make the directory and end a server that outlived its run."""
        make_directory(self.data)
        orphans.clear(self.data / "valkey.pid", self.data, self.ending)

    def command(self) -> list[str]:
        places = {"dir": str(self.data), "pidfile": str(self.data / "valkey.pid"), "unixsocket": str(self.socket)}
        options = [part for name, value in {**SETTINGS, **places}.items() for part in (f"--{name}", value)]
        return [valkey_binary(), *options]

    def url(self) -> str:
        """The form that Celery, kombu and Flower read; `client_url` turns it into redis-py's."""
        return f"redis+socket://{self.socket}"

    def answers(self) -> bool:
        client = redis.Redis.from_url(client_url(self.url()), socket_timeout=2)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def wait_ready(self, deadline: float) -> None:
        """Return when commands are answered; `deadline` is a time.monotonic().

        Raises CannotStart when it passes or the child ends.
        """
        while not self.answers():
            if time.monotonic() >= deadline or (self.child and self.child.has_ended()):
                raise CannotStart(f"Valkey does not answer on {self.socket}", next_step="its log says why")
            time.sleep(0.02)

    def start(self) -> None:
        """Run as a plain child of this process."""
        self.prepare()
        self.child = Child(self.command(), self.directory / "valkey.log", self.ending)
        self.wait_ready(time.monotonic() + 20)

    def stop(self) -> None:
        if self.child:
            self.child.stop()
            self.child = None
            release_sockets(self.directory)
