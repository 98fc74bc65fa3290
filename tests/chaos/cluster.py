"""The service and its two servers as the nemesis finds them: everything it may hurt, and how it mends by itself.

`orchestrator up` is given Postgres and Valkey as servers of somebody else's, each behind a proxy, so that the
supervisor leaves them alone and the network between can be harmed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psycopg2
import redis
from sqlalchemy.engine import make_url

from models.kernel.hints import redis_url
from orchestrator_cli.embedded.postgres import Postgres
from orchestrator_cli.embedded.server import Server
from orchestrator_cli.embedded.valkey import Valkey
from orchestrator_cli.errors import CannotStart
from orchestrator_cli.migrate import ROOT
from tests.chaos.market import CONFIG, OUTPUTS
from tests.chaos.plan import LEASE_SECONDS
from tests.chaos.proxy import Proxy
from tests.chaos.recorder import INSTALL
from tests.service.engine import toml
from tests.service.running import Running
from tests.service.test_killing import children
from tests.service.waiting import eventually

AGING_SECONDS = 4.0
IO_THREADS = 16
SETTINGS = {
    "ORCHESTRATOR_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "ORCHESTRATOR_AGING_SECONDS": f"{AGING_SECONDS:g}",
    "ORCHESTRATOR_IO_CONCURRENCY": str(IO_THREADS),
    "ORCHESTRATOR_SYSTEM_CONCURRENCY": "8",
    "ORCHESTRATOR_CPU_CONCURRENCY": "2",
    "ENGINE_MODULE": "tests.chaos.slow_engine",
    "ORCHESTRATOR_WEB_PROCESSES": "2",
    "ORCHESTRATOR_FLOWER_AUTH": "",
}
ROLLING = ("web", "dispatcher", "guardian", "relay", "beat", "io", "system", "cpu")
FORKING = ("web", "cpu")
DOUBLES = {
    "dispatcher": ["-m", "orchestrator_tasks.dispatcher"],
    "guardian": ["-m", "orchestrator_tasks.guardian"],
    "relay": ["-m", "orchestrator_tasks.engine"],
    "beat": ["-m", "celery", "--app", "orchestrator_tasks.app", "beat", "--schedule", "{home}/double-beat"],
}


class Service(Running):
    """The service on servers that it only reaches through the proxies."""

    def __init__(self, home: Path, database_url: str, broker_url: str) -> None:
        super().__init__(home)
        config = home / "engine.toml"
        config.write_text(toml(CONFIG))
        self.environment |= {**SETTINGS, "DATABASE_URL": database_url, "BROKER_URL": broker_url}
        self.environment["ORCHESTRATOR_ENGINE_CONFIG"] = str(config)
        for name in ("PORT", "FLOWER_PORT"):
            if value := os.environ.get(name):
                self.environment[name] = value
        self.url = f"http://127.0.0.1:{self.environment['PORT']}"


def forked_by(pid: int) -> list[int]:
    """The children of a process; one that has ended by now has none."""
    with contextlib.suppress(OSError):
        return children(pid)
    return []


class Cluster:
    """Everything that runs. Servers are started by the thread that made this, for they die with the one that did."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True)
        self.home = home
        self.postgres, self.valkey = Postgres(home / "postgres"), Valkey(home / "valkey")
        self.proxies = {"postgres": Proxy(self.postgres.sockets / ".s.PGSQL.5432"), "valkey": Proxy(self.valkey.socket)}
        self.frozen: dict[str, int] = {}
        self.doubles: list[subprocess.Popen[bytes]] = []

    def start(self) -> Cluster:
        self.postgres.start()
        self.valkey.start()
        for proxy in self.proxies.values():
            proxy.start()
        direct = make_url(self.postgres.url())
        through = direct.set(host="127.0.0.1", port=self.proxies["postgres"].port, query={})
        broker = f"redis://127.0.0.1:{self.proxies['valkey'].port}/0"
        self.service = Service(self.home, through.render_as_string(hide_password=False), broker).start()
        self.record()
        return self

    def record(self) -> None:
        connection = psycopg2.connect(self.postgres.url())
        with connection, connection.cursor() as cursor:
            cursor.execute(INSTALL)
        connection.close()

    def stop(self) -> None:
        self.heal()
        self.service.stop()
        for proxy in self.proxies.values():
            proxy.stop()
        self.valkey.stop()
        self.postgres.stop()

    # what the nemesis does: each act answers what it did

    def kill(self, victim: str) -> str:
        if victim == "postgres":
            return self.signal_server(self.postgres, signal.SIGKILL)
        pid = self.service.pid_of(victim)
        return self.signal(pid, signal.SIGKILL)

    def kill_child(self, victim: str) -> str:
        """A process that the victim has forked: a prefork worker, a web process."""
        forked = forked_by(self.service.pid_of(victim))
        return self.signal(forked[-1], signal.SIGKILL) if forked else "it has no child at this moment"

    def kill_host(self, victim: str) -> str:
        """The process in which a worker's child has the engine; a call that is going on ends with it."""
        hosts = [host for child in forked_by(self.service.pid_of(victim)) for host in forked_by(child)]
        return self.signal(hosts[-1], signal.SIGKILL) if hosts else "it has no host at this moment"

    def freeze(self, victim: str) -> str:
        if victim in self.frozen:
            return "it is frozen already"
        self.frozen[victim] = self.service.pid_of(victim)
        for pid in [*(forked_by(self.frozen[victim]) if victim in FORKING else []), self.frozen[victim]]:
            self.signal(pid, signal.SIGSTOP)
        return str(self.frozen[victim])

    def thaw(self, victim: str) -> str:
        pid = self.frozen.pop(victim, None)
        if pid is None:
            return "it is not frozen"
        for child in forked_by(pid):
            self.signal(child, signal.SIGCONT)
        return self.signal(pid, signal.SIGCONT)

    def signal(self, pid: int, number: signal.Signals) -> str:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return f"{pid} has ended already"
        return str(pid)

    def signal_server(self, server: Server, number: signal.Signals) -> str:
        if server.child is None or server.child.has_ended():
            return "it is down already"
        pid = server.child.process.pid
        os.kill(pid, number)
        server.child.process.wait(10)
        server.child = None
        return str(pid)

    def stop_at_once(self, _victim: str) -> str:
        """Postgres' immediate shutdown: as a crash, but every backend is told."""
        return self.signal_server(self.postgres, signal.SIGQUIT)

    def kill_and_empty(self, _victim: str) -> str:
        told = self.signal_server(self.valkey, signal.SIGKILL)
        shutil.rmtree(self.valkey.data / "appendonlydir", ignore_errors=True)
        return told

    def start_server(self, victim: str) -> str:
        server: Server = self.postgres if victim == "postgres" else self.valkey
        if server.child is not None and not server.child.has_ended():
            return "it runs"
        for _ in range(5):
            try:
                server.start()
                return "started"
            except CannotStart:  # a backend of the killed one still holds its memory
                server.stop()
                threading.Event().wait(0.5)
        raise AssertionError(f"{victim} does not start")

    def flush(self, _victim: str) -> str:
        with redis.Redis.from_url(redis_url(self.valkey.url())) as client:
            try:
                return str(client.flushall())
            except redis.RedisError:
                return "it is down"

    def clog(self, _victim: str) -> str:
        """Something else has the name of the stream of outputs, which therefore takes none."""
        with redis.Redis.from_url(redis_url(self.valkey.url())) as client:
            try:
                return str(client.set(OUTPUTS, "no stream"))
            except redis.RedisError:
                return "it is down"

    def unclog(self, _victim: str) -> str:
        with redis.Redis.from_url(redis_url(self.valkey.url())) as client:
            try:
                return str(client.delete(OUTPUTS) if client.type(OUTPUTS) == b"string" else "it is a stream")
            except redis.RedisError:
                return "it is down"

    def deploy(self) -> str:
        """Every process is told to end, one after the other, and another takes its place."""
        return " ".join(self.signal(self.service.pid_of(name), signal.SIGTERM) for name in ROLLING)

    def double(self) -> str:
        """A second dispatcher, guardian, relay and beat beside the first."""
        with (self.home / "logs" / "doubles.log").open("ab") as log:
            for command in DOUBLES.values():
                argv = [sys.executable, *(word.format(home=self.home) for word in command)]
                environment = {**self.service.environment, "ORCHESTRATOR_HOME": str(self.home)}
                self.doubles.append(
                    subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
                )
        return " ".join(str(one.pid) for one in self.doubles)

    def single(self) -> str:
        for one in self.doubles:
            one.terminate()
        for one in self.doubles:
            try:
                one.wait(10)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait(10)
        told = " ".join(str(one.returncode) for one in self.doubles)
        self.doubles.clear()
        return told

    # the end of the faults

    def heal(self) -> None:
        """Every fault that has not ended by itself ends now."""
        for victim in list(self.frozen):
            self.thaw(victim)
        for proxy in self.proxies.values():
            proxy.clear()
        self.single()
        for victim in ("postgres", "valkey"):
            self.start_server(victim)
        self.unclog("outputs")

    def wait_until_ready(self) -> None:
        eventually(self.service.is_ready, within=60, what="the service is ready")
