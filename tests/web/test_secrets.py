"""Secrets are nowhere but where they belong: no log line, problem, metric, ledger row or printed setting holds one."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from click.testing import CliRunner
from flask import Flask
from sqlalchemy import text

from models.kernel import clients
from models.kernel.errors import InvalidSettings, OrchestratorError
from models.kernel.logs import JsonLines, to_line
from models.kernel.session import statement
from models.kernel.settings import load, settings, variables
from models.tickets import operations
from orchestrator_web import hints, ratelimit
from orchestrator_web.app import create_app
from tests.conftest import forget
from tests.web.service import DRIVE, Api, key_with, rows

PASSWORD = "hunter2-correct-horse"
SIGNING = "a signing secret of more than thirty-two bytes"
HOOK = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
IN_BODY = "the-secret-in-the-body"
SHORT = "too-short-a-secret"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything that any logger of this process writes, as the service writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines("web"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def app(database: str, broker: str, environment: pytest.MonkeyPatch) -> Flask:
    environment.setenv("JWT_SECRET_KEY", SIGNING)
    environment.setenv("ORCHESTRATOR_MQTT_PASSWORD", PASSWORD)
    forget()
    return create_app()


def token(secret: str = SIGNING, **claims: Any) -> str:
    return jwt.encode({"sub": "robot-user", "exp": 4_000_000_000, **claims}, secret, algorithm="HS256")


def ask_in_every_way(app: Flask, credential: str) -> str:
    """What is said to requests that succeed, fail and break under one credential."""
    caller, said = Api(app, credential), []
    body = {**DRIVE, "metadata": {"password": IN_BODY}}
    for method, path, options in (
        ("POST", "/ticket", {"json": body}),
        ("POST", "/ticket", {"json": {"command": "drive", "priority": IN_BODY}}),
        ("POST", "/ticket", {"json": {"command": 1, "params": IN_BODY}}),
        ("POST", "/ticket", {"data": f'{{"password": "{IN_BODY}"', "content_type": "application/json"}),
        ("POST", "/ticket", {"data": IN_BODY, "content_type": "text/plain"}),
        ("POST", "/ticket", {"json": body, "headers": {"Idempotency-Key": IN_BODY}}),
        ("POST", "/execute", {"json": {"ticket_id": IN_BODY}}),
        ("POST", "/clients", {"json": {"name": "x", "permissions": [IN_BODY]}}),
        ("GET", "/tickets?status=" + IN_BODY, {}),
        ("GET", "/tickets?cursor=" + IN_BODY, {}),
        ("GET", "/nowhere", {"headers": {"X-API-Key": credential}}),
        ("GET", "/metrics", {}),
        ("GET", "/tickets", {"headers": {"Authorization": f"Basic {credential}"}}),
    ):
        answer = caller.call(method, path, **options)
        if answer.status_code != 201:  # a ticket is shown to whoever made it
            said.append(answer.text.replace(f"Ticket '{IN_BODY}' not found", ""))  # what was asked for by name
    return "\n".join(said)


def test_credentials_and_bodies_are_in_no_log_answer_or_ledger_row(app: Flask, logged: io.StringIO) -> None:
    good = key_with("read", "write", name="ada")
    revoked = key_with("read", name="bob")
    with statement() as connection:
        clients.revoke_key(connection, revoked.split("_")[1])
    secrets = [good, revoked, token(), token("another secret of more than 32 bytes"), token(exp=1), "orc_nonsense-key"]
    said = "\n".join(ask_in_every_way(app, secret) for secret in secrets)
    told = str(rows("SELECT * FROM ledger WHERE subject_kind <> 'ticket'"))
    for secret in [*(part for each in secrets for part in parts(each)), SIGNING, PASSWORD, IN_BODY]:
        for place, found in (("log", logged.getvalue()), ("answers", said), ("ledger", told)):
            assert secret not in found, (place, secret, around(found, secret))


def parts(credential: str) -> list[str]:
    """What of a credential is secret: an API key's id is not."""
    return [credential.split("_", 2)[2] if credential.count("_") > 1 else credential]


def around(found: str, secret: str) -> str:
    at = found.index(secret)
    return found[max(0, at - 200) : at + 200]


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the operation broke")


def refused_by_the_database(connection: Any, drafts: Any, _caller: Any) -> Any:
    """The database itself quotes the whole row when it refuses one."""
    values = {"metadata": str(drafts[0]["metadata"])}
    connection.execute(
        text("INSERT INTO clients (name, tenant, permissions) VALUES (:metadata, :metadata, '{read}')"), values
    )


