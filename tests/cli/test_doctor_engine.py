"""What the doctor says of the engine, on a database whose rows are put as they would be when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.engine.control import pause_ingestion
from models.kernel.session import transaction
from orchestrator_cli.doctor import engine
from orchestrator_cli.doctor.findings import FAIL, OK, WARN, Finding
from tests.engine import desk

STREAM = {"output_publish": {"stream": "outputs", "max_pending": 4}}


def found() -> dict[str, Finding]:
    return {one.check.removeprefix("engine "): one for one in engine.look_at_engine()}


def verdicts() -> dict[str, str]:
    return {check: one.verdict for check, one in found().items()}


@pytest.mark.usefixtures("database")
def test_an_engine_that_runs_is_well() -> None:
    desk.running()
    desk.change("UPDATE engine_head SET beyond_seq = 10000000")
    desk.change("UPDATE engine_control SET next_tick_ms = extract(epoch FROM clock_timestamp()) * 1000")
    assert set(verdicts().values()) == {OK}
    assert set(verdicts()) == {"configuration", "state", "buffer", "partitions", "cadence", "outputs"}


@pytest.mark.usefixtures("database")
def test_an_engine_without_a_configuration_or_with_a_wrong_file_says_so() -> None:
    assert verdicts() == {"configuration": WARN}
    desk.running()
    desk.change("UPDATE engine_control SET config_error = :why", why="a: must be b\nc: must be d")
    finding = found()["configuration"]
    assert (finding.verdict, finding.found) == (FAIL, "a: must be b (and 1 more)")
    assert "config --accept" in finding.next_step


@pytest.mark.usefixtures("database")
def test_an_engine_that_is_stopped_says_what_to_do() -> None:
    desk.configure()
    assert "engine start" in found()["state"].next_step
    desk.change("UPDATE engine_control SET state = 'stopped'")
    assert found()["state"].verdict == WARN
    assert "engine reset" in found()["state"].next_step


@pytest.mark.usefixtures("database")
def test_a_subscription_that_is_paused_says_why() -> None:
    desk.running(subscription={"stream": "market"})
    with transaction() as connection:
        pause_ingestion(connection, "the stream is away")
    assert (found()["state"].verdict, found()["state"].found) == (WARN, "running: the stream is away")


@pytest.mark.usefixtures("database")
def test_a_log_that_fills_up_warns_and_a_full_one_fails() -> None:
    desk.running(buffer_retention={"max_records": 10})
    for depth, verdict in ((7, OK), (8, WARN), (10, FAIL)):
        desk.change("UPDATE engine_head SET last_seq = :depth", depth=depth)
        assert verdicts()["buffer"] == verdict
    assert found()["buffer"].found == "10 of 10 records"


@pytest.mark.usefixtures("database")
def test_a_tick_that_nobody_plans_fails() -> None:
    desk.running()
    assert found()["cadence"].verdict == FAIL
    assert "beat" in found()["cadence"].next_step


@pytest.mark.usefixtures("database")
def test_missing_partitions_and_outputs_that_are_not_taken_are_warnings() -> None:
    desk.running(**STREAM)
    desk.change("UPDATE engine_head SET beyond_seq = last_seq + 1")
    assert verdicts()["partitions"] == WARN
    assert verdicts()["outputs"] == OK
    desk.change("INSERT INTO engine_publications (name, last_error) VALUES ('stream', 'it is full')")
    assert "0 of 4 wait for outputs: it is full" in found()["outputs"].found
    assert verdicts()["outputs"] == WARN


@pytest.mark.parametrize(("module", "verdict"), [("examples.regime_engine.engine", OK), ("no_such_engine", FAIL)])
def test_the_module_is_loaded_as_a_worker_does(environment: pytest.MonkeyPatch, module: str, verdict: str) -> None:
    environment.setenv("ENGINE_MODULE", module)
    (finding,) = engine.look_at_module()
    assert finding.verdict == verdict
    assert module in finding.found


def test_a_module_that_is_never_imported_fails_in_time(
    environment: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endless_engine.py").write_text("while True: pass\n")
    environment.setenv("ENGINE_MODULE", "endless_engine")
    environment.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(engine, "IMPORT_SECONDS", 1.0)
    (finding,) = engine.look_at_module()
    assert (finding.verdict, finding.found) == (FAIL, "ENGINE_MODULE=endless_engine: it was not imported within 1 s")
