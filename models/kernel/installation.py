"""What belongs to this installation alone: one row, made by the first migration."""

from __future__ import annotations

import functools

from sqlalchemy import CheckConstraint, Column, Connection, DateTime, Table, Text, func, select

from models.kernel.metadata import metadata
from models.kernel.session import statement

installation = Table(
    "installation",
    metadata,
    Column("singleton", Text, primary_key=True, server_default="row"),
    Column(
        "cursor_key", Text, nullable=False, server_default=func.concat(func.gen_random_uuid(), func.gen_random_uuid())
    ),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    CheckConstraint("singleton = 'row'", name="singleton"),
)


def get_cursor_key(connection: Connection) -> bytes:
    return str(connection.execute(select(installation.c.cursor_key)).scalar_one()).encode()


@functools.cache
def cursor_key() -> bytes:
    """The key that signs page cursors, so that one of another installation, or an altered one, is refused."""
    with statement() as connection:
        return get_cursor_key(connection)
