"""A duty that leaves a row behind each time it is done, for workers of the tests (`--include tests.tasks.probe`)."""

from __future__ import annotations

from sqlalchemy import text

from models.kernel.session import statement
from orchestrator_tasks.schedules import DUTIES

TABLE = "CREATE TABLE probes (id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())"


def probe() -> None:
    with statement() as connection:
        connection.execute(text("INSERT INTO probes DEFAULT VALUES"))


DUTIES["probe"] = probe
