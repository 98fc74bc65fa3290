"""Real servers for tests: one embedded Postgres and one embedded Valkey for the whole session.

`postgres_server` yields the URL of the database `postgres`, from which a test makes
databases of its own; `valkey_server` yields a broker URL (redis+socket://), which
`models.kernel.hints.redis_url` turns into redis-py's.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator_cli.embedded.postgres import Postgres
from orchestrator_cli.embedded.valkey import Valkey


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Postgres(tmp_path_factory.mktemp("postgres"))
    try:
        server.start()
        yield server.url("postgres")
    finally:
        server.stop()


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    try:
        server.start()
        yield server.url()
    finally:
        server.stop()
