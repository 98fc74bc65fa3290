"""Which engine the workers run: announced at their start, shown, and what configurations are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.engine import workers
from models.engine.workers import Running, find_misfits
from models.kernel.errors import InvalidSettings, Unavailable
from models.kernel.processes import process_id
from models.kernel.session import statement, transaction
from models.kernel.settings import settings
from orchestrator_cli.doctor import engine
from orchestrator_cli.doctor.findings import FAIL, OK, WARN
from orchestrator_tasks.engine import announce, tasks
from orchestrator_tasks.engine.adapter import Engine
from orchestrator_tasks.engine.hosts import close_host
from orchestrator_tasks.keeper import Keeper
from tests.engine import desk
from tests.tasks.conftest import Clock, time
from tests.web.service import Api, assert_problem

__all__ = ["time"]

TAKES = {"decay_factor": False, "update_interval_ms": False}
EXAMPLE = "examples.regime_engine.engine"


def start_worker(
    module: str = EXAMPLE, version: str | None = None, options: dict[str, bool] | None = None, worker: str = "cpu@a:1"
) -> None:
    """A worker has announced its engine, and beats."""
    with transaction() as connection:
        workers.announce(connection, worker, module=module, version=version, options=options)
    desk.change(
        "INSERT INTO processes (id, role, host, pid) VALUES (:id, 'cpu', 'a', 1)"
        " ON CONFLICT (id) DO UPDATE SET beat_at = clock_timestamp()",
        id=worker,
    )


def fall_silent(worker: str = "cpu@a:1") -> None:
    desk.change("UPDATE processes SET beat_at = beat_at - interval '1 hour' WHERE id = :id", id=worker)


def engines() -> list[tuple[str, str | None, int]]:
    with statement() as connection:
        return [(each.module, each.version, each.workers) for each in workers.list_engines(connection)]


def test_the_engines_are_those_of_the_workers_that_are_alive_the_newest_first(database: str) -> None:
    assert engines() == []
    start_worker("first", "1", worker="cpu@a:1")
    start_worker("first", "1", worker="cpu@b:1")
    start_worker("second", worker="cpu@c:1")
    assert engines() == [("second", None, 1), ("first", "1", 2)]
    fall_silent("cpu@b:1")
    fall_silent("cpu@c:1")
    assert engines() == [("first", "1", 1)]


def test_a_worker_that_starts_anew_under_the_same_name_says_what_it_has_now(database: str) -> None:
    start_worker("first", "1")
    start_worker("second", "2")
    assert engines() == [("second", "2", 1)]


def test_what_is_known_of_workers_long_gone_is_deleted(database: str) -> None:
    start_worker("first", worker="cpu@old:1")
    start_worker("first", worker="cpu@silent:1")
    desk.change("DELETE FROM processes WHERE id = 'cpu@old:1'")
    desk.change("UPDATE engine_workers SET announced_at = announced_at - interval '2 hours'")
    start_worker("second", worker="cpu@new:1")
    assert {row["id"] for row in desk.rows("SELECT id FROM engine_workers")} == {"cpu@silent:1", "cpu@new:1"}


# what a worker says


@pytest.fixture
def file(database: str, environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where the configuration file would be."""
    path = tmp_path / "engine.toml"
    environment.setenv("ORCHESTRATOR_ENGINE_CONFIG", str(path))
    settings.cache_clear()
    yield path
    close_host()


def announced() -> list[dict[str, Any]]:
    return desk.rows("SELECT id, engine_module, engine_version, options FROM engine_workers")


def test_a_worker_announces_its_engine_with_or_without_a_file(file: Path) -> None:
    announce.begin_worker("cpu")
    (row,) = announced()
    assert (row["id"], row["engine_module"], row["engine_version"]) == (process_id("cpu"), EXAMPLE, None)
    assert row["options"] == dict.fromkeys(
        (
            "decay_factor",
            "min_confidence_floor",
            "min_confidence_for_flip",
            "min_persistence_updates",
            "update_interval_ms",
        ),
        False,
    )


def test_a_worker_without_an_engine_and_without_a_file_announces_nothing(
    file: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("ENGINE_MODULE", "nobody.here")
    settings.cache_clear()
    announce.begin_worker("cpu")
    assert announced() == []


def test_a_worker_with_a_file_and_no_engine_does_not_begin(file: Path, environment: pytest.MonkeyPatch) -> None:
    file.write_text("")
    environment.setenv("ENGINE_MODULE", "nobody.here")
    settings.cache_clear()
    with pytest.raises(InvalidSettings, match=r"ENGINE_MODULE=nobody\.here"):
        announce.begin_worker("cpu")


def test_a_worker_waits_for_a_database_that_is_away(file: Path, time: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "keeper", Keeper())
    whole, refusals = announce.announce, iter(range(3))

    def away(*said: Any) -> None:
        if next(refusals, None) is not None:
            raise Unavailable("away")
        whole(*said)

    monkeypatch.setattr(announce, "announce", away)
    announce.begin_worker("cpu")
    assert len(announced()) == 1


ENGINE = """
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Options:
    depth: int
    width: int = 3
    names: list = field(default_factory=list)


def run(snapshot): ...
def run_with_hysteresis(snapshot, state{config}): ...
"""


@pytest.mark.parametrize(
    ("config", "takes"),
    [
        (", config: Options", {"depth": True, "width": False, "names": False}),
        (", config: Options | None = None", {"depth": True, "width": False, "names": False}),
        (", config", None),
        ("", {}),
    ],
)
def test_what_an_engine_takes_is_read_from_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, takes: dict[str, bool] | None
) -> None:
    name = f"taking_{len(config)}"
    (tmp_path / f"{name}.py").write_text(ENGINE.format(config=config))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Engine.load(name).options == takes


