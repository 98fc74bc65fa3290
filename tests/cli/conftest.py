"""A service on stand-ins, stopped whatever happens to the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.service import Service


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts services; the home is `home` under the test's directory unless named."""
    running: list[Service] = []

    def begin(home: Path | None = None, **settings: str) -> Service:
        service = Service(home or tmp_path / "home", **settings)
        running.append(service)
        return service

    yield begin
    for service in running:
        service.stop()
        assert service.process.stdout is not None
        service.process.stdout.close()
