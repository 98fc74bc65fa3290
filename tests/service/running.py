"""The real service in processes of its own: started, asked, watched, hurt and stopped from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import orjson
import psycopg2
import psycopg2.extras
from sqlalchemy.engine import make_url

from orchestrator_cli import leftovers
from orchestrator_cli.embedded.postgres import Postgres
from orchestrator_cli.migrate import ROOT
from tests.cli.service import command, environment
from tests.service.waiting import eventually

FLOWER_AUTH = "operator:watching"
SCALE = 10  # simulated seconds in one real second
WINDOW = 24
CONCURRENCY = 40
LEASE_SECONDS = 3
FRESH = "beat_at > clock_timestamp() - interval '4 seconds'"

SETTINGS = {
    "ORCHESTRATOR_SIM_TIME_SCALE": str(SCALE),
    "ORCHESTRATOR_LEASE_SECONDS": str(LEASE_SECONDS),
    "ORCHESTRATOR_REDISPATCH_SECONDS": "1",
    "ORCHESTRATOR_DISPATCH_WINDOW": str(WINDOW),
    "ORCHESTRATOR_IO_CONCURRENCY": str(CONCURRENCY),
    "ORCHESTRATOR_WEB_PROCESSES": "4",
    "ORCHESTRATOR_FLOWER_AUTH": FLOWER_AUTH,
    "ORCHESTRATOR_WEBHOOK_ALLOW_PRIVATE": "true",
}

ASYNC = {"Prefer": "respond-async"}
READY = "Ctrl-C stops everything"


class Running:
    """One `orchestrator up` on a home of its own; it may be stopped and started again."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.members = home / "run" / "members"
        self.environment = environment(home, **SETTINGS, **settings)
        self.url = f"http://127.0.0.1:{self.environment['PORT']}"
        self.flower = f"http://127.0.0.1:{self.environment['FLOWER_PORT']}"
        self.said = home.with_suffix(".said")
        self.process: subprocess.Popen[bytes] | None = None

    # its life

    def start(self) -> Running:
        with self.said.open("wb") as output:
            self.process = subprocess.Popen(
                command("up"), env=self.environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )
        eventually(self.has_spoken, within=90, what="the line that says it is ready")
        assert self.process.poll() is None, self.said.read_text()
        self.token = (self.home / "admin.token").read_text().strip()
        self.database_url = Postgres(self.home / "postgres").url()
        return self

    def has_spoken(self) -> bool:
        assert self.process is not None
        return READY in self.said.read_text() or self.process.poll() is not None

    def stop(self) -> float:
        """Ctrl-C; answers how many seconds the end took."""
        assert self.process is not None
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        return time.monotonic() - began

    def alive(self) -> list[int]:
        return leftovers.pids(self.members)

    # its processes

    def pid_of(self, name: str) -> int:
        """The pid that the supervisor gave to a program most recently."""
        log = (self.home / "logs" / "supervisord.log").read_text()
        return int(log.rpartition(f"spawned: '{name}' with pid ")[2].split()[0])

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False

    def has_fresh(self, role: str, *, besides: int) -> bool:
        """Whether a process of this role, other than that one, has just said that it is alive."""
        try:
            return bool(self.rows(f"SELECT FROM processes WHERE role = %s AND pid <> %s AND {FRESH}", role, besides))
        except psycopg2.OperationalError:
            return False

    def log_lines(self, name: str) -> list[dict[str, Any]]:
        lines = (self.home / "logs" / f"{name}.log").read_bytes().splitlines()
        return [orjson.loads(line) for line in lines if line.startswith(b"{")]

    # its evidence

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """What the database says, on a connection of this question's own."""
        plain = make_url(self.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        connection = psycopg2.connect(plain, cursor_factory=psycopg2.extras.RealDictCursor)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql, values or None)
                return [dict(row) for row in cursor.fetchall()]
        finally:
            connection.close()

    def row(self, sql: str, *values: Any) -> dict[str, Any]:
        (only,) = self.rows(sql, *values)
        return only

    def motions(self, ticket_id: str) -> list[dict[str, Any]]:
        """What moved under a ticket, in order, with how long it lasted in simulated seconds."""
        lasted = f"extract(epoch FROM ended_at - began_at)::float8 * {SCALE} AS lasted"
        return self.rows(f"SELECT *, {lasted} FROM sim_motions WHERE ticket_id = %s ORDER BY id", ticket_id)

    def history(self, ticket_id: str) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM ledger WHERE subject_id = %s ORDER BY seq", ticket_id)

    def topics(self, ticket_id: str) -> list[str]:
        return [row["topic"] for row in self.history(ticket_id)]

    # its API

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.token}"}, timeout=60, trust_env=False
        )

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request on a connection of its own."""
        with self.client() as client:
            return client.request(method, path, **options)

    def create(self, **ticket: Any) -> str:
        made = self.ask("POST", "/ticket", json=ticket)
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    def execute(self, ticket_id: str, headers: Mapping[str, str] | None = None, **body: Any) -> httpx.Response:
        return self.ask("POST", "/execute", json={"ticket_id": ticket_id, **body}, headers=headers)

    def accept(self, ticket_id: str, **body: Any) -> str:
        """Set a ticket going without waiting for it."""
        answer = self.execute(ticket_id, ASYNC, **body)
        assert answer.status_code == 202, answer.text
        return ticket_id

    def go(self, **ticket: Any) -> str:
        return self.accept(self.create(**ticket))

    def ticket(self, ticket_id: str) -> dict[str, Any]:
        answer = self.ask("GET", f"/ticket/{ticket_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait_until(self, ticket_id: str, *states: str, within: float = 30.0) -> dict[str, Any]:
        """The ticket as soon as it is in one of these states."""

        def there() -> dict[str, Any] | None:
            answer = self.ask("GET", f"/ticket/{ticket_id}")
            if answer.status_code == 503:  # a server is being started again, as the answer's Retry-After says
                return None
            ticket = dict(answer.json())
            return ticket if ticket["status"] in states else None

        found = eventually(there, within, f"{ticket_id} becomes {' or '.join(states)}")
        assert found is not None
        return found

    def wait_until_moving(self, ticket_id: str) -> None:
        eventually(lambda: self.motions(ticket_id), what=f"the robot of {ticket_id} moves")


ENDED = ("completed", "failed", "cancelled")


def drive(target: str, seconds: float = 5, speed: float = 1.0, **others: Any) -> dict[str, Any]:
    """A drive of so many simulated seconds."""
    params = {"speed": speed, "duration_seconds": seconds, "direction": 0}
    return {"command": "drive", "params": params, "target": target, **others}


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process stands still for the length of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