@pytest.mark.parametrize("failure", [broken, refused_by_the_database])
def test_a_request_that_breaks_is_logged_without_what_it_carried(
    app: Flask, logged: io.StringIO, monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    key = key_with("read", "write", name="ada")
    monkeypatch.setattr(operations, "create_ticket", failure)
    answer = Api(app, key).post("/ticket", json={**DRIVE, "metadata": {"password": IN_BODY}})
    assert answer.status_code == 500
    log = logged.getvalue()
    assert "Traceback" in log
    for secret in (*parts(key), IN_BODY):
        assert secret not in log, around(log, secret)
        assert secret not in answer.text


@pytest.mark.parametrize("address", ["postgresql://me:{}@127.0.0.1:1/db", "postgresql://me:{}@nowhere.invalid/db"])
def test_a_database_that_is_away_is_logged_without_its_password(
    broker: str, environment: pytest.MonkeyPatch, logged: io.StringIO, address: str
) -> None:
    environment.setenv("DATABASE_URL", address.format(PASSWORD))
    forget()
    caller = Api(create_app(), "orc_000000000000_" + "x" * 32)
    said = caller.get("/tickets").text + caller.get("/readyz").text + caller.get("/metrics").text
    assert PASSWORD not in said + logged.getvalue()


def test_a_broker_that_is_away_is_logged_without_its_password(
    database: str, environment: pytest.MonkeyPatch, logged: io.StringIO
) -> None:
    environment.setenv("BROKER_URL", f"redis://:{PASSWORD}@127.0.0.1:1/0")
    forget()
    caller = Api(create_app(), key_with("read", "write", name="ada"))
    ticket = caller.create()
    assert caller.accept(ticket["id"]).status_code == 202
    hints.work_is_owed()
    assert ratelimit.counters.away
    assert "was not sent" in logged.getvalue()
    assert PASSWORD not in logged.getvalue() + caller.get("/readyz").text


def wrong_values() -> dict[str, str]:
    """For each secret setting a value that is refused, as far as any is."""
    return {
        "DATABASE_URL": f"mysql://me:{PASSWORD}@host/db", "BROKER_URL": f"amqp://me:{PASSWORD}@host",
        "JWT_SECRET_KEY": SHORT, "ORCHESTRATOR_MQTT_URL": f"mqtt://me:{PASSWORD}@host",
        "ORCHESTRATOR_ACTUATOR_URL": f"ftp://me:{PASSWORD}@host",
    }  # fmt: skip


@pytest.mark.parametrize("name", wrong_values())
def test_a_start_that_is_refused_quotes_no_secret(name: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        load({name: wrong_values()[name]})
    assert name in refused.value.message
    assert PASSWORD not in refused.value.message
    assert SHORT not in refused.value.message


def secret_values() -> dict[str, str]:
    secret = {name: PASSWORD for name, item in variables().items() if not item.repr}
    return {
        **secret, "DATABASE_URL": f"postgresql://me:{PASSWORD}@host/db", "BROKER_URL": f"redis://:{PASSWORD}@host/0",
        "JWT_SECRET_KEY": PASSWORD * 2, "ORCHESTRATOR_ACTUATOR_URL": f"http://me:{PASSWORD}@host",
        "ORCHESTRATOR_MQTT_URL": "mqtt://host",
    }  # fmt: skip


def test_the_settings_that_are_printed_hold_no_secret(environment: pytest.MonkeyPatch) -> None:
    from orchestrator_cli.main import main

    for name, value in secret_values().items():
        environment.setenv(name, value)
    forget()
    assert settings().mqtt_password == PASSWORD
    printed = CliRunner().invoke(main, ["settings"])
    assert "DATABASE_URL" in printed.output
    assert PASSWORD not in printed.output
    assert PASSWORD not in repr(settings())


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("key orc_0123456789ab_" + "x" * 32 + " was", "key orc_0123456789ab_*** was"),
        (f"could not reach postgresql://me:{PASSWORD}@host/db", "could not reach postgresql://me:***@host/db"),
        (f"redis://:{PASSWORD}@host", "redis://:***@host"),
        (f"signed with {HOOK}", "signed with whsec_***"),
        ("Bearer " + token(), "Bearer eyJ***"),
        (f"DETAIL:  Failing row contains (1, {PASSWORD}, null).\nmore", "DETAIL:  Failing row contains (***).\\nmore"),
        ("GET http://host:8000/path says eyJ or orc_", "GET http://host:8000/path says eyJ or orc_"),
    ],
)
def test_whatever_looks_like_a_secret_is_blotted_out_of_a_line(line: str, shown: str) -> None:
    assert f'"{shown}"' in to_line({"message": line})


def test_an_error_of_ours_carries_no_credential(app: Flask) -> None:
    from orchestrator_web.auth import client_of

    for credential in (f"orc_000000000000_{'x' * 32}", token(exp=1), PASSWORD):
        with pytest.raises(OrchestratorError) as refused:
            client_of(credential)
        assert credential not in str(vars(refused.value))
