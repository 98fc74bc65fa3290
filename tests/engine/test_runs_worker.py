"""Runs on a real prefork worker, with the planner, the dispatcher and the reaper of this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from models.engine import operations
from models.engine.workers import list_engines
from models.kernel.jobs import Held
from models.kernel.session import statement
from orchestrator_cli.migrate import ROOT
from orchestrator_tasks.dispatcher import Dispatcher
from tests.engine import desk
from tests.engine.desk import DELAY_MS, INTERVAL_MS, START_MS, inputs, plan, running
from tests.engine.test_runs_tasks import FULL, now, types_of
from tests.service.waiting import eventually
from tests.tasks import nodes
from tests.tasks.conftest import valkey

__all__ = ["valkey"]

Start = Callable[..., nodes.WorkerProcess]


@pytest.fixture
def start(database: str, valkey: redis.Redis, broker: str, tmp_path: Path) -> Iterator[Start]:
    """Starts cpu workers with the gated engine; ends them at last."""
    started: list[nodes.WorkerProcess] = []

    def begin(**settings: str) -> nodes.WorkerProcess:
        environment = {
            **os.environ,
            "BROKER_URL": broker,
            "PYTHONPATH": str(ROOT),
            "ENGINE_MODULE": "tests.engine.gated",
        }
        log = tmp_path / f"cpu{len(started)}.log"
        worker = nodes.WorkerProcess("cpu", log, environment | settings, "--pool", "prefork", "--without-mingle")
        started.append(worker.start())
        worker.ready()
        return worker

    yield begin
    for worker in started:
        worker.teardown()


def gated(symbol: str, gate: Path, timestamp_ms: int = START_MS) -> dict[str, Any]:
    market = {**FULL["market"], "structure_levels": {"gate": str(gate)}}
    return inputs(timestamp_ms, symbol, market=market)


def began(gate: Path) -> int:
    path = gate.with_suffix(".began")
    return len(path.read_text()) if path.exists() else 0


def dispatch_until(condition: Callable[[], Any], what: str) -> None:
    dispatcher = Dispatcher()

    def look() -> Any:
        dispatcher.refill("cpu")
        dispatcher.sweep()
        return condition()

    eventually(look, within=60, what=what)


def lose_all() -> None:
    """What the reaper does once the leases have run out."""
    held = [
        Held(j["id"], j["subject_id"], j["fence"], j["attempt"], j["max_attempts"]) for j in desk.jobs() if j["fence"]
    ]
    with statement() as connection:
        operations.lose_runs(connection, held)


def one_run(gate: Path, mode: str = "hysteresis") -> dict[str, Any]:
    running(engine={"engine_mode": mode, "timeout_ms": 60_000})
    desk.append(gated("BTC-USD", gate), now_ms=START_MS)
    plan(START_MS + DELAY_MS + 1)
    return desk.runs()[0]


def test_a_worker_that_is_killed_in_the_middle_of_a_run_changes_nothing_of_what_is_told(
    start: Start, gate: Path
) -> None:
    run = one_run(gate)
    worker = start()
    dispatch_until(lambda: began(gate) == 1, "the engine has begun")
    assert worker.process is not None
    children = subprocess.run(["pgrep", "-P", str(worker.process.pid)], capture_output=True, text=True, check=True)
    for pid in [worker.process.pid, *map(int, children.stdout.split())]:
        os.kill(pid, signal.SIGKILL)
    worker.process.wait(30)
    lose_all()
    assert (now(run)["state"], now(run)["attempts"]) == ("waiting", 0)
    gate.unlink()
    start()
    dispatch_until(lambda: now(run)["state"] == "completed", "another worker completes the run")
    assert types_of(run) == ["EngineRunStarted", "HysteresisDecisionPublished", "EngineRunCompleted"]
    assert now(run)["attempts"] == 1
    assert len(desk.rows("SELECT * FROM engine_states")) == 1


def test_a_worker_says_which_engine_it_has_and_its_runs_name_it(start: Start, gate: Path) -> None:
    run = one_run(gate, mode="truth")
    gate.unlink()
    start()

    def engines() -> list[str]:
        with statement() as connection:
            return [each.module for each in list_engines(connection)]

    eventually(lambda: engines() == ["tests.engine.gated"], within=20, what="the worker that beats is believed")
    dispatch_until(lambda: now(run)["state"] == "completed", "the run is completed")
    assert now(run)["engine_module"] == "tests.engine.gated"


def test_a_worker_that_is_told_to_stop_gives_its_run_back_within_seconds(start: Start, gate: Path) -> None:
    run = one_run(gate, mode="truth")
    worker = start()
    dispatch_until(lambda: began(gate) == 1, "the engine has begun")
    worker.kill("SIGTERM")
    assert (now(run)["state"], now(run)["attempts"]) == ("waiting", 0)
    assert desk.jobs()[0]["fence"] is None
    gate.unlink()
    start()
    dispatch_until(lambda: now(run)["state"] == "completed", "another worker completes the run")
    assert types_of(run) == ["EngineRunStarted", "EngineRunCompleted"]


def test_a_slow_symbol_holds_up_no_other_and_each_keeps_its_order(start: Start, gate: Path) -> None:
    running(engine={"timeout_ms": 60_000})
    open_gate = gate.with_name("open")
    for n in range(4):
        at = START_MS + n * INTERVAL_MS
        desk.append(gated("BTC-USD", gate, at), gated("ETH-USD", open_gate, at), now_ms=at)
    plan(START_MS + 3 * INTERVAL_MS + DELAY_MS + 1)
    start()

    def states(symbol: str) -> list[str]:
        return [run["state"] for run in desk.runs() if run["symbol"] == symbol]

    dispatch_until(lambda: states("ETH-USD") == ["completed"] * 4, "the fast symbol is done")
    assert states("BTC-USD") == ["started", "planned", "planned", "planned"]
    gate.unlink()
    dispatch_until(lambda: states("BTC-USD") == ["completed"] * 4, "the slow one is done too")
    for symbol in desk.SYMBOLS:
        stamps = [row["engine_timestamp_ms"] for row in desk.outputs() if row["symbol"] == symbol]
        assert stamps == sorted(stamps)
        assert len(stamps) == 8


def test_a_cpu_worker_whose_engine_is_none_says_so_in_a_line_and_does_not_start(
    database: str, broker: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "BROKER_URL": broker, "PYTHONPATH": str(ROOT), "ENGINE_MODULE": "nobody.here"}
    command = [sys.executable, "-m", "celery", "--app", "orchestrator_tasks.app", "worker", "--queues", "cpu"]
    ended = subprocess.run(
        [*command, "--hostname", "cpu@%h"],
        cwd=ROOT,
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "ENGINE_MODULE=nobody.here: " in ended.stderr
    assert "Traceback" not in ended.stderr
