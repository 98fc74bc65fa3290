"""What `orchestrator up` refuses: each in a line or two on stderr, never with a traceback."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.service import Service, assert_said_plainly, free_port, refused


def test_a_second_up_on_the_same_home_is_refused_plainly(start: Callable[..., Service]) -> None:
    service = start().wait_until_ready()
    done = refused(service.home, PORT=service.environment["PORT"])
    assert_said_plainly(done, "already runs", str(service.process.pid))
    assert service.process.poll() is None


@pytest.mark.parametrize("name", ["PORT", "FLOWER_PORT"])
def test_a_taken_port_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        assert_said_plainly(refused(tmp_path / "home", **{name: port}), f"port {port}", name)


def test_one_port_for_both_is_refused(tmp_path: Path) -> None:
    port = str(free_port())
    assert_said_plainly(refused(tmp_path / "home", PORT=port, FLOWER_PORT=port), "PORT and FLOWER_PORT", port)


def test_an_unreachable_database_is_refused_without_showing_its_password(tmp_path: Path) -> None:
    url = f"postgresql://somebody:secret@127.0.0.1:{free_port()}/nothing"
    done = refused(tmp_path / "home", DATABASE_URL=url)
    assert_said_plainly(done, "DATABASE_URL", "cannot be reached")
    assert "secret" not in done.stderr + done.stdout


def test_an_unreachable_broker_is_refused(tmp_path: Path) -> None:
    done = refused(tmp_path / "home", BROKER_URL=f"redis://127.0.0.1:{free_port()}/0")
    assert_said_plainly(done, "BROKER_URL", "cannot be reached")


def test_an_unknown_setting_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    done = refused(tmp_path / "home", ORCHESTRATOR_LOG_LEVLE="DEBUG")
    assert_said_plainly(done, "ORCHESTRATOR_LOG_LEVLE", "did you mean ORCHESTRATOR_LOG_LEVEL?")


def test_several_wrong_settings_are_said_together(tmp_path: Path) -> None:
    assert_said_plainly(refused(tmp_path / "home", PORT="x", FLOWER_PORT="99999"), "PORT='x'", "FLOWER_PORT='99999'")


def test_a_certificate_for_robots_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    facts = {"ORCHESTRATOR_DRIVER": "mqtt", "ORCHESTRATOR_MQTT_URL": "mqtts://127.0.0.1"}
    done = refused(tmp_path / "home", **facts, ORCHESTRATOR_MQTT_CA_FILE="/nonexistent")
    assert_said_plainly(done, "ORCHESTRATOR_MQTT_CA_FILE", "cannot be used")


def test_an_engine_that_cannot_be_called_is_refused(tmp_path: Path) -> None:
    done = refused(tmp_path / "home", ENGINE_MODULE="no_such.engine")
    assert_said_plainly(done, "ENGINE_MODULE", "no_such")


def test_a_home_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a directory")
    assert_said_plainly(refused(file / "home"), "cannot be used", "ORCHESTRATOR_HOME")
