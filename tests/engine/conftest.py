"""Fixtures for the engine's endpoints: those of the web, and callers with one permission each."""

from __future__ import annotations

import pytest
from flask import Flask

from tests.web.conftest import anonymous, api, app, fresh_process, reader, server
from tests.web.service import Api, key_with

__all__ = ["anonymous", "api", "app", "fresh_process", "reader", "server", "writing"]


@pytest.fixture
def writing(app: Flask) -> Api:
    """A caller who may read and write, and administer nothing."""
    return Api(app, key_with("read", "write", name="writing"))
