"""Commands about the engine that ask a running service, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator_cli.units import since_epoch
from tests.cli.test_service_commands import asked, assert_refused, run
from tests.engine.market import event, lines_of, snapshot
from tests.service.running import Running
from tests.service.waiting import eventually

INTERVAL_MS = 2000
CONFIG = f"""
[[sources]]
source_id = "binance"
symbols = ["BTC-USD"]
[scheduler]
mode = "boundary"
boundary_interval_ms = {INTERVAL_MS}
boundary_delay_ms = 500
[engine]
engine_mode = "truth"
alignment_ms = {INTERVAL_MS}
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("engine")
    (folder / "engine.toml").write_text(CONFIG)
    running = Running(folder / "home", ORCHESTRATOR_ENGINE_CONFIG=str(folder / "engine.toml"))
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture(scope="module")
def run_id(service: Running) -> str:
    """A run that was completed, by its id."""
    eventually(lambda: next_tick(service), within=30, what="the engine's cadence has begun")
    token = (service.home / "admin.token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/x-ndjson"}

    def completed() -> list[Any]:
        inputs = [snapshot(next_tick(service) - 500 + n * INTERVAL_MS, market={"price": 1}) for n in range(3)]
        httpx.post(f"{service.url}/engine/events", content=lines_of(event(), *inputs), headers=headers)
        return engine(service, "runs", "--status", "completed")["runs"]  # type: ignore[no-any-return]

    eventually(completed, within=30, what="a run is completed")
    return str(completed()[-1]["run_id"])


def next_tick(service: Running) -> Any:
    """When the next tick is due, ms since the epoch: None until the planner's first pass after a start."""
    return engine(service, "status")["scheduler"]["next_tick_ms"]


def engine(service: Running, *words: str, code: int = 0) -> Any:
    return asked(service, "engine", *words, code=code)


def test_a_run_is_listed_and_shown_with_its_outputs(service: Running, run_id: str) -> None:
    found = engine(service, "run", run_id)
    assert [output["event_type"] for output in found["outputs"]] == ["EngineRunStarted", "EngineRunCompleted"]
    assert engine(service, "run", run_id[:16]) == found
    listed = run(service, "engine", "runs", "--symbol", "BTC-USD", "--limit", "1000").stdout
    assert run_id in listed
    shown = run(service, "engine", "run", run_id).stdout
    assert "EngineRunCompleted" in shown
    assert "engine_run_planned" in shown
    assert_refused(run(service, "engine", "run", "0" * 64), 3, "next: `orchestrator engine runs`")


def test_runs_and_outputs_are_chosen_by_what_they_are(service: Running, run_id: str) -> None:
    found = engine(service, "run", run_id)
    at = since_epoch(found["engine_timestamp_ms"])
    listed = engine(service, "runs", "--mode", "truth", "--from", at, "--to", str(found["engine_timestamp_ms"]))
    assert [each["run_id"] for each in listed["runs"]] == [run_id]
    assert engine(service, "runs", "--mode", "hysteresis")["runs"] == []
    assert engine(service, "runs", "--to", str(found["engine_timestamp_ms"] - 1), "--from", at)["runs"] == []
    assert at in run(service, "engine", "runs", "--from", at, "--to", at).stdout
    of_one = ("outputs", "--run-id", run_id, "--event-type", "EngineRunCompleted")
    assert engine(service, *of_one)["events"] == found["outputs"][1:]
    words = ("engine", *of_one, "--follow", "--after", "earliest", "--count", "1", "--json")
    assert json.loads(run(service, *words).stdout) == found["outputs"][1]


@pytest.mark.usefixtures("run_id")
def test_outputs_are_read_page_by_page_and_followed(service: Running) -> None:
    page = engine(service, "outputs", "--symbol", "BTC-USD", "--limit", "1")
    assert len(page["events"]) == 1
    after = engine(service, "outputs", "--limit", "1", "--after", page["next"])
    assert after["events"] != page["events"]
    assert page["next"] in run(service, "engine", "outputs", "--limit", "1").stdout
    followed = run(service, "engine", "outputs", "--follow", "--after", "earliest", "--count", "2", "--json").stdout
    assert json.loads(followed.splitlines()[0]) == page["events"][0]
    lines = run(service, "engine", "outputs", "--follow", "--after", "earliest", "--count", "2").stdout.splitlines()
    assert page["events"][0]["run_id"] in lines[0]
    assert len(lines) == 2


