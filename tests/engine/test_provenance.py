"""Which engine made a run: recorded with it, shown, and no part of what a replay compares."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.engine import operations
from models.engine.divergence import verify
from models.kernel.jobs import Held
from models.kernel.session import statement
from models.kernel.settings import settings
from orchestrator_tasks import hints
from orchestrator_tasks.engine import tasks
from orchestrator_tasks.engine.adapter import LONGEST_VERSION, Engine
from orchestrator_tasks.engine.hosts import check_engine, close_host
from orchestrator_tasks.keeper import Keeper
from tests.engine import desk
from tests.engine.carried import example, exported
from tests.engine.test_runs_tasks import carry_out, configured, due, now, planned
from tests.web.service import Api

SOURCE = """
from examples.regime_engine.engine import run_with_hysteresis
from examples.regime_engine import engine
from examples.regime_engine.contracts import RegimeInputSnapshot

__version__ = {version!r}


def run(snapshot: RegimeInputSnapshot):
    {body}
"""
ANSWERS = "return engine.run(snapshot)"

Make = Callable[..., str]


@pytest.fixture
def engine(
    database: str, environment: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Make]:
    """Makes an engine of this version the one that is called; answers its module."""
    monkeypatch.setattr(tasks, "keeper", Keeper())
    monkeypatch.setattr(hints, "send", lambda *_: None)
    environment.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, version: object = "1", body: str = ANSWERS) -> str:
        (tmp_path / f"{name}.py").write_text(SOURCE.format(version=version, body=body))
        environment.setenv("ENGINE_MODULE", name)
        settings.cache_clear()
        return name

    yield make
    close_host()


def made_by(run: dict[str, Any]) -> tuple[str | None, str | None]:
    found = now(run)
    return found["engine_module"], found["engine_version"]


def test_a_run_names_the_engine_that_made_it_and_its_version(engine: Make) -> None:
    configured()
    engine("first_engine", "1.2.0")
    first = planned()
    assert carry_out(first) == "completed"
    engine("second_engine", "2.0")
    second = planned(n=1)
    assert carry_out(second) == "completed"
    assert [made_by(first), made_by(second)] == [("first_engine", "1.2.0"), ("second_engine", "2.0")]


def test_a_run_for_which_no_engine_was_called_names_none(engine: Make) -> None:
    configured()
    engine("first_engine")
    run = planned("BTC-USD", desk.trade())
    assert carry_out(run) == "failed"
    assert made_by(run) == (None, None)


def test_a_retry_tells_which_engine_it_was_and_the_run_names_the_last(engine: Make) -> None:
    configured()
    engine("first_engine", "1", body="raise ValueError('not today')")
    run = planned()
    assert carry_out(run) == "waiting"
    (told,) = desk.rows("SELECT body FROM ledger WHERE topic = 'engine_run_waiting'")
    assert (told["body"]["engine_module"], told["body"]["engine_version"]) == ("first_engine", "1")
    engine("second_engine", "2")
    due(run)
    assert carry_out(run) == "completed"
    assert made_by(run) == ("second_engine", "2")


def test_a_run_whose_workers_were_lost_names_the_engine_that_failed_before(engine: Make) -> None:
    configured()
    engine("first_engine", "1", body="raise ValueError('not today')")
    run = planned()
    assert carry_out(run) == "waiting"
    for _ in range(5):
        due(run)
        attempt = desk.take(run)
        job = desk.job_of(run["id"])
        with statement() as connection:
            operations.lose_runs(connection, [Held(job["id"], run["id"], attempt.fence, job["attempt"], 9)])
    assert now(run)["error_detail"] == operations.WORKERS_LOST
    assert made_by(run) == ("first_engine", "1")


def test_an_engine_that_has_ended_its_host_is_named(engine: Make) -> None:
    configured(engine_retry={"max_attempts": 1})
    engine("first_engine", "1", body="import os, signal; os.kill(os.getppid(), signal.SIGKILL); signal.pause()")
    run = planned()
    assert carry_out(run) == "failed"
    assert made_by(run) == ("first_engine", "1")


def test_which_engine_it_was_is_in_the_export_and_no_divergence(engine: Make) -> None:
    configured()
    engine("first_engine", "1.2.0")
    assert carry_out(planned()) == "completed"
    lines = exported()
    (run,) = [body for line in lines if (body := json.loads(line))["kind"] == "run"]
    assert (run["engine_module"], run["engine_version"]) == ("first_engine", "1.2.0")
    assert verify(lines, example()) is None
    assert "first_engine" not in str([row["event"] for row in desk.outputs()])


def test_the_answer_for_a_run_names_its_engine(engine: Make, api: Api) -> None:
    configured()
    engine("first_engine", "1.2.0")
    run = planned()
    carry_out(run)
    told = api.get(f"/engine/runs/{run['id']}").get_json()
    assert (told["engine_module"], told["engine_version"]) == ("first_engine", "1.2.0")


@pytest.mark.parametrize(
    ("version", "shown"),
    [("1.2.0", "1.2.0"), ("", None), ((1, 2), None), ("1\n\0 2", "1 ? 2"), ("x" * 999, "x" * LONGEST_VERSION)],
)
def test_a_version_is_a_short_text_or_none(engine: Make, version: object, shown: str | None) -> None:
    name = engine("versioned_engine", version)
    sys.modules.pop(name, None)
    assert Engine.load(name).version == shown
    assert check_engine()["version"] == shown
