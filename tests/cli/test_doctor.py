"""`orchestrator doctor` on a running service that is hurt in one place after the other."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.kernel.hints import redis_url
from orchestrator_cli.doctor import findings
from orchestrator_cli.doctor.findings import FAIL, OK, Finding, look_all
from orchestrator_cli.doctor.machine import clock_finding
from orchestrator_cli.embedded.valkey import Valkey
from tests.cli.service import environment
from tests.cli.test_service_commands import run
from tests.service.running import Running, drive, frozen
from tests.service.waiting import eventually


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    service = Running(tmp_path_factory.mktemp("doctor") / "home")
    try:
        yield service.start()
    finally:
        service.stop()


@pytest.fixture
def service(running: Running) -> Running:
    eventually(running.is_ready, within=60, what="the service is ready")
    return running


def examine(service: Running, *words: str, code: int, **settings: str) -> dict[str, Finding]:
    """What the doctor found, by check, within 20 seconds whatever is broken."""
    began = time.monotonic()
    done = run(service, "doctor", "--json", *words, **settings)
    assert time.monotonic() - began < 20
    assert done.returncode == code, done.stdout + done.stderr
    told = json.loads(done.stdout)
    found = {one["check"]: Finding(**one) for one in told["findings"]}
    assert told["healthy"] == (code == 0)
    assert all(finding.next_step for finding in found.values() if finding.verdict == FAIL)
    return found


def failed(found: dict[str, Finding]) -> set[str]:
    return {check for check, finding in found.items() if finding.verdict == FAIL}


def broker(service: Running) -> Any:
    import redis

    return redis.Redis.from_url(redis_url(Valkey(service.home / "valkey").url()), socket_timeout=5)


def test_a_well_service_passes_every_check_and_every_queue_answers(service: Running) -> None:
    # beat starts the engine a moment after the service is ready; its first tick comes with the next boundary
    eventually(lambda: service.ask("GET", "/engine/status").json()["scheduler"]["ticks"], within=60, what="a tick")
    found = examine(service, code=0)
    assert {finding.verdict for check, finding in found.items() if check != "dead letters"} == {OK}
    assert {check for check in found if check.startswith("queue")} == {
        "queue io",
        "queue cpu",
        "queue system",
        "queue hooks",
    }
    assert "VERDICT" in run(service, "doctor").stdout


def test_a_frozen_broker_is_said_within_seconds(service: Running) -> None:
    with frozen(service.pid_of("valkey")):
        found = examine(service, code=1)
    assert "broker" in failed(found)
    assert found["database"].verdict == OK


def test_a_frozen_database_is_said_within_seconds(service: Running) -> None:
    with frozen(service.pid_of("postgres")):
        found = examine(service, code=1)
    assert "database" in failed(found)
    assert found["broker"].verdict == OK
    assert found["queue io"].verdict == OK


def test_a_worker_that_stands_still_is_named_with_its_queue(service: Running) -> None:
    worker = service.pid_of("cpu")
    with frozen(worker):
        eventually(lambda: not service.is_ready(), within=20, what="the worker's silence is noticed")
        found = examine(service, "--canary-seconds", "1", code=1)
    assert failed(found) >= {"processes", "queue cpu"}
    assert "cpu" in found["processes"].found
    assert found["queue io"].verdict == OK


def test_an_unread_canary_is_taken_back(service: Running) -> None:
    with frozen(service.pid_of("cpu")), broker(service) as client:
        examine(service, "--canary-seconds", "0.5", code=1)
        examine(service, "--canary-seconds", "0.5", code=1)
        assert client.llen("cpu") <= 1  # the frozen worker's own pop may have taken one and left it undone


def test_a_busy_queue_is_a_warning_and_no_failure(service: Running) -> None:
    count = int(service.environment["ORCHESTRATOR_IO_CONCURRENCY"])
    going = [service.go(**drive(f"busy-{number}", seconds=250, speed=0.01)) for number in range(count)]
    for ticket_id in going:
        service.wait_until(ticket_id, "executing")
    found = examine(service, "--canary-seconds", "1", code=0)
    assert found["queue io"].verdict == "warn"
    assert f"{count} jobs at work" in found["queue io"].found
    for ticket_id in going:
        service.ask("POST", f"/ticket/{ticket_id}/cancel")


def test_an_eviction_policy_that_drops_messages_fails(service: Running) -> None:
    with broker(service) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        found = examine(service, code=1)
        client.config_set("maxmemory-policy", "noeviction")
    assert failed(found) == {"broker eviction"}
    assert found["broker eviction"].found == "allkeys-lru"


def test_a_broker_without_its_append_only_file_is_a_warning(service: Running) -> None:
    with broker(service) as client:
        client.config_set("appendonly", "no")
        found = examine(service, code=0)
        client.config_set("appendonly", "yes")
    assert found["broker persistence"].verdict == "warn"


def test_an_engaged_stop_and_what_died_are_warnings(service: Running) -> None:
    ticket_id = service.create(command="scan", target="watched")
    service.ask("POST", "/estop", json={"scope": "watched", "reason": "a test"})
    found = examine(service, code=0)
    assert found["emergency stop"].verdict == "warn"
    assert "a test" in found["emergency stop"].found
    service.ask("DELETE", "/estop", json={"scope": "watched", "reason": "over"})
    assert ticket_id


def test_an_actuator_bus_that_nobody_listens_at_fails(service: Running) -> None:
    found = examine(
        service, code=1, ORCHESTRATOR_DRIVER="http", ORCHESTRATOR_ACTUATOR_URL="http://user:secret@127.0.0.1:9/"
    )
    assert failed(found) == {"driver"}
    assert "secret" not in found["driver"].found


def test_a_schema_of_another_version_fails(service: Running) -> None:
    head = service.row("SELECT version_num FROM alembic_version")["version_num"]
    service.rows("UPDATE alembic_version SET version_num = '0001' RETURNING 1")
    found = examine(service, code=1)
    service.rows("UPDATE alembic_version SET version_num = %s RETURNING 1", head)
    assert failed(found) == {"schema"}
    assert found["schema"].next_step == "run `orchestrator migrate`"


def test_without_any_server_it_says_how_to_start_them(tmp_path: Path) -> None:
    class Nowhere:
        environment = environment(tmp_path / "home")

    found = examine(Nowhere(), code=1)  # type: ignore[arg-type]
    assert failed(found) == {"database", "broker"}
    assert "make up" in found["database"].next_step
    assert not (tmp_path / "home").exists()


def test_a_check_that_hangs_fails_and_holds_no_other_up() -> None:
    import threading

    never = threading.Event()
    found = look_all({"slow": lambda: [Finding(str(never.wait()), OK, "")], "quick": lambda: []}, 0.2)
    assert [(finding.check, finding.verdict) for finding in found] == [("slow", FAIL)]
    never.set()


def test_a_check_that_breaks_fails_with_its_reason() -> None:
    def breaks() -> list[Finding]:
        raise RuntimeError("out of order")

    assert findings.attempt("it", breaks)[0].found == "out of order"


@pytest.mark.parametrize(("off", "verdict"), [(0.0, OK), (0.9, OK), (-0.9, OK), (1.5, "warn"), (-90.0, "warn")])
def test_a_clock_more_than_a_second_away_is_a_warning(off: float, verdict: str) -> None:
    assert clock_finding("it", 1000.05 + off, 1000.0, 1000.1).verdict == verdict


def test_a_slow_answer_is_not_held_against_a_clock() -> None:
    assert clock_finding("it", 1003.0, 1000.0, 1004.0).verdict == OK
