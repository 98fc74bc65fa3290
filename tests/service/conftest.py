"""One running service for all tests of this directory, mended before each if the test before it broke it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.service.engine import EngineService
from tests.service.running import Running
from tests.service.waiting import eventually

numbers = itertools.count(1)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    service = Running(tmp_path_factory.mktemp("service") / "home")
    try:
        yield service.start()
    finally:
        took = service.stop()
    assert took < 10
    assert service.alive() == []


@pytest.fixture
def service(running: Running) -> Running:
    """The service, ready."""
    if running.process is None or running.process.poll() is not None:
        running.start()
    eventually(running.is_ready, within=60, what="the service is ready")
    return running


@pytest.fixture(scope="session")
def running_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineService]:
    service = EngineService(tmp_path_factory.mktemp("engine") / "home")
    try:
        yield service.start()  # type: ignore[misc]
    finally:
        service.stop()
    assert service.alive() == []


@pytest.fixture
def engine(running_engine: EngineService) -> EngineService:
    """The service with an engine of its own, ready, under the tests' configuration; nothing is planned."""
    service = running_engine
    if service.process is None or service.process.poll() is not None:
        service.start()
    eventually(service.is_ready, within=60, what="the service is ready")
    service.configure()
    if service.status()["state"] not in ("init", "drained"):
        service.act("stop")
        service.act("reset")
    return service


@pytest.fixture
def robot() -> str:
    """A robot that no other test drives."""
    return f"robot-{next(numbers)}"
