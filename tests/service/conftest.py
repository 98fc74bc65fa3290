"""One running service for all tests of this directory, mended before each if the test before it broke it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

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


@pytest.fixture
def robot() -> str:
    """A robot that no other test drives."""
    return f"robot-{next(numbers)}"