# what configurations are held against


Case = tuple[dict[str, bool] | None, dict[str, Any] | None, list[str]]
CASES: dict[str, Case] = {
    "what it takes": (TAKES, {"decay_factor": 1}, []),
    "a misspelt one": (
        TAKES,
        {"decay_faktor": 1},
        ["engine.hysteresis.decay_faktor: is no option of m; did you mean decay_factor?"],
    ),
    "one of none": ({}, {"x": 1}, ["engine.hysteresis.x: is no option of m"]),
    "one that is lacking": (
        {"depth": True, "width": False},
        {"width": 1},
        ["engine.hysteresis.depth: is required by m"],
    ),
    "none at all, with which it is called without": ({"depth": True}, {}, []),
    "null": ({"depth": True}, None, []),
    "an engine that takes anything": (None, {"x": 1}, []),
}


@pytest.mark.parametrize(("takes", "options", "wrong"), CASES.values(), ids=CASES)
def test_options_that_the_engine_does_not_take_are_named(
    takes: dict[str, bool] | None, options: dict[str, Any] | None, wrong: list[str]
) -> None:
    assert find_misfits([Running("m", None, takes)], options) == wrong


def test_options_are_right_as_long_as_one_engine_takes_them() -> None:
    old, new = Running("old", "1", TAKES), Running("new", "2", {"depth": False})
    assert find_misfits([new, old], {"decay_factor": 1}) == find_misfits([new, old], {"depth": 1}) == []
    assert find_misfits([new, old], {"colour": 1}) == ["engine.hysteresis.colour: is no option of new"]
    assert find_misfits([], {"colour": 1}) == []


def with_options(**options: Any) -> dict[str, Any]:
    return desk.body(engine={"hysteresis": options})


def test_a_configuration_that_the_workers_engine_does_not_take_is_refused_where_it_is_posted(api: Api) -> None:
    desk.configure()
    start_worker(options=TAKES)
    problem = assert_problem(api.post("/engine/config", json=with_options(decay_faktor=0.5)), 422)
    assert problem["code"] == "config_invalid"
    assert problem["errors"] == [
        {
            "pointer": "/engine/hysteresis/decay_faktor",
            "detail": f"is no option of {EXAMPLE}; did you mean decay_factor?",
        }
    ]
    assert desk.engine_row()["config_version"] == 1
    assert len(desk.rows("SELECT * FROM engine_configs")) == 1
    assert api.post("/engine/config", json=with_options(decay_factor=0.5)).status_code == 200


def test_while_no_worker_is_alive_a_configuration_is_taken_and_its_misfit_shown_once_one_is(api: Api) -> None:
    start_worker(options=TAKES)
    fall_silent()
    assert api.post("/engine/config", json=with_options(decay_faktor=0.5)).status_code == 200
    assert api.get("/engine/status").get_json()["config_error"] is None
    start_worker(options=TAKES)
    assert "decay_faktor: is no option" in api.get("/engine/status").get_json()["config_error"]


def test_the_status_says_which_engine_the_workers_run(api: Api, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ENGINE_MODULE", "of.the.web")
    settings.cache_clear()
    status = api.get("/engine/status").get_json()
    assert (status["engine_module"], status["engine_version"], status["engines"]) == (None, None, [])
    start_worker("first", "1.2.0", worker="cpu@a:1")
    start_worker("first", "1.2.0", worker="cpu@b:1")
    status = api.get("/engine/status").get_json()
    assert (status["engine_module"], status["engine_version"]) == ("first", "1.2.0")
    assert status["engines"] == [{"engine_module": "first", "engine_version": "1.2.0", "workers": 2}]


Look = Callable[[], Any]


@pytest.fixture
def finding(database: str, environment: pytest.MonkeyPatch) -> Look:
    """What the doctor says, in a shell whose ENGINE_MODULE is nobody's."""
    environment.setenv("ENGINE_MODULE", "of.the.shell")
    settings.cache_clear()

    def look() -> Any:
        (found,) = engine.look_at_module()
        return found

    return look


def test_the_doctor_names_the_workers_engine_and_not_the_shell_s(finding: Look) -> None:
    start_worker("first", "1.2.0")
    assert (finding().verdict, finding().found) == (OK, "first 1.2.0, as 1 worker(s) loaded it")
    start_worker("second", worker="cpu@b:1")
    assert finding().verdict == WARN
    assert "second in 1 worker(s); first 1.2.0 in 1 worker(s)" in finding().found


def test_without_a_worker_the_doctor_looks_at_what_one_would_load_here(finding: Look) -> None:
    start_worker()
    fall_silent()
    assert finding().verdict == FAIL
    assert "ENGINE_MODULE=of.the.shell" in finding().found


def test_the_doctor_says_which_options_the_workers_engine_does_not_take(database: str) -> None:
    desk.configure(engine={"hysteresis": {"decay_faktor": 0.5}})
    start_worker(options=TAKES)
    found = {one.check: one for one in engine.look_at_engine()}["engine configuration"]
    assert (found.verdict, "decay_faktor: is no option" in found.found) == (FAIL, True)
