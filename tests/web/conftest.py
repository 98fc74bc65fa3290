"""Fixtures for the web: the Flask application on a fresh database, and callers of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask

from orchestrator_web import auth, guesses, hints, ratelimit
from orchestrator_web.app import create_app
from tests.web.server import Server, own_logs
from tests.web.service import Api, key_with


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """What a web process keeps for itself starts empty: proved credentials, counts, Redis clients."""
    forget()
    yield
    forget()


def forget() -> None:
    auth.cache.clear()
    guesses.guessers.clear()
    ratelimit.forget()
    if hints.client.is_made:
        hints.client().close()
    hints.client.cache_clear()


@pytest.fixture
def app(database: str, broker: str) -> Flask:
    return create_app()


@pytest.fixture
def api(app: Flask, admin_key: str) -> Api:
    """A caller who may do everything."""
    return Api(app, admin_key)


@pytest.fixture
def anonymous(app: Flask) -> Api:
    return Api(app)


@pytest.fixture
def reader(app: Flask) -> Api:
    return Api(app, key_with("read", name="reader"))


@pytest.fixture
def server(api: Api, admin_key: str) -> Iterator[Server]:
    """A whole web process, called as the ASGI server would; `api` calls another on the same database."""
    with own_logs():
        from orchestrator_web.asgi import Application

        yield Server(Application(), admin_key)
