"""The service with an engine that runs every second, a feed for it, and what must be true of its runs at the end."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson

from orchestrator_cli.embedded.valkey import Valkey
from orchestrator_cli.migrate import ROOT
from tests.cli.service import command
from tests.engine.market import event, lines_of, snapshot
from tests.service.running import Running
from tests.service.waiting import eventually

SYMBOLS = ("BTC-USD", "ETH-USD", "SOL-USD")
INTERVAL_MS, DELAY_MS = 1000, 300
STREAM = "test:outputs"
MODULE = "tests.service.odd_engine"
NDJSON = {"Content-Type": "application/x-ndjson"}
NOW = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
ENDS = {"EngineRunCompleted", "EngineRunFailed"}

CONFIG: dict[str, Any] = {
    "autostart": False,
    "sources": [{"source_id": "binance", "symbols": [*SYMBOLS]}],
    "scheduler": {"mode": "boundary", "boundary_interval_ms": INTERVAL_MS, "boundary_delay_ms": DELAY_MS},
    "engine": {
        "engine_mode": "hysteresis",
        "alignment_ms": INTERVAL_MS,
        "timeout_ms": 60_000,
        "hysteresis": {"update_interval_ms": INTERVAL_MS},
    },
    "engine_retry": {"min_delay_ms": 100, "max_delay_ms": 100, "max_attempts": 2},
    "publish_retry": {"min_delay_ms": 100, "max_delay_ms": 200, "max_attempts": 5},
    "output_publish": {"stream": STREAM, "max_block_ms": 1000},
}


def toml(config: dict[str, Any]) -> str:
    """The configuration as a file; JSON's values are TOML's here."""
    lines = [f"autostart = {json.dumps(config['autostart'])}"]
    for source in config["sources"]:
        lines += ["[[sources]]", *(f"{name} = {json.dumps(value)}" for name, value in source.items())]
    for table, values in config.items():
        if isinstance(values, dict):
            plain = {name: value for name, value in values.items() if not isinstance(value, dict)}
            inner = {name: value for name, value in values.items() if isinstance(value, dict)}
            lines += [f"[{table}]", *(f"{name} = {json.dumps(value)}" for name, value in plain.items())]
            for name, more in inner.items():
                lines += [f"[{table}.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in more.items())]
    return "\n".join(lines) + "\n"


class EngineService(Running):
    """A running service whose engine stands still until a test starts it."""

    def __init__(self, home: Path) -> None:
        file = home.with_name("engine.toml")
        file.write_text(toml(CONFIG))
        super().__init__(home, ORCHESTRATOR_ENGINE_CONFIG=str(file), ENGINE_MODULE=MODULE)

    def status(self) -> dict[str, Any]:
        answer = self.ask("GET", "/engine/status")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def act(self, verb: str) -> None:
        answer = self.ask("POST", f"/engine/{verb}")
        assert answer.status_code == 200, answer.text

    def configure(self, **tables: Any) -> None:
        """Plan by the test's configuration, with other values in some of its tables."""
        body = {**CONFIG, **{name: {**CONFIG.get(name, {}), **values} for name, values in tables.items()}}
        answer = self.ask("POST", "/engine/config", json=body)
        assert answer.status_code == 200, answer.text

    def send(self, *events: Any) -> httpx.Response:
        return self.ask("POST", "/engine/events", content=lines_of(*events), headers=NDJSON)

    def control(self) -> dict[str, Any]:
        return self.row(f"SELECT *, {NOW} AS now_ms FROM engine_control")

    def runs(self, after: int = 0) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM engine_runs WHERE number > %s ORDER BY number", after)

    def owner(self) -> dict[str, str]:
        """The environment of another of its processes."""
        servers = {"DATABASE_URL": self.database_url, "BROKER_URL": Valkey(self.home / "valkey").url()}
        return {**self.environment, **servers}

    def engine_command(self, *arguments: str) -> dict[str, Any]:
        made = subprocess.run(
            [*command("engine", *arguments), "--json"],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert made.returncode == 0, made.stderr.decode()
        return dict(orjson.loads(made.stdout))


def inputs(timestamp_ms: int, symbol: str, **levels: Any) -> dict[str, Any]:
    """SnapshotInputs; `levels` are for the engine to obey."""
    market = {"price": 100 + timestamp_ms // INTERVAL_MS % 9, "vwap": 103, "atr": 2, "structure_levels": levels}
    return snapshot(timestamp_ms, symbol, market=market, flow={"cvd_slope": timestamp_ms // INTERVAL_MS % 5 - 2})


class Feed:
    """For the length of a block: the engine runs, and events of all symbols come in a few times a second.

    At the end the engine is drained, whatever was planned has ended, and all that is promised of it is true.
    """

    def __init__(self, service: EngineService) -> None:
        self.service = service
        self.over = threading.Event()
        self.accepted = 0
        self.orders: dict[str, dict[str, Any]] = {}
        self.pool = ThreadPoolExecutor(1)
        self.feeding: Future[None] | None = None

    def __enter__(self) -> Feed:
        self.before = self.service.control()
        self.number = self.service.row("SELECT coalesce(max(number), 0) AS n FROM engine_runs")["n"]
        self.output = self.service.row("SELECT coalesce(max(seq), 0) AS n FROM engine_outputs")["n"]
        self.service.act("start")
        self.feeding = self.pool.submit(self.feed)
        self.await_ticks(2)
        return self

    def order(self, symbol: str, **levels: Any) -> None:
        """From now on the snapshots of a symbol ask this of the engine."""
        self.orders[symbol] = levels

    def feed(self) -> None:
        with self.service.client() as client:
            while not self.over.wait(0.15):
                try:
                    at = self.timestamp()
                    body = lines_of(*(inputs(at, s, **self.orders.get(s, {})) for s in SYMBOLS), event("TradeTick"))
                    answer = client.post("/engine/events", content=body, headers=NDJSON, timeout=20)
                    self.accepted += answer.status_code == 201
                except httpx.HTTPError:
                    continue

    def timestamp(self) -> int:
        """The boundary whose inputs fit in now: behind it is its delay, before it the one of the last."""
        now = time.time_ns() // 1_000_000
        return (now + INTERVAL_MS - DELAY_MS) // INTERVAL_MS * INTERVAL_MS

    # waiting

    def ticks(self) -> int:
        return int(self.service.row("SELECT ticks FROM engine_control")["ticks"])

    def await_ticks(self, more: int) -> None:
        """So many ticks from now on are planned, and a run of each symbol among them is completed."""
        ticks = eventually(self.look(self.ticks), within=60, what="the planner's rows can be read") or 0
        eventually(self.look(lambda: self.ticks() >= ticks + more), within=60, what=f"{more} more ticks are planned")
        number = self.service.row("SELECT coalesce(max(number), 0) AS n FROM engine_runs")["n"]
        question = "SELECT count(DISTINCT symbol) AS n FROM engine_runs WHERE number > %s AND state = 'completed'"
        free = len([s for s in SYMBOLS if s not in self.orders])
        eventually(
            self.look(lambda: self.service.row(question, number)["n"] >= free), within=90, what="runs are completed"
        )

    @staticmethod
    def look(question: Callable[[], Any]) -> Callable[[], Any]:
        """A server that is being started again has no answer yet."""

        def ask() -> Any:
            try:
                return question()
            except Exception:
                return None

        return ask

    def __exit__(self, failed: Any, *_: object) -> None:
        self.over.set()
        assert self.feeding is not None
        self.feeding.result(60)
        self.pool.shutdown()
        if failed is None:
            self.service.act("drain")
            self.await_end()
            self.check()

    def await_end(self) -> None:
        question = "SELECT number FROM engine_runs WHERE state NOT IN ('completed', 'failed')"
        eventually(self.look(lambda: not self.service.rows(question)), within=120, what="all runs have ended")

    # what is promised

    def check(self) -> None:
        control, runs = self.service.control(), self.service.runs(self.number)
        check_ticks(self.before, control, runs)
        question = "SELECT * FROM engine_outputs WHERE seq > %s ORDER BY seq"
        check_outputs(runs, [dict(row) for row in self.service.rows(question, self.output)])
        check_replay(self.service, self.number, len(runs))


def check_ticks(before: dict[str, Any], control: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """Each tick was planned once, in order, with one run of each symbol that had something new."""
    ticks, skipped = (control[name] - before[name] for name in ("ticks", "skipped_ticks"))
    assert control["missed_ticks"] == before["missed_ticks"]
    assert len(runs) + skipped == ticks * len(SYMBOLS)
    first = control["last_tick_ms"] - (ticks - 1) * INTERVAL_MS
    planned = range(first, control["last_tick_ms"] + 1, INTERVAL_MS)
    assert {run["planned_ts_ms"] for run in runs} <= set(planned)
    for symbol in SYMBOLS:
        mine = [run for run in runs if run["symbol"] == symbol]
        times = [run["planned_ts_ms"] for run in mine]
        assert times == sorted(set(times))
        assert all(run["engine_timestamp_ms"] == run["planned_ts_ms"] - DELAY_MS for run in mine)
        ends = [run["cut_end_ingest_seq"] for run in mine]
        assert [run["cut_start_ingest_seq"] for run in mine[1:]] == [end + 1 for end in ends[:-1]]


def check_outputs(runs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
    """Of each run one start, then one end; of each symbol one run after the other."""
    told: dict[str, list[str]] = {}
    of_symbol: dict[str, list[str]] = {}
    for output in outputs:
        told.setdefault(output["run_id"], []).append(output["event_type"])
        of_symbol.setdefault(output["symbol"], []).append(output["run_id"])
    assert set(told) == {run["id"] for run in runs}
    for symbol, ids in of_symbol.items():
        in_order = [run["id"] for run in runs if run["symbol"] == symbol]
        assert [run_id for at, run_id in enumerate(ids) if not at or ids[at - 1] != run_id] == in_order
    for run in runs:
        (first, *decided, last) = told[run["id"]]
        assert (first, last in ENDS) == ("EngineRunStarted", True)
        assert decided == (["HysteresisDecisionPublished"] if run["state"] == "completed" else [])


def check_replay(service: EngineService, after: int, runs: int) -> None:
    """The runs, exported, are made again as they were published."""
    file = service.home.with_name("runs.jsonl.gz")
    exported = service.engine_command("export", str(file), "--from-run", str(after + 1))
    replayed = service.engine_command("replay", str(file), "--verify", "--engine", MODULE)
    assert (exported["run"], replayed["runs"], replayed["verified"]) == (runs, runs, True)
    assert replayed["events"] == exported["output"]
