"""Fixtures for every test: real servers for the session, a fresh migrated database for each test that asks."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from models.kernel import clients, installation, session, settings
from models.kernel.clients import Caller
from orchestrator_cli import migrate
from orchestrator_tasks.tickets.drivers import registry

pytest_plugins = ["tests.servers"]

numbers = itertools.count(1)


def pytest_configure() -> None:
    """Ctrl-C works here and in every process that a test starts: a shell lets what it puts behind it ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def on_server(server: str, *statements: str) -> None:
    """Run statements on the server's own database, each by itself."""
    connection = psycopg2.connect(server)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for line in statements:
                cursor.execute(line)
    finally:
        connection.close()


def named(server: str, name: str) -> str:
    """The URL of another database on the same server."""
    return make_url(server).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def migrated(postgres_server: str) -> str:
    """The name of a migrated database, which each test's own is a copy of."""
    on_server(postgres_server, "CREATE DATABASE migrated")
    migrate.upgrade(named(postgres_server, "migrated"))
    return "migrated"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment without settings of the person who runs the tests; what is read once is read anew."""
    for name in list(os.environ):
        if name in settings.variables() or name.startswith(settings.PREFIX):
            monkeypatch.delenv(name)
    forget()
    yield monkeypatch
    forget()


def forget() -> None:
    """Drop everything that a process reads once: settings, engines, the key of the cursors."""
    session.dispose_engines()
    settings.settings.cache_clear()
    installation.cursor_key.cache_clear()
    registry.driver.cache_clear()


@pytest.fixture
def database(postgres_server: str, migrated: str, environment: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh migrated database; `statement()` and `transaction()` work on it. Yields its URL."""
    name = f"test_{next(numbers)}"
    on_server(postgres_server, f"CREATE DATABASE {name} TEMPLATE {migrated}")
    url = named(postgres_server, name)
    environment.setenv("DATABASE_URL", url)
    forget()
    yield url
    forget()
    on_server(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def broker(valkey_server: str, environment: pytest.MonkeyPatch) -> str:
    """The broker URL of the session's Valkey."""
    environment.setenv("BROKER_URL", valkey_server)
    forget()
    return valkey_server


@pytest.fixture
def writer() -> Caller:
    return Caller("writer", "default", frozenset({"read", "write"}), "correlation-1")


@pytest.fixture
def admin_key(database: str) -> str:
    """An API key that may do everything."""
    return clients.issue_admin_key()
