"""Engine runs with an empty engine: `python -m benchmarks.engine_runs [runs] [symbols] [seconds]`, on its own services.

First the rate: so many symbols have inputs for one tick, and it is measured from the tick's due time until the
last of their runs is settled: planned, dispatched, taken, a host's child forked, settled. In turn with it raw
Celery tasks that do nothing, on the same Valkey and a prefork pool of the same size, from the first send until the
last is done. Three rounds each, the ratio in each. Then how long a call of the engine takes in its host, alone.

Then the lag: a service on which so many symbols run each second; of each run, from its intended time until it is
started, and until it is completed. All times are the database's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import redis
from sqlalchemy import text

from benchmarks.processes import Running, cpu_seconds, environment, free_port
from models.engine.contract import check_event
from models.engine.inputs import append_events
from models.engine.snapshots import engine_input
from models.kernel import session
from models.kernel.hints import redis_url
from models.kernel.session import statement, transaction
from models.kernel.settings import settings
from orchestrator_cli.embedded.postgres import Postgres
from orchestrator_cli.embedded.valkey import Valkey
from orchestrator_tasks.engine.hosts import call_engine, close_host

ROUNDS = 3
POOL = 2
CALLS = 500
MARGIN_MS = 200
ENGINE = "benchmarks.engine_empty"
READY = "Ctrl-C stops everything"

CONFIG = """
[[sources]]
source_id = "feed"
symbols = {symbols}
[scheduler]
mode = "boundary"
boundary_interval_ms = {interval}
boundary_delay_ms = {delay}
[engine]
engine_mode = "truth"
alignment_ms = {interval}
[engine_retry]
min_delay_ms = 100
max_delay_ms = 100
max_attempts = 1
[buffer_retention]
max_records = 10000000
[output_publish]
max_pending = 1000000
"""
ENDED = """
    SELECT count(*) FILTER (WHERE state = 'completed'), count(*) FILTER (WHERE state = 'failed') FROM engine_runs
    WHERE engine_timestamp_ms = :at
"""
TOOK = """
    SELECT max(completed_ts_ms) - min(planned_ts_ms) FROM engine_runs WHERE engine_timestamp_ms = :at
"""
LAGS = """
    SELECT started_ts_ms - planned_ts_ms, completed_ts_ms - planned_ts_ms FROM engine_runs
    WHERE engine_timestamp_ms BETWEEN :first AND :last AND state = 'completed' ORDER BY number
"""
PLANNED = """
    SELECT count(*), count(*) FILTER (WHERE state = 'failed'), count(*) FILTER (WHERE completed_ts_ms IS NULL)
    FROM engine_runs WHERE engine_timestamp_ms BETWEEN :first AND :last
