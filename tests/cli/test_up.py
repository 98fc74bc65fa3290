"""`orchestrator up` from nothing to ready and back."""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from models.kernel.settings import load
from orchestrator_cli import readiness, supervise
from orchestrator_cli.addresses import service_url
from orchestrator_cli.embedded.postgres import Postgres
from orchestrator_cli.home import Home, socket_directory
from orchestrator_cli.rotation import LARGEST
from orchestrator_cli.supervisor import Supervisor
from tests.cli.service import Service, until

Start = Callable[..., Service]


def test_up_ends_by_naming_the_addresses_the_token_and_a_curl_line_that_works(start: Start) -> None:
    service = start().wait_until_ready()
    said = service.said()
    assert f"{service.url}/docs" in said
    assert f"http://127.0.0.1:{service.environment['FLOWER_PORT']}" in said
    token = service.home / "admin.token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    curl = shlex.split(next(line for line in said.splitlines() if line.startswith("  curl")))
    assert curl[2] == f"Authorization: Bearer $(cat {token})"
    answer = httpx.get(curl[3], headers={"Authorization": f"Bearer {token.read_text().strip()}"})
    assert answer.status_code == 200
    from_another_terminal = load({"ORCHESTRATOR_HOME": str(service.home)})
    assert service_url(from_another_terminal) == service.url


def test_ctrl_c_stops_everything_within_ten_seconds_and_leaves_no_process(start: Start) -> None:
    service = start().wait_until_ready()
    assert len(service.alive()) >= 6
    began = time.monotonic()
    assert service.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 10
    assert service.alive() == []
    assert not Home.at(service.home).address.exists()


def test_sigterm_stops_everything_as_ctrl_c_does(start: Start) -> None:
    service = start().wait_until_ready()
    assert service.stop(signal.SIGTERM) == 0
    assert service.alive() == []


def test_ctrl_c_before_it_is_ready_stops_what_was_started(start: Start) -> None:
    service = start()
    service.wait_for("✓ Postgres")
    assert service.stop(signal.SIGINT) == 0
    assert service.alive() == []


def test_the_web_stops_first_and_the_servers_last(start: Start) -> None:
    service = start().wait_until_ready()
    service.stop()
    log = (service.home / "logs" / "supervisord.log").read_text()
    assert re.findall(r"stopped: (\w+)", log) == ["web", "dispatcher", "io", "valkey", "postgres", "sweep"]


def test_a_full_disk_does_not_end_what_keeps_the_processes_running(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    home.prepare()
    for name in ("supervisord.log", "supervisord.out"):
        (home.logs / name).symlink_to("/dev/full")
    supervisor = Supervisor(home)
    try:
        sleeper = supervise.server("sleeper", ["sleep", "1000"], supervise.WORKERS, signal.SIGTERM)
        supervisor.start(tmp_path, [sleeper], os.environ)
        until(lambda: supervisor.failing() == [])
        pid = supervisor.states()["sleeper"]["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: supervisor.states()["sleeper"]["pid"] not in {0, pid})
        until(lambda: any("No space left on device" in line for line in supervisor.said))
    finally:
        supervisor.stop()


def test_the_next_up_carries_on_from_the_same_data(start: Start) -> None:
    first = start().wait_until_ready()
    token = (first.home / "admin.token").read_text()
    first.stop()
    password = (first.home / "postgres" / "password").read_text()
    second = start().wait_until_ready()
    assert (second.home / "admin.token").read_text() == token
    assert (second.home / "postgres" / "password").read_text() == password
    assert "Admin token                kept" in second.said()


def test_a_process_that_dies_is_started_again(start: Start) -> None:
    service = start().wait_until_ready()
    before = service.pid_of("web")
    os.kill(before, signal.SIGKILL)
    service.wait_for("web had ended and was started again")
    assert service.pid_of("web") != before


def test_a_program_writes_its_log_itself_and_up_keeps_it_small(start: Start) -> None:
    service = start().wait_until_ready()
    logs = service.home / "logs"
    assert '"GET /readyz' in (logs / "web.log").read_text()
    assert os.readlink(f"/proc/{service.pid_of('web')}/fd/2") == str(logs / "web.log")
    with (logs / "web.log").open("ab") as web:
        web.write(b"x" * LARGEST)
    until(lambda: (logs / "web.log.1").exists() and (logs / "web.log").stat().st_size == 0)
    httpx.get(f"{service.url}/after")
    assert "/after" in (logs / "web.log").read_text()


def test_what_a_failing_program_said_last_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home.at(tmp_path / "home")
    words = ["sh", "-c", "echo said aloud; echo said to stderr >&2; exit 1"]
    supervisor = Supervisor(home)
    with home.locked():
        supervisor.start(tmp_path, [supervise.server("odd", words, supervise.WORKERS, signal.SIGTERM)], os.environ)
        try:
            until(lambda: "said aloud" in home.log("odd").read_text() and supervisor.failing() == ["odd"])
            readiness.explain(supervisor)
        finally:
            supervisor.stop()
    shown = capsys.readouterr().out
    assert f"last lines of {home.log('odd')}" in shown
    assert "said aloud" in shown
    assert "said to stderr" in shown


def test_postgres_and_valkey_come_back_after_a_sigkill(start: Start) -> None:
    service = start().wait_until_ready()
    postgres = Postgres(service.home / "postgres")
    for name in ("postgres", "valkey"):
        before = service.pid_of(name)
        os.kill(before, signal.SIGKILL)
        service.wait_for(f"{name} had ended and was started again")
        assert service.pid_of(name) != before
    until(postgres.answers)


def test_after_a_sigkill_of_up_nothing_survives_and_the_next_up_starts(start: Start) -> None:
    service = start().wait_until_ready()
    service.stop(signal.SIGKILL)
    until(lambda: service.alive() == [])
    start().wait_until_ready()


def test_after_a_sigkill_of_the_supervisor_up_says_so_and_leaves_nothing(start: Start) -> None:
    service = start().wait_until_ready()
    os.kill(int((service.home / "run" / "supervisord.pid").read_text()), signal.SIGKILL)
    service.wait_for("the supervisor ended unexpectedly")
    assert service.stop() == 1
    assert service.alive() == []


def test_a_deep_home_with_spaces_works_because_sockets_move_to_a_short_place(start: Start, tmp_path: Path) -> None:
    home = tmp_path / "a b; c #d" / ("deep" * 30)
    home.parent.mkdir()
    service = start(home).wait_until_ready()
    assert httpx.get(f"{service.url}/readyz").status_code == 200
    sockets = socket_directory(home / "postgres")
    assert home not in sockets.parents
    service.stop()
    assert not sockets.exists()


def test_servers_named_in_the_settings_are_used_instead_of_embedded_ones(
    start: Start, postgres_server: str, valkey_server: str
) -> None:
    service = start(DATABASE_URL=postgres_server, BROKER_URL=valkey_server).wait_until_ready()
    assert "external, Postgres 18" in service.said()
    assert not (service.home / "postgres").exists()
    assert not (service.home / "valkey").exists()
