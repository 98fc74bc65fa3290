"""The processes that are running: each beats into its row, `/readyz` reads who is missing."""

from __future__ import annotations

import logging
import os
import socket
import threading

from sqlalchemy import Column, Connection, DateTime, Integer, Table, Text, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from models.kernel.errors import OrchestratorError
from models.kernel.expressions import seconds
from models.kernel.metadata import metadata
from models.kernel.session import statement
from models.kernel.settings import settings

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
FRESH_SECONDS = 4.0
FORGET_SECONDS = 3600.0

processes = Table(
    "processes",
    metadata,
    Column("id", Text, primary_key=True, comment="role@host:pid"),
    Column("role", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("beat_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    postgresql_with={"fillfactor": 50},
)


def refuse_without_servers() -> None:
    """End a process that was started by itself and was not told its servers: it would ask for them for ever.

    Raises SystemExit, and InvalidSettings when what it was told is wrong.
    """
    chosen = settings()
    named = {"DATABASE_URL": chosen.database_url, "BROKER_URL": chosen.broker_url}
    if missing := [name for name, url in named.items() if not url]:
        raise SystemExit(
            f"{' and '.join(missing)} must be set for a process that is started by itself; "
            "`orchestrator up` starts servers of its own and all processes on them"
        )


def process_id(role: str) -> str:
    return f"{role}@{socket.gethostname()}:{os.getpid()}"


def beat(connection: Connection, role: str) -> None:
    """Say that this process is alive and able to work."""
    row = {"id": process_id(role), "role": role, "host": socket.gethostname(), "pid": os.getpid()}
    made = insert(processes).values(row)
    again = {"beat_at": func.clock_timestamp()}
    connection.execute(made.on_conflict_do_update(index_elements=["id"], set_=again))


def leave(connection: Connection, role: str) -> None:
    """Say that this process ends."""
    connection.execute(delete(processes).where(processes.c.id == process_id(role)))


def list_fresh_roles(connection: Connection) -> set[str]:
    """The roles of which at least one process beat within FRESH_SECONDS."""
    fresh = processes.c.beat_at > func.clock_timestamp() - seconds(FRESH_SECONDS)
    return set(connection.scalars(select(processes.c.role).where(fresh).distinct()))


def has_fresh(connection: Connection, role: str, host: str) -> bool:
    """Whether a process of this role on this host beat within FRESH_SECONDS."""
    fresh = processes.c.beat_at > func.clock_timestamp() - seconds(FRESH_SECONDS)
    mine = select(processes.c.id).where(processes.c.role == role, processes.c.host == host, fresh)
    return connection.scalar(select(mine.exists())) is True


def forget_silent(connection: Connection) -> int:
    """Delete the rows of processes that have been silent for FORGET_SECONDS."""
    silent = processes.c.beat_at < func.clock_timestamp() - seconds(FORGET_SECONDS)
    return connection.execute(delete(processes).where(silent)).rowcount


class Presence:
    """Beats for this process from a thread of its own, until it is stopped."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, name="presence", daemon=True)

    def start(self) -> Presence:
        self.thread.start()
        return self

    def run(self) -> None:
        while True:
            try:
                with statement() as connection:
                    beat(connection, self.role)
            except OrchestratorError as error:
                log.warning("cannot say that this process is alive", extra={"error": error.message})
            if self.over.wait(BEAT_SECONDS):
                return

    def stop(self) -> None:
        """Stop beating and take the row away; a database that is away will see the row go stale instead."""
        self.over.set()
        self.thread.join(timeout=2 * BEAT_SECONDS)
        try:
            with statement() as connection:
                leave(connection, self.role)
        except OrchestratorError as error:
            log.warning("cannot say that this process ends", extra={"error": error.message})
