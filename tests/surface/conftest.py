"""A running service of its own for whoever throws anything at it: what they leave behind disturbs no other test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.running import Running


@pytest.fixture(scope="session")
def surface(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    service = Running(tmp_path_factory.mktemp("surface") / "home", ORCHESTRATOR_RATE_LIMIT="0")
    try:
        yield service.start()
    finally:
        service.stop()