def test_the_database_is_exported_and_replayed(service: Running, run_id: str, tmp_path: Path) -> None:
    file = str(tmp_path / "day.jsonl")
    assert engine(service, "export", file)["run"] >= 1
    told = engine(service, "replay", file, "--verify")
    assert told["verified"] is True
    assert run_id in Path(file).read_text()
    assert engine(service, "replay", "--to-run", str(told["runs"]))["digest"] == told["digest"]


@pytest.mark.usefixtures("run_id")
def test_marks_are_set_listed_and_removed(service: Running) -> None:
    assert engine(service, "marks", "set", "audit", "--at", "1")["ingest_seq"] == 1
    assert [mark["name"] for mark in engine(service, "marks", "list")["marks"]] == ["audit"]
    assert run(service, "engine", "marks", "remove", "audit").stdout == "removed audit\n"
    assert_refused(run(service, "engine", "marks", "remove", "audit"), 3, "next: `orchestrator engine marks list`")


def test_another_configuration_is_accepted_and_a_wrong_one_refused(service: Running, tmp_path: Path) -> None:
    before = engine(service, "config")
    file = tmp_path / "engine.toml"
    file.write_text(CONFIG.replace("500", "600"))
    accepted = engine(service, "config", "--accept", str(file))
    assert accepted["config"]["scheduler"]["boundary_delay_ms"] == 600
    assert engine(service, "config", "--version", str(before["version"])) == before
    assert str(accepted["digest"]) in run(service, "engine", "config").stdout
    file.write_text(CONFIG.replace(f"alignment_ms = {INTERVAL_MS}", "alignment_ms = 1500"))
    done = run(service, "engine", "config", "--accept", str(file))
    assert_refused(done, 3, "boundary_interval_ms", "next: `orchestrator engine config --check FILE`")
    assert_refused(run(service, "engine", "config", "--check", "a", "--version", "1"), 2, "give one of")
    (tmp_path / "again.toml").write_text(CONFIG)
    assert engine(service, "config", "--accept", str(tmp_path / "again.toml")) == before


@pytest.mark.usefixtures("run_id")
def test_the_engine_is_drained_stopped_reset_and_started(service: Running) -> None:
    assert_refused(run(service, "engine", "start"), 3, "starts from init or drained")
    for verb, state in (("drain", "drained"), ("stop", "stopped"), ("reset", "init"), ("start", "running")):
        assert engine(service, verb)["state"] == state
    lines = run(service, "engine", "status").stdout
    assert "buffer depth" in lines
    assert "scheduler lag" in lines


@pytest.mark.usefixtures("run_id")
def test_the_status_tells_a_dead_subscription_and_a_dead_planner_from_a_running_engine(service: Running) -> None:
    def status() -> str:
        return run(service, "engine", "status").stdout

    eventually(lambda: next_tick(service), within=30, what="the engine's cadence has begun")
    eventually(lambda: "doctor" not in status(), within=30, what="all is well")
    relay = service.pid_of("relay")
    asked(service, "schedules", "pause", "engine")
    os.kill(relay, signal.SIGSTOP)
    try:
        eventually(lambda: "relay is missing" in status(), within=30, what="the subscription is told to be dead")
        eventually(lambda: "overdue" in status(), within=30, what="the planner is told to be dead")
        assert engine(service, "status")["state"] == "running"
    finally:
        os.kill(relay, signal.SIGCONT)
        asked(service, "schedules", "resume", "engine")
    eventually(lambda: "doctor" not in status(), within=30, what="both are back")


@pytest.mark.usefixtures("run_id")
def test_the_doctor_looks_at_the_engine_of_a_running_service(service: Running) -> None:
    found = {one["check"]: one["verdict"] for one in asked(service, "doctor")["findings"]}
    assert {verdict for check, verdict in found.items() if check.startswith("engine")} == {"ok"}
