"""What a run stands on: fresh servers, the databases on them, and the systems, started when they are first needed."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import redis
from sqlalchemy.engine import make_url

from benchmarks.harness import MeasureFailed
from benchmarks.processes import Running, cpu_seconds, environment, free_port
from benchmarks.service import Service, Web, delete_home
from benchmarks.systems import marks
from models.kernel.hints import redis_url
from orchestrator_cli import migrate
from orchestrator_cli.embedded.postgres import Postgres
from orchestrator_cli.embedded.valkey import Valkey
from orchestrator_cli.migrate import ROOT

DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
DURABLE_BROKER = {"appendonly": "yes", "appendfsync": "everysec"}
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `quick` is for the harness's own test and gives no figure worth a word."""

    seconds: float = 3.0
    open_seconds: float = 6.0
    executions: int = 100
    backlog: int = 5000
    at_once: int = 200
    large: int = 1_000_000
    small: int = 1000
    reads: int = 50
    memory_tickets: int = 10_000
    creates: int = 100_000
    readers: int = 500
    stream_seconds: float = 5.0
    successes: int = 20_000


QUICK = Sizes(0.4, 1.0, 10, 100, 10, 3000, 300, 5, 100, 600, 20, 1.0, 200)


class Bench:
    """One run. Everything it starts ends with `close`, or with this process."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.directory = Path(tempfile.mkdtemp(prefix="orcbench-", dir="/tmp"))
        self.postgres, self.valkey = Postgres(self.directory / "postgres"), Valkey(self.directory / "valkey")
        self.numbers = itertools.count(1)
        self.running: list[Running | Service | Web] = []
        self.the_service: Service | None = None
        self.sized: dict[str, Web] = {}

    def start(self) -> Bench:
        self.postgres.start()
        self.valkey.start()
        self.check_durability()
        self.template = self.make_database("migrated")
        migrate.upgrade(self.template)
        return self

    def close(self) -> None:
        for each in reversed(self.running):
            each.stop()
            if isinstance(each, Service | Web):
                delete_home(each if isinstance(each, Service) else each.service)
        self.valkey.stop()
        self.postgres.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    # servers

    def durability(self) -> dict[str, str]:
        """The settings that decide what a crash may cost, as the servers themselves say them."""
        found = {name: str(self.query(f"SHOW {name}")[0][0]) for name in DURABLE}
        broker = self.broker()
        return found | {name: str(broker.config_get(name)[name]) for name in DURABLE_BROKER}

    def check_durability(self) -> None:
        wanted = DURABLE | DURABLE_BROKER
        if self.durability() != wanted:
            raise MeasureFailed(f"the servers are not as durable as they must be: {self.durability()}")

    def cpu_of_postgres(self) -> float:
        assert self.postgres.child is not None
        return cpu_seconds(self.postgres.child.process.pid)

    def broker(self, number: int = 0) -> Any:
        return redis.Redis.from_url(redis_url(self.valkey.url()), db=number, decode_responses=True)

    @property
    def broker_url(self) -> str:
        return self.valkey.url()

    @property
    def other_broker_url(self) -> str:
        """The same Valkey, but queues of its own: what is sent there reaches no worker of `service`."""
        return f"{self.valkey.url()}?virtual_host=1"

    def query(self, sql: str, *values: Any, database: str = "postgres") -> list[tuple[Any, ...]]:
        """The rows of one statement, which commits by itself."""
        connection = psycopg2.connect(self.postgres.url(database))
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql, values or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def make_database(self, name: str, template: str = "template1") -> str:
        """A new database; answers its URL."""
        self.query(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.postgres.url(name)

    def migrated_database(self, name: str) -> str:
        return self.make_database(name, "migrated")

    # systems

    def environment(self, name: str) -> dict[str, str]:
        """What a baseline is told."""
        url = self.postgres.url(name)
        driver = make_url(url).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
        given = {"BENCH_DATABASE_URL": driver, "BENCH_PLAIN_DATABASE_URL": url, "BENCH_BROKER_URL": self.broker_url}
        return environment(**given, **{marks.VARIABLE: str(self.directory / f"{name}.marks")})

    def marks(self, name: str) -> Path:
        return self.directory / f"{name}.marks"

    def run(self, name: str, command: list[str], system: str) -> Running:
        """Start a process of a baseline; whoever starts it stops it."""
        return Running(command, self.directory / f"{name}-{next(self.numbers)}.log", self.environment(system))

    def do(self, command: list[str], system: str) -> str:
        """Run a command of a baseline to its end. Raises MeasureFailed."""
        env = self.environment(system)
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MeasureFailed(f"{' '.join(command[:4])} failed: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout

    def call(self, database: str, module: str, *arguments: str) -> str:
        """Run a module of the service's own on one of its databases. Raises MeasureFailed."""
        url = self.postgres.url(database)
        env = environment(DATABASE_URL=url, BROKER_URL=self.other_broker_url, ORCHESTRATOR_HOME=str(self.directory))
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MeasureFailed(f"{module} failed: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout

    def has_database(self, name: str) -> bool:
        return bool(self.query("SELECT 1 FROM pg_database WHERE datname = %s", name))

    def prepare_naive(self) -> None:
        """The naive service's tables, once."""
        if not self.has_database("naive"):
            self.make_database("naive")
            code = "from benchmarks.systems.naive import Base, engine; Base.metadata.create_all(engine)"
            self.do([sys.executable, "-c", code], "naive")

    def prepare_queue_in_postgres(self) -> None:
        """Procrastinate's tables, once."""
        if not self.has_database("queue_in_postgres"):
            self.make_database("queue_in_postgres")
            self.do([sys.executable, "-m", "benchmarks.systems.queue_in_postgres"], "queue_in_postgres")

    def gunicorn(self, system: str) -> tuple[Running, int]:
        """A baseline's web on gunicorn as it is usually run; answers it and its port."""
        port = free_port()
        options = ["--worker-class", "gthread", "--workers", "2", "--threads", "8", "--keep-alive", "75"]
        program = [str(BIN / "gunicorn"), *options, "--bind", f"127.0.0.1:{port}", "--log-level", "warning"]
        web = self.run(f"{system}-web", [*program, f"benchmarks.systems.{system}:app"], system)
        web.wait_until_it_answers(port)
        return web, port

    def web(self, database: str, *, processes: int = 1) -> Web:
        """Web processes of the service alone, on a database that exists; they run until the run ends."""
        made = Web(self.directory, self.postgres.url(database), self.other_broker_url, processes=processes)
        self.running.append(made)
        return made.start()

    def celery(self, app: str, system: str, *options: str) -> Running:
        """A baseline's Celery worker, ready."""
        word = [str(BIN / "celery"), "--app", app, "worker", "--loglevel", "INFO"]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        name = f"{system}{next(self.numbers)}@bench"
        worker = self.run(f"{system}-worker", [*word, *quiet, "--hostname", name, *options], system)
        worker.wait_until_it_says(" ready.")
        return worker

    def procrastinate(self) -> Running:
        """Procrastinate's worker, ready."""
        app = "benchmarks.systems.queue_in_postgres.queue"
        program = [str(BIN / "procrastinate"), "--app", app, "--verbose", "worker", "--concurrency", "20"]
        worker = self.run("procrastinate-worker", program, "queue_in_postgres")
        worker.wait_until_it_says("Starting worker on")
        return worker

    def service(self) -> Service:
        """The service as most measures need it, started once."""
        if self.the_service is None:
            database = self.migrated_database("service")
            self.the_service = Service(self.directory, database, self.broker_url)
            self.running.append(self.the_service)
            self.the_service.start()
        self.thaw()
        return self.the_service

    def freeze(self) -> None:
        """While a baseline is measured the service stands still."""
        if self.the_service is not None:
            self.the_service.running.freeze()

    def thaw(self) -> None:
        if self.the_service is not None:
            self.the_service.running.thaw()
