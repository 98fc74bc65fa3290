"""The toy domain's table, in the test's own database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection

from models.kernel.session import statement
from tests.kernel.parcel import parcels


@pytest.fixture
def road(database: str) -> str:
    """A database with the table of the parcels."""
    with statement() as connection:
        parcels.create(connection)
    return database


@pytest.fixture
def connection(road: str) -> Iterator[Connection]:
    """A connection on which each statement commits by itself."""
    with statement() as connection:
        yield connection
