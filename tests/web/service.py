"""What the tests of the web share: a caller of the API, and the part of a worker played by hand."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
from flask import Flask
from sqlalchemy import text
from werkzeug.test import TestResponse

from models.kernel import clients
from models.kernel.session import statement, transaction
from models.tickets import operations, transitions
from models.tickets.operations import Attempt, Outcome

TABLES = ("tickets", "jobs", "ledger", "dead_letters", "stop_orders", "clients", "api_keys")
PROBLEM_MEMBERS = {"type", "title", "status", "detail", "instance", "code", "message", "correlation_id"}
DRIVE = {"command": "drive", "params": {"speed": 1.5, "duration_seconds": 5, "direction": 90}}
DONE = Outcome("completed", result={"command": "drive", "executed": True})
REFUSED = Outcome("failed", error="Speed 3.5 exceeds safety threshold of 3.0 m/s", error_code=transitions.REFUSED)


class Api:
    """Calls the application as one client would, with one credential or none."""

    def __init__(self, app: Flask, credential: str | None = None) -> None:
        self.app = app
        self.client = app.test_client()
        self.credential = credential

    def call(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any) -> TestResponse:
        if "json" in options:  # the standard library's, which writes NaN and any integer
            options |= {"data": json.dumps(options.pop("json")), "content_type": "application/json"}
        own = {"Authorization": f"Bearer {self.credential}"} if self.credential else {}
        if path.startswith("//"):  # werkzeug's client would take what follows for a host
            path, options["environ_overrides"] = "/", {"PATH_INFO": path}
        return self.client.open(path, method=method, headers={**own, **(headers or {})}, buffered=True, **options)

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.call("GET", path, **options)

    def post(self, path: str, **options: Any) -> TestResponse:
        return self.call("POST", path, **options)

    def send(self, path: str, body: bytes, content_type: str | None = "application/json") -> TestResponse:
        """A POST of exactly these bytes."""
        return self.post(path, data=body, content_type=content_type)

    def create(self, **ticket: Any) -> dict[str, Any]:
        made = self.post("/ticket", json=ticket or DRIVE)
        assert made.status_code == 201, made.get_data(as_text=True)
        return dict(made.get_json())

    def accept(self, ticket_id: str, **members: Any) -> TestResponse:
        """An execution that nobody waits for."""
        body = {"ticket_id": ticket_id, **members}
        return self.post("/execute", json=body, headers={"Prefer": "respond-async"})


def each(names: str, cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """parametrize for cases that change nothing: all run on one database, each failure is told apart."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        mine = names.replace(" ", "").split(",")
        fixtures = [p for name, p in inspect.signature(test).parameters.items() if name not in mine]

        def run(subtests: Any, **given: Any) -> None:
            for case in cases:
                values = dict(zip(mine, case if len(mine) > 1 else [case], strict=True))
                with subtests.test(**{name: ascii(value)[:60] for name, value in values.items()}):
                    test(**given, **values)

        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        asked = inspect.Parameter("subtests", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = inspect.Signature([asked, *fixtures])  # type: ignore[attr-defined]
        return run

    return mark


def take(ticket_id: str) -> Attempt:
    """What a worker does first."""
    with statement() as connection:
        job = connection.scalar(text("SELECT id FROM jobs WHERE subject_id = :id"), {"id": ticket_id})
        assert job is not None, f"nobody owes {ticket_id} an execution"
        attempt = operations.take_ticket(connection, job, "worker-1")
    assert attempt is not None
    return attempt


def settle(attempt: Attempt, outcome: Outcome = DONE) -> None:
    """What a worker does last."""
    with statement() as connection:
        operations.settle_ticket(connection, attempt, outcome, "worker-1")


def carry_out(ticket_id: str, outcome: Outcome = DONE) -> None:
    """The whole work of a worker on one accepted execution."""
    settle(take(ticket_id), outcome)


def finished(api: Api, outcome: Outcome = DONE, **ticket: Any) -> str:
    """A ticket that was created, accepted and carried out."""
    ticket_id = str(api.create(**ticket)["id"])
    assert api.accept(ticket_id).status_code == 202
    carry_out(ticket_id, outcome)
    return ticket_id


def key_with(*permissions: str, name: str = "client-1", tenant: str = "default") -> str:
    """A fresh API key of a client that holds exactly these permissions."""
    with transaction() as connection:
        clients.create_client(connection, name, permissions, tenant)
        return clients.issue_key(connection, name)


def rows(sql: str, **values: Any) -> list[dict[str, Any]]:
    with statement() as connection:
        return [dict(row) for row in connection.execute(text(sql), values).mappings()]


def counts(*without: str) -> dict[str, int]:
    """How many rows each table holds."""
    return {name: rows(f"SELECT count(*) AS n FROM {name}")[0]["n"] for name in TABLES if name not in without}


def refusals() -> list[dict[str, Any]]:
    return rows("SELECT * FROM ledger WHERE topic = 'refused' ORDER BY seq")


def assert_problem(answer: TestResponse, *statuses: int) -> dict[str, Any]:
    """The answer is one whole problem object with one of these statuses, and says nothing of our insides."""
    said = answer.get_data(as_text=True)
    assert answer.status_code in statuses, f"{answer.status} instead of {statuses}: {said[:500]}"
    assert answer.content_type == "application/problem+json", said[:500]
    problem: dict[str, Any] = orjson.loads(answer.data)
    assert problem.keys() >= PROBLEM_MEMBERS
    assert problem["status"] == answer.status_code
    assert problem["type"] == f"urn:orchestrator:problem:{problem['code']}"
    assert problem["message"] == problem["detail"] != ""
    assert problem["correlation_id"] == answer.headers["X-Correlation-Id"]
    assert_nothing_leaks(said)
    return problem


def assert_nothing_leaks(said: str) -> None:
    for word in ("Traceback", 'File "', "psycopg2", "sqlalchemy", "werkzeug"):
        assert word not in said, said[:500]
