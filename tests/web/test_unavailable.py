"""The database or the broker is away: refused with when to come back, quickly; what needs neither still works."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from flask import Flask

from models.kernel.processes import beat
from models.kernel.session import statement
from models.kernel.settings import settings
from orchestrator_web.app import create_app
from tests.conftest import forget
from tests.web.service import DRIVE, Api, assert_problem, carry_out, rows

KEY = "orc_0123456789ab_" + "s" * 32
SOON = 2.0


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def without_database(environment: pytest.MonkeyPatch, broker: str) -> Flask:
    environment.setenv("DATABASE_URL", f"postgresql://user:secret-word@127.0.0.1:{closed_port()}/nothing")
    forget()
    return create_app()


@pytest.fixture
def without_broker(database: str, environment: pytest.MonkeyPatch) -> Flask:
    environment.setenv("BROKER_URL", f"redis://127.0.0.1:{closed_port()}/0")
    forget()
    return create_app()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("POST", "/ticket"), ("GET", "/ticket/tick-20200101-00000000"), ("POST", "/execute"),
        ("GET", "/tickets"), ("POST", "/ticket/tick-20200101-00000000/cancel"), ("GET", "/telemetry/metrics"),
        ("GET", "/telemetry/events"), ("GET", "/metrics"),
    ],
)  # fmt: skip
def test_without_its_database_every_route_that_needs_it_is_503(without_database: Flask, method: str, path: str) -> None:
    began = time.monotonic()
    answer = Api(without_database, KEY).call(method, path, json={**DRIVE, "ticket_id": "tick-20200101-00000000"})
    assert time.monotonic() - began < SOON
    problem = assert_problem(answer, 503)
    assert answer.headers["Retry-After"] == "1"
    assert problem["code"] in {"database_unavailable", "unavailable"}
    assert (problem["retriable"], problem["retry_after_ms"]) == (True, 1000)
    assert "secret-word" not in answer.text


def test_without_its_database_the_process_still_says_that_it_lives(without_database: Flask) -> None:
    caller = Api(without_database)
    assert caller.get("/healthz").status_code == 200
    for path in ("/docs", "/redoc", "/openapi.json", "/static/docs.js"):
        assert caller.get(path).status_code == 200
    assert_problem(caller.get("/tickets"), 401)
    assert_problem(caller.get("/nowhere"), 404)


def test_without_its_database_it_is_not_ready_and_says_why(without_database: Flask) -> None:
    answer = Api(without_database).get("/readyz")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.get_json() == {"status": "not ready", "missing": ["database"], "engine": None}


def readiness(caller: Api) -> dict[str, Any]:
    """What the service as a whole says; the engine tells for itself beside it."""
    said = dict(caller.get("/readyz").get_json())
    assert said.pop("engine")["state"] == "init"
    return said


def test_it_is_ready_once_every_role_runs_and_names_those_that_do_not(app: Flask, anonymous: Api) -> None:
    roles = settings().process_roles
    assert readiness(anonymous) == {"status": "not ready", "missing": sorted(roles)}
    for role in roles - {"beat"}:
        with statement() as connection:
            beat(connection, role)
        rows("UPDATE processes SET id = role RETURNING 1")
    assert readiness(anonymous) == {"status": "not ready", "missing": ["beat"]}
    with statement() as connection:
        beat(connection, "beat")
    assert readiness(anonymous) == {"status": "ready", "missing": []}
    assert anonymous.get("/readyz").status_code == 200


def test_a_process_that_fell_silent_counts_no_longer(app: Flask, anonymous: Api) -> None:
    with statement() as connection:
        beat(connection, "beat")
    assert "beat" not in anonymous.get("/readyz").get_json()["missing"]
    rows("UPDATE processes SET beat_at = beat_at - interval '1 minute' RETURNING 1")
    assert "beat" in anonymous.get("/readyz").get_json()["missing"]


def test_without_the_broker_tickets_are_created_accepted_and_carried_out(without_broker: Flask, admin_key: str) -> None:
    api = Api(without_broker, admin_key)
    ticket_id = api.create()["id"]
    began = time.monotonic()
    assert api.accept(ticket_id).status_code == 202
    assert time.monotonic() - began < SOON
    carry_out(ticket_id)
    assert api.get(f"/ticket/{ticket_id}").get_json()["status"] == "completed"
    assert "broker" in api.get("/readyz").get_json()["missing"]
    assert api.get("/healthz").status_code == 200


def test_a_row_that_stays_locked_is_a_conflict_that_changes_nothing(
    database: str, broker: str, environment: pytest.MonkeyPatch, admin_key: str
) -> None:
    environment.setenv("ORCHESTRATOR_LOCK_TIMEOUT", "0.1")
    forget()
    api = Api(create_app(), admin_key)
    ticket_id = api.create()["id"]
    with statement() as connection:
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql("SELECT 1 FROM tickets FOR UPDATE")
        problem = assert_problem(api.post("/execute", json={"ticket_id": ticket_id}), 409)
        assert problem["code"] == "locked"
        connection.exec_driver_sql("ROLLBACK")
    assert api.get(f"/ticket/{ticket_id}").get_json()["status"] == "pending"


def test_a_bug_is_a_500_that_says_nothing_of_our_insides(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.tickets import queries

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the secret insides")

    monkeypatch.setattr(queries, "list_tickets", broken)
    problem = assert_problem(api.get("/tickets"), 500)
    assert problem["code"] == "internal"
    assert "insides" not in str(problem)
