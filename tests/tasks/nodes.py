"""pytest-celery's nodes without docker: what it calls a container is a process of ours."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from pytest_celery import CeleryTestBroker, CeleryTestWorker

from orchestrator_cli.migrate import ROOT
from tests.service.waiting import eventually


class BrokerProcess:
    """The session's Valkey, in the part of a container."""

    name = id = "valkey"
    status = "running"

    def __init__(self, url: str) -> None:
        self.celeryconfig = {"url": url, "host_url": url}

    def ready(self) -> bool:
        return True

    def teardown(self) -> None:
        """The session stops it."""


class WorkerProcess:
    """`celery worker` on one queue, in the part of a container."""

    ready_prompt = "ready."

    def __init__(self, queue: str, log: Path, environment: dict[str, str], *words: str) -> None:
        self.queue, self.log, self.environment, self.words = queue, log, environment, words
        self.id = self.name = queue
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> WorkerProcess:
        words = ["--pool", "threads", "--concurrency", "2", "--queues", self.queue, "--hostname", f"{self.queue}@%h"]
        words += self.words
        command = [sys.executable, "-m", "celery", "--app", "orchestrator_tasks.app", "worker", *words]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        return self

    @property
    def status(self) -> str:
        return "running" if self.process is not None and self.process.poll() is None else "exited"

    def logs(self) -> str:
        return self.log.read_text()

    def ready(self) -> bool:
        eventually(lambda: self.ready_prompt in self.logs(), within=60, what=f"worker {self.name} is ready")
        return True

    def worker_name(self) -> str:
        return self.name

    def worker_queue(self) -> str:
        return self.queue

    def kill(self, signal: str | int = "SIGKILL") -> None:
        assert self.process is not None
        self.process.send_signal(number_of(signal))
        self.process.wait(30)

    def reload(self) -> None:
        """What a process is, it says itself."""

    def restart(self, timeout: float) -> None:
        if self.status == "running":
            self.kill("SIGTERM")
        self.log.write_text("")
        self.start().ready()

    def teardown(self) -> None:
        if self.status == "running":
            self.kill("SIGTERM")


def number_of(name: str | int) -> int:
    return name if isinstance(name, int) else int(signal.Signals[name])


def broker_node(url: str) -> CeleryTestBroker:
    return CeleryTestBroker(BrokerProcess(url))


def worker_node(process: WorkerProcess, app: Any) -> CeleryTestWorker:
    return CeleryTestWorker(process, app)
