"""Fixtures for the engine: those of the web, callers with one permission each, and the gate of an engine that waits."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask

from tests.web.conftest import anonymous, api, app, fresh_process, reader, server
from tests.web.service import Api, key_with

__all__ = ["anonymous", "api", "app", "fresh_process", "reader", "server", "writing"]


@pytest.fixture
def writing(app: Flask) -> Api:
    """A caller who may read and write, and administer nothing."""
    return Api(app, key_with("read", "write", name="writing"))


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file; the engine of a test waits until it is gone."""
    gate = tmp_path / "gate"
    gate.touch()
    return gate
