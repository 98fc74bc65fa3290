"""Alembic's entry: runs the migrations on the database of the settings, or on the one it is handed."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, text

import models.engine.tables
import models.kernel.bulk_moves
import models.kernel.clients
import models.kernel.dead_letters
import models.kernel.idempotency
import models.kernel.installation
import models.kernel.jobs
import models.kernel.latch
import models.kernel.ledger
import models.kernel.processes
import models.kernel.schedules
import models.kernel.tallies
import models.kernel.webhooks.tables
import models.tickets.robot_tables
import models.tickets.tables  # noqa: F401 - each import adds its tables to the metadata
from models.kernel.metadata import metadata
from models.kernel.parsers import postgres_url
from models.kernel.settings import settings

MIGRATION_LOCK = 7_203_115


def is_ours(_object: object, name: str | None, _kind: str, _reflected: bool, _compare_to: object) -> bool:
    """Partitions are made by the database, not declared in the metadata."""
    return not (name and name.startswith(("ledger_0", "ledger_1", "engine_inputs_0")))


def run_migrations() -> None:
    url = context.config.attributes.get("database_url") or settings().database_url
    engine = create_engine(postgres_url(url), connect_args={"connect_timeout": 5})
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        context.configure(connection=connection, target_metadata=metadata, include_object=is_ours)
        context.run_migrations()
    engine.dispose()


run_migrations()