"""


class Bench:
    """One service with a configuration of its own, and the servers that it is on."""

    def __init__(self, directory: Path, symbols: int, interval_ms: int, delay_ms: int) -> None:
        self.directory = directory
        self.symbols = [f"S{number:04}" for number in range(symbols)]
        self.sources = {"feed": frozenset(self.symbols)}
        self.interval_ms, self.delay_ms = interval_ms, delay_ms
        self.home = tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp", ignore_cleanup_errors=True)
        self.postgres, self.valkey = Postgres(directory / "postgres"), Valkey(directory / "valkey")

    @contextlib.contextmanager
    def running(self) -> Iterator[Bench]:
        config = self.directory / "engine.toml"
        named = orjson.dumps(self.symbols).decode()
        config.write_text(CONFIG.format(symbols=named, interval=self.interval_ms, delay=self.delay_ms))
        try:
            self.postgres.start()
            self.valkey.start()
            own = {
                "DATABASE_URL": self.postgres.url(),
                "BROKER_URL": self.valkey.url(),
                "ORCHESTRATOR_HOME": self.home.name,
                "PORT": str(free_port()),
                "FLOWER_PORT": str(free_port()),
                "ORCHESTRATOR_ENGINE_CONFIG": str(config),
                "ORCHESTRATOR_CPU_CONCURRENCY": str(POOL),
                "ENGINE_MODULE": ENGINE,
            }
            os.environ |= own
            settings.cache_clear()
            self.environment = environment(**own)
            command = [sys.executable, "-m", "orchestrator_cli", "up"]
            service = Running(command, self.directory / "up.log", self.environment, ending=signal.SIGINT)
            try:
                service.wait_until_it_says(READY)
                self.pid = service.process.pid
                yield self
            finally:
                service.stop(30)
        finally:
            session.dispose_engines()
            self.valkey.stop()
            self.postgres.stop()
            self.home.cleanup()

    def append(self, timestamp_ms: int) -> None:
        """SnapshotInputs of every symbol for one timestamp, as one batch."""
        received = [check_event(make_event(name, timestamp_ms), self.sources, 1) for name in self.symbols]
        with transaction() as connection:
            append_events(connection, received, max_records=10**7)

    def coming(self) -> int:
        """The next boundary. It is waited for until nothing that is appended can be of the tick before it."""
        at = (int(time.time() * 1000) // self.interval_ms + 2) * self.interval_ms
        self.wait_for_turn(at)
        return at

    def wait_for_turn(self, at: int) -> None:
        time.sleep(max(0.0, (at - self.interval_ms + self.delay_ms + MARGIN_MS) / 1000 - time.time()))

    def ask(self, sql: str, **values: Any) -> Any:
        with statement() as connection:
            return connection.execute(text(sql), values).all()


def make_event(symbol: str, timestamp_ms: int) -> bytes:
    return orjson.dumps(
        {
            "schema": "raw_market_event",
            "schema_version": "1",
            "event_type": "SnapshotInputs",
            "source_id": "feed",
            "symbol": symbol,
            "exchange_ts_ms": None,
            "recv_ts_ms": timestamp_ms,
            "raw_payload": "",
            "raw_payload_encoding": "text",
            "normalized": {"timestamp_ms": timestamp_ms, "market": {"price": 100.5, "vwap": 100.0, "atr": 2.0}},
        }
    )


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)


def measure_runs(bench: Bench) -> tuple[float, float]:
    """Runs a second from the tick's due time to the last settle, and the service's CPU seconds for each thousand."""
    at = bench.coming()
    bench.append(at)
    count, before = len(bench.symbols), cpu_seconds(bench.pid)
    wait_until(lambda: sum(bench.ask(ENDED, at=at)[0]) == count, 120, f"{count} runs are settled")
    completed, failed = bench.ask(ENDED, at=at)[0]
    if failed:
        sys.exit(f"{failed} runs have failed, {completed} are completed")
    used = cpu_seconds(bench.pid) - before
    return count / (bench.ask(TOOK, at=at)[0][0] / 1000), used / count * 1000


@contextlib.contextmanager
def raw_celery(bench: Bench) -> Iterator[Callable[[int], float]]:
    """Tasks a second of raw Celery, while its worker runs."""
    url = bench.environment["BROKER_URL"]
    os.environ |= {"BENCH_BROKER_URL": url, "BENCH_REDIS_URL": redis_url(url)}
    from benchmarks.engine_noop import DONE, QUEUE, app, noop

    words = ["--pool", "prefork", "--concurrency", str(POOL), "--queues", QUEUE, "--hostname", "raw@%h"]
    command = [sys.executable, "-m", "celery", "--app", "benchmarks.engine_noop", "worker", *words]
    log = bench.directory / "raw.log"
    own = {name: os.environ[name] for name in ("BENCH_BROKER_URL", "BENCH_REDIS_URL")}
    worker = Running([*command, "--without-gossip", "--without-mingle"], log, {**bench.environment, **own})
    client = redis.Redis.from_url(redis_url(url))

    def measure(count: int) -> float:
        began = time.monotonic()
        with app.connection_for_write() as connection, connection.Producer() as producer:
            for number in range(count):
                noop.apply_async((number, number == count - 1), producer=producer)
        client.brpop([DONE], timeout=120)
        return count / (time.monotonic() - began)

    try:
        wait_until(lambda: bool(app.control.ping(timeout=0.5)), 60, "raw Celery's worker answers")
        measure(50)
        yield measure
    finally:
        worker.stop()
        client.close()


def show_rate(count: int) -> None:
    with tempfile.TemporaryDirectory() as directory, Bench(Path(directory), count, 10_000, 500).running() as bench:
        measure_runs(bench)  # each symbol's first, and the hosts are started
        found: list[tuple[float, float, float]] = []
        with raw_celery(bench) as raw:
            for _ in range(ROUNDS):
                found.append((*measure_runs(bench), raw(count)))
        runs, cpu, tasks = zip(*found, strict=True)
        ratios = [mine / celery for mine, celery in zip(runs, tasks, strict=True)]
        load = os.getloadavg()[0]
        print(f"{count} runs, a pool of {POOL}, {os.cpu_count()} cores, load {load:.1f}; a second, median of {ROUNDS}")
        print(f"engine runs, from the tick to the last settle  {statistics.median(runs):8.0f}   {shown(runs)}")
        print(f"raw Celery, a task that does nothing           {statistics.median(tasks):8.0f}   {shown(tasks)}")
        print(f"ratio                                          {statistics.median(ratios):8.2f}   {shown(ratios, 2)}")
        print(f"CPU of all its processes meanwhile, ms a run   {statistics.median(cpu):8.2f}   {shown(cpu, 2)}")
        show_calls()


def shown(values: Any, digits: int = 0) -> str:
    return " ".join(f"{value:8.{digits}f}" for value in values)


def show_calls() -> None:
    """The host alone, called again and again, and with pauses in which it forks the next child."""
    request = {"mode": "truth", "input": engine_input(make_event("S0000", 1000).decode(), 1000)}
    for pause, name in ((0.0, "one after another"), (0.005, "5 ms apart")):
        took = []
        for _ in range(CALLS):
            time.sleep(pause)
            began = time.perf_counter()
            found = call_engine(request, 10.0, 512)
            took.append((time.perf_counter() - began) * 1000)
            assert "ok" in found, found
        print(f"a call of the engine in its host, {name:17} {quantiles(took)}")
    close_host()


def quantiles(values: list[float]) -> str:
    ordered = sorted(values) or [float("nan")]
    p50, p95 = (ordered[int(len(ordered) * share)] for share in (0.5, 0.95))
    return f"p50 {p50:.1f}  p95 {p95:.1f}  max {ordered[-1]:.1f} ms"


def show_lag(symbols: int, seconds: int) -> None:
    with tempfile.TemporaryDirectory() as directory, Bench(Path(directory), symbols, 1000, 200).running() as bench:
        warm = 5
        first = bench.coming() + warm * 1000
        last = first + (seconds - 1) * 1000
        before = 0.0
        for at in range(first - warm * 1000, last + 1, 1000):
            bench.wait_for_turn(at)
            bench.append(at)
            before = before if at > first else cpu_seconds(bench.pid)
        time.sleep(max(0.0, (last + 2000) / 1000 - time.time()))
        used = cpu_seconds(bench.pid) - before
        behind = bench.ask(PLANNED, first=first, last=last)[0][2]
        wait_until(lambda: bench.ask(PLANNED, first=first, last=last)[0][2] == 0, 300, "every run is settled")
        lags = bench.ask(LAGS, first=first, last=last)
        planned, failed, _ = bench.ask(PLANNED, first=first, last=last)[0]
        print(f"{symbols} symbols each second for {seconds} s, load {os.getloadavg()[0]:.1f}; from the intended time")
        print(f"to Started     {quantiles([float(started) for started, _ in lags])}")
        print(f"to Completed   {quantiles([float(completed) for _, completed in lags])}")
        print(f"{len(lags)} of {symbols * seconds} completed, {failed} of {planned} planned failed;", end=" ")
        print(f"{behind} were not settled 2 s after the last was due")
        print(f"the whole service used {used / seconds:.2f} cores")


def main() -> None:
    given = [int(word) for word in sys.argv[1:4]]
    runs, symbols, seconds = given + [2000, 200, 60][len(given) :]
    show_rate(runs)
    show_lag(symbols, seconds)


if __name__ == "__main__":
    main()
