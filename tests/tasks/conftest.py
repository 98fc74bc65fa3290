"""Fixtures for the tasks: a clock set by hand, a database that can be away, jobs that are owed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from kombu import pools

from models.kernel import clock, session
from models.kernel.clients import Caller
from models.kernel.errors import Unavailable
from models.kernel.hints import redis_url
from models.kernel.settings import settings
from models.tickets import batches
from orchestrator_tasks import hints
from orchestrator_tasks.app import app
from tests.tasks.desk import Desk
from tests.tasks.owed import Owed


class Clock:
    """Monotonic time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = clock.monotonic()

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that waits are measured by; a pause only moves it on."""
    hand = Clock()
    monkeypatch.setattr(clock, "monotonic", hand)
    monkeypatch.setattr(clock, "pause", hand.advance)
    return hand


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, no connection to the database is to be had."""
    gone = threading.Event()
    connect = session.single_statements

    def unless_gone() -> object:
        if gone.is_set():
            raise Unavailable("The database cannot answer right now", code="database_unavailable")
        return connect()

    monkeypatch.setattr(session, "single_statements", unless_gone)
    return gone


@pytest.fixture
def owed(database: str, writer: Caller) -> Owed:
    """Makes tickets whose execution is owed."""
    return Owed(writer)


@pytest.fixture
def desk(database: str, writer: Caller, valkey: redis.Redis) -> Desk:
    """Where operations over many tickets are asked for and carried out."""
    batches.register_acts()
    return Desk(writer)


@pytest.fixture
def valkey(broker: str) -> Iterator[redis.Redis]:
    """An empty broker, which Celery and the hints of this process use."""
    use_broker(broker)
    with redis.Redis.from_url(redis_url(broker)) as client:
        client.flushall()
        yield client
        client.flushall()
    leave_broker()


@pytest.fixture
def dead_broker(environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A broker that nobody answers at."""
    url = f"redis+socket://{tmp_path}/nobody.sock"
    environment.setenv("BROKER_URL", url)
    settings.cache_clear()
    use_broker(url)
    yield
    leave_broker()


def use_broker(url: str) -> None:
    leave_broker()
    app.conf.broker_url = url


def leave_broker() -> None:
    """Close what this process holds open to a broker."""
    if hints.client.is_made:
        hints.client().close()
    hints.client.cache_clear()
    pools.reset()
    app._pool = None
    app.amqp._producer_pool = None


@pytest.fixture
def set_to(environment: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets settings for the length of a test."""

    def change(**values: object) -> None:
        for name, value in values.items():
            environment.setenv(f"ORCHESTRATOR_{name.upper()}", str(value))
        settings.cache_clear()

    return change
