"""The embedded Valkey: a unix socket and no port, so there is nothing to guess and nothing to collide with."""

from __future__ import annotations

import signal
from pathlib import Path

import redis

from models.kernel.hints import redis_url
from orchestrator_cli.embedded import orphans
from orchestrator_cli.embedded.binaries import valkey_binary
from orchestrator_cli.embedded.server import Server
from orchestrator_cli.home import make_directory, socket_directory

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


class Valkey(Server):
    """One embedded Valkey whose data lies in `directory`."""

    name = "Valkey"
    ending = signal.SIGTERM

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
        """The form that Celery, kombu and Flower read; `models.kernel.hints.redis_url` turns it into redis-py's."""
        return f"redis+socket://{self.socket}"

    def answers(self) -> bool:
        client = redis.Redis.from_url(redis_url(self.url()), socket_timeout=2)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()
