"""The engine as a whole: its lifecycle, its pauses, its configurations."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from models.engine import control
from models.engine.config import read_config
from models.engine.inputs import append_events
from models.kernel.errors import Conflict, IllegalTransition, InvalidSettings, NotFound, Unavailable
from models.kernel.session import statement, transaction
from models.kernel.settings import settings
from orchestrator_cli.migrate import ROOT
from orchestrator_tasks.app import beat_starts, presences
from orchestrator_tasks.engine import config as file
from tests.engine import desk
from tests.kernel.races import meanwhile, together

ACTS: dict[str, Callable[..., Any]] = {
    "start": control.start_engine,
    "drain": control.drain_engine,
    "stop": control.stop_engine,
    "reset": control.reset_engine,
}
ALLOWED = {
    ("init", "start"): "running",
    ("init", "stop"): "stopped",
    ("running", "drain"): "drained",
    ("running", "stop"): "stopped",
    ("drained", "start"): "running",
    ("drained", "stop"): "stopped",
    ("degraded", "stop"): "stopped",
    ("stopped", "reset"): "init",
}


def act(name: str) -> Any:
    with statement() as connection:
        return ACTS[name](connection, desk.CALLER)


def degrade(why: str = "nobody takes outputs") -> bool:
    with statement() as connection:
        return control.degrade_engine(connection, why)


def recover() -> bool:
    with statement() as connection:
        return control.recover_engine(connection, "taken again")


@pytest.mark.parametrize("state", ["init", "running", "drained", "degraded", "stopped"])
@pytest.mark.parametrize("name", ACTS)
def test_the_engine_goes_where_its_machine_allows_and_nowhere_else(database: str, state: str, name: str) -> None:
    desk.configure()
    desk.change("UPDATE engine_control SET state = :state", state=state)
    before = desk.topics("engine")
    if (state, name) in ALLOWED:
        assert act(name)["state"] == ALLOWED[state, name]
        assert len(desk.topics("engine")) == len(before) + 1
        return
    with pytest.raises(IllegalTransition) as refused:
        act(name)
    assert (refused.value.state, refused.value.code) == (state, f"engine_{state}")
    assert desk.engine_row()["state"] == state
    assert desk.topics("engine") == before


def test_an_engine_without_a_configuration_does_not_start(database: str) -> None:
    with pytest.raises(Conflict) as refused:
        act("start")
    assert refused.value.code == "engine_not_configured"
    assert desk.engine_row()["state"] == "init"


def test_each_move_is_told_with_who_made_it(database: str) -> None:
    desk.configure()
    for name in ("start", "drain", "start", "stop", "reset"):
        act(name)
    assert desk.topics("engine") == [
        "engine_configured",
        "engine_started",
        "engine_drained",
        "engine_started",
        "engine_stopped",
        "engine_reset",
    ]
    told = desk.rows("SELECT actor, correlation_id, body FROM ledger WHERE topic = 'engine_drained'")
    assert told == [
        {
            "actor": "tester",
            "correlation_id": "correlation-1",
            "body": {"state": "drained", "config_version": 1, "why": None},
        }
    ]


def test_two_who_drain_at_once_drain_it_once(database: str) -> None:
    desk.running()
    with pytest.raises(IllegalTransition):
        meanwhile(lambda c: control.drain_engine(c, desk.CALLER), lambda c: control.drain_engine(c, desk.CALLER))
    assert desk.topics("engine").count("engine_drained") == 1


def test_a_degraded_engine_says_why_and_counts_how_long_it_was_blocked(database: str) -> None:
    desk.running()
    assert degrade("the stream is away")
    row = desk.engine_row()
    assert (row["state"], row["scheduling_paused"], row["paused_why"]) == ("degraded", True, "the stream is away")
    desk.change("UPDATE engine_control SET blocked_at = blocked_at - interval '90 seconds'")
    assert recover()
    row = desk.engine_row()
    assert (row["state"], row["scheduling_paused"], row["paused_why"]) == ("running", False, None)
    assert row["blocked_at"] is None
    assert 90_000 <= row["blocked_ms"] < 150_000
    assert row["blocks"] == 1


def test_only_a_running_engine_degrades_and_only_a_degraded_one_recovers(database: str) -> None:
    desk.configure()
    assert not degrade()
    assert not recover()
    act("start")
    assert not recover()
    assert degrade()
    assert not degrade()
    assert desk.topics("engine").count("engine_degraded") == 1


def test_a_stop_ends_the_block_and_its_time_is_summed(database: str) -> None:
    desk.running()
    degrade()
    desk.change("UPDATE engine_control SET blocked_at = blocked_at - interval '2 seconds'")
    act("stop")
    row = desk.engine_row()
    assert (row["scheduling_paused"], row["paused_why"], row["blocked_at"]) == (False, None, None)
    assert row["blocked_ms"] >= 2000


def test_a_pause_of_ingestion_is_told_once(database: str) -> None:
    with statement() as connection:
        assert control.pause_ingestion(connection, "the buffer is full")
        assert not control.pause_ingestion(connection, "the buffer is full")
        assert desk.engine_row()["ingestion_paused"]
        assert control.resume_ingestion(connection)
        assert not control.resume_ingestion(connection)
    assert desk.topics("engine") == ["ingestion_paused", "ingestion_resumed"]


def test_a_stopped_engine_takes_nothing_in_and_a_drained_one_does(database: str) -> None:
    desk.running()
    act("drain")
    desk.append(desk.trade(), now_ms=desk.START_MS)
    act("stop")
    with pytest.raises(Unavailable) as refused:
        desk.append(desk.trade(), now_ms=desk.START_MS)
    assert refused.value.code == "engine_stopped"


# configurations


def current() -> Any:
    with statement() as connection:
        return control.get_config(connection)


def test_before_the_first_configuration_there_is_none(database: str) -> None:
    assert current() is None


def test_each_configuration_is_a_version_and_the_same_one_is_the_same_version(database: str) -> None:
    assert desk.configure() == 1
    assert desk.configure() == 1
    assert desk.configure(engine={"timeout_ms": 3000}) == 2
    version, config = current()
    assert (version, config.engine.timeout_ms) == (2, 3000)
    assert desk.configure() == 1
    assert current()[1].engine.timeout_ms == 2000
    assert desk.topics("engine") == ["engine_configured"] * 3
    with statement() as connection:
        assert control.get_version(connection, 2).engine.timeout_ms == 3000
        with pytest.raises(NotFound):
            control.get_version(connection, 3)


def test_two_who_accept_the_same_file_at_once_make_one_version(database: str) -> None:
    def accept(_: Connection) -> int:
        return desk.configure()

    assert together(accept, accept, accept) == [1, 1, 1]
    assert desk.topics("engine") == ["engine_configured"]


@pytest.mark.parametrize(
    "act",
    ["UPDATE engine_configs SET accepted_by = 'x'", "DELETE FROM engine_configs", "TRUNCATE engine_configs CASCADE"],
)
def test_an_accepted_version_never_changes(database: str, act: str) -> None:
    desk.configure()
    with pytest.raises(DBAPIError, match="append-only"), transaction() as connection:
        connection.execute(text(act))


def test_a_wrong_configuration_changes_nothing(database: str) -> None:
    desk.running()
    before = desk.engine_row()
    with pytest.raises(InvalidSettings):
        desk.configure(engine={"engine_mode": "both"})
    assert desk.engine_row() == before


def test_another_cadence_begins_anew_and_any_other_change_goes_on(database: str) -> None:
    desk.running()
    assert desk.engine_row()["next_tick_ms"] is not None
    desk.configure(engine={"timeout_ms": 3000})
    assert desk.engine_row()["next_tick_ms"] is not None
    desk.configure(scheduler={"boundary_delay_ms": 2000})
    assert desk.engine_row()["next_tick_ms"] is None


def test_a_version_is_read_once_by_threads_that_ask_at_once(database: str, environment: pytest.MonkeyPatch) -> None:
    version = desk.configure()
    another, readings = threading.Event(), []

    def reading(body: Any) -> Any:
        """The reader itself; the first to read takes its time, so that a second could be seen."""
        readings.append(threading.current_thread().name)
        if len(readings) > 1:
            another.set()
        another.wait(0.3)
        return read_config(body)

    environment.setattr(control, "read_config", reading)
    control.VERSIONS.clear()
    one, other = together(*[lambda connection: control.get_version(connection, version)] * 2)
    assert len(readings) == 1
    assert one is other


# the file, as beat finds it


@pytest.fixture
def path(database: str, environment: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "engine.toml"
    environment.setenv("ORCHESTRATOR_ENGINE_CONFIG", str(path))
    settings.cache_clear()
    return path


EXAMPLE = (ROOT / "examples/engine.toml").read_text()


def test_beat_accepts_the_file_and_starts_the_engine(path: Path) -> None:
    path.write_text(EXAMPLE)
    file.accept_file()
    file.accept_file()
    row = desk.engine_row()
    assert (row["state"], row["config_version"], row["config_error"]) == ("running", 1, None)
    assert desk.topics("engine") == ["engine_configured", "engine_started"]


def test_without_autostart_the_engine_waits_for_somebody(path: Path) -> None:
    path.write_text(EXAMPLE.replace("autostart = true", "autostart = false"))
    file.accept_file()
    assert desk.engine_row()["state"] == "init"


@pytest.mark.parametrize("name", ["drain", "stop"])
def test_what_an_operator_said_outlives_a_restart_of_beat(path: Path, name: str) -> None:
    path.write_text(EXAMPLE)
    file.accept_file()
    state = act(name)["state"]
    file.accept_file()
    assert desk.engine_row()["state"] == state


def test_what_was_accepted_since_outlives_a_restart_of_beat(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(EXAMPLE)
    file.accept_file()
    assert desk.configure() == 2
    path.write_text("nonsense =")
    file.accept_file()
    path.write_text("# says the same\n" + EXAMPLE)
    with caplog.at_level(logging.INFO, file.__name__):
        file.accept_file()
    assert [record.message for record in caplog.records if record.levelname == "INFO"] == [
        "the engine's file is unchanged: what was accepted since stays"
    ]
    row = desk.engine_row()
    assert (row["config_version"], row["config_error"]) == (2, None)


def test_a_file_that_has_changed_is_taken_whatever_was_accepted_since(path: Path) -> None:
    path.write_text(EXAMPLE)
    file.accept_file()
    desk.configure()
    path.write_text(EXAMPLE.replace("autostart = true", "autostart = false"))
    file.accept_file()
    assert desk.engine_row()["config_version"] == 3
    path.write_text(EXAMPLE)
    file.accept_file()
    assert desk.engine_row()["config_version"] == 1


def test_without_a_file_the_engine_is_not_configured_and_nothing_fails(path: Path) -> None:
    file.accept_file()
    assert desk.engine_row()["state"] == "init"
    assert desk.topics("engine") == []


WRONG = {
    "no TOML": ("autostart = ", "Invalid value"),
    "not UTF-8": (b"\xff\xfe", "utf-8"),
    "a wrong key": (EXAMPLE.replace("[scheduler]", "[schedular]"), "did you mean scheduler?"),
    "misaligned": (
        EXAMPLE.replace("boundary_interval_ms = 10000\n", "boundary_interval_ms = 15000\n"),
        "must be a multiple of engine.alignment_ms (10000)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_leaves_the_engine_as_it_is_and_is_seen_in_the_status(
    path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(EXAMPLE)
    file.accept_file()
    content, says = WRONG[what]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with caplog.at_level(logging.ERROR):
        file.accept_file()
    row = desk.engine_row()
    assert (row["state"], row["config_version"]) == ("running", 1)
    assert says in row["config_error"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    path.write_text(EXAMPLE)
    file.accept_file()
    assert desk.engine_row()["config_error"] is None


def test_a_beat_with_a_wrong_file_ticks_all_the_same(path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("BROKER_URL", "redis://127.0.0.1:1/0")  # which beat asks for nothing here
    settings.cache_clear()
    path.write_text("nonsense =")
    beat_starts()
    presences.pop().stop()
    assert desk.rows("SELECT every_seconds FROM schedules WHERE name = 'engine'") == [{"every_seconds": 1.0}]
    assert desk.engine_row()["config_error"]


def test_a_directory_in_the_file_s_place_is_said(path: Path) -> None:
    path.mkdir()
    file.accept_file()
    assert "Is a directory" in desk.engine_row()["config_error"]


def test_a_worker_whose_engine_is_none_does_not_start(path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ENGINE_MODULE", "nobody.here")
    settings.cache_clear()
    file.check_file_and_engine()
    path.write_text(EXAMPLE)
    with pytest.raises(InvalidSettings, match=r"ENGINE_MODULE=nobody\.here"):
        file.check_file_and_engine()


MISSPELT = EXAMPLE.replace("decay_factor", "decay_faktor")


def test_a_worker_says_what_is_wrong_with_the_file_s_options_and_starts(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(MISSPELT)
    file.check_file_and_engine()
    assert "decay_faktor" in str([record.__dict__.get("error") for record in caplog.records])


def test_a_file_with_options_that_the_engine_does_not_take_is_refused(path: Path) -> None:
    path.write_text(EXAMPLE)
    file.accept_file()
    path.write_text(MISSPELT)
    file.accept_file()
    row = desk.engine_row()
    assert row["config_version"] == 1
    assert "engine.hysteresis: HysteresisConfig has no field decay_faktor" in row["config_error"]


def test_beat_takes_a_file_though_it_cannot_call_the_engine(path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ENGINE_MODULE", "nobody.here")
    settings.cache_clear()
    path.write_text(EXAMPLE)
    file.accept_file()
    assert desk.engine_row()["config_version"] == 1


def test_appends_are_refused_at_the_moment_of_the_stop(database: str) -> None:
    """Whoever appends while the stop is under way is either in before it, or refused."""
    desk.running()

    def append(connection: Connection) -> str:
        try:
            with transaction() as own:
                append_events(own, desk.received(desk.trade()), max_records=100)
        except Unavailable as error:
            return error.code
        return "appended"

    _, became = meanwhile(lambda c: control.stop_engine(c, desk.CALLER), append)
    assert became in {"appended", "engine_stopped"}
    assert append(None) == "engine_stopped"  # type: ignore[arg-type]
