"""The service itself, as `orchestrator up` runs it, on the run's servers; only its I/O worker's driver is watched."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import MeasureFailed
from benchmarks.load import Order
from benchmarks.processes import Running, cpu_seconds, environment, free_port, tree
from benchmarks.systems import marks
from orchestrator_cli.migrate import ROOT

READY = "Ctrl-C stops everything"
WATCHED = "benchmarks.systems.stopwatch"


class Service:
    """One whole service with a home of its own."""

    def __init__(self, directory: Path, database_url: str, broker_url: str, **settings: str) -> None:
        # short, since a unix socket's path may not be long
        self.home = Path(tempfile.mkdtemp(prefix="orcbench-", dir="/tmp"))
        self.port = free_port()
        self.marks = directory / "service.marks"
        self.environment = environment(
            DATABASE_URL=database_url,
            BROKER_URL=broker_url,
            ORCHESTRATOR_HOME=str(self.home),
            PORT=str(self.port),
            FLOWER_PORT=str(free_port()),
            # counted as always, but never reached
            ORCHESTRATOR_RATE_LIMIT="1000000",
            **{marks.VARIABLE: str(self.marks)},
            **settings,
        )
        self.log = directory / f"service-{self.port}.log"

    def start(self) -> Service:
        procfile = self.log.with_suffix(".Procfile")
        procfile.write_text(watched((ROOT / "Procfile").read_text()))
        command = [sys.executable, "-m", "orchestrator_cli", "up", "--procfile", str(procfile)]
        self.running = Running(command, self.log, self.environment, ending=signal.SIGINT)
        self.running.wait_until_it_says(READY)
        self.token = (self.home / "admin.token").read_text().strip()
        return self

    def stop(self) -> None:
        self.running.stop(patience=30)

    @property
    def pids(self) -> list[int]:
        return self.running.pids

    def pid_of(self, name: str) -> int:
        """A process of the Procfile."""
        log = (self.home / "logs" / "supervisord.log").read_text()
        return int(log.rpartition(f"spawned: '{name}' with pid ")[2].split()[0])

    def pids_of(self, name: str) -> list[int]:
        """A process of the Procfile and what it forked."""
        return tree(self.pid_of(name))

    def cpu_by_role(self) -> dict[str, float]:
        """The CPU seconds that each process of the Procfile, with what it forked, has used so far."""
        return {role: cpu_seconds(self.pid_of(role)) for role in self.roles}

    @property
    def roles(self) -> list[str]:
        return re.findall(r"^(\w+):", (ROOT / "Procfile").read_text(), re.MULTILINE)

    def order(self, path: str, bodies: list[Any], expected: int, **options: Any) -> Order:
        headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        texts = [body if isinstance(body, str) else json.dumps(body) for body in bodies]
        return Order(self.port, path, texts, expected, headers=headers, **options)

    def ask(self, method: str, path: str, body: Any = None, expected: int = 200) -> dict[str, Any]:
        """One request. Raises MeasureFailed when it is answered otherwise."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        with contextlib.closing(connection):
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            said = answer.read()
        if answer.status != expected:
            raise MeasureFailed(f"{method} {path} answered {answer.status}: {said[:200].decode(errors='replace')}")
        return dict(json.loads(said))


class Web:
    """Web processes of the service alone, on a database of their own."""

    def __init__(self, directory: Path, database_url: str, broker_url: str, *, processes: int = 1, **more: str) -> None:
        self.service = Service(directory, database_url, broker_url, ORCHESTRATOR_WEB_PROCESSES=str(processes), **more)
        self.ask, self.order, self.port = self.service.ask, self.service.order, self.service.port

    def start(self) -> Web:
        command = [sys.executable, "-m", "orchestrator_web"]
        self.running = Running(command, self.service.log, self.service.environment)
        self.running.wait_until_it_answers(self.port)
        self.service.token = issue_key(self.service.environment)
        return self

    @property
    def token(self) -> str:
        return self.service.token

    def stop(self) -> None:
        self.running.stop()


def watched(procfile: str) -> str:
    """The project's own Procfile, but that the I/O worker's driver is watched."""
    line = re.compile(r"^(io: .*--app )orchestrator_tasks\.app\b", re.MULTILINE)
    made, found = line.subn(rf"\g<1>{WATCHED}", procfile)
    if found != 1:
        raise MeasureFailed("the Procfile has no I/O worker as this knows it")
    return made


def issue_key(env: dict[str, str]) -> str:
    """A new admin key for the database that the environment names."""
    import subprocess

    code = "from models.kernel import clients; print(clients.issue_admin_key())"
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MeasureFailed(f"no key could be issued: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def delete_home(service: Service) -> None:
    import shutil

    shutil.rmtree(service.home, ignore_errors=True)
    os.sync()
