"""Waiting for NOTIFY on a connection of its own, outside every pool."""

from __future__ import annotations

import select
from typing import Any

import psycopg2

from models.kernel.errors import Unavailable
from models.kernel.session import engine, plain_errors


class Listener:
    """Listens on one channel; the connection is made when first needed and again after it was lost."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.raw: Any = None

    def wait(self, seconds: float) -> bool:
        """Whether a notification came within so many seconds. Raises Unavailable when the database is away."""
        with plain_errors():
            try:
                if self.raw is None:
                    self.raw = self.connect()
                return self.poll(seconds)
            except psycopg2.Error as error:
                self.close()
                raise Unavailable("The database cannot answer right now", code="database_unavailable") from error

    def connect(self) -> Any:
        fairy = engine().raw_connection()
        raw: Any = fairy.driver_connection
        fairy.detach()
        raw.autocommit = True
        with raw.cursor() as cursor:
            cursor.execute(f'LISTEN "{self.channel}"')
        return raw

    def poll(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.raw], [], [], seconds)
        if ready:
            self.raw.poll()
        came = bool(self.raw.notifies)
        self.raw.notifies.clear()
        return came

    def close(self) -> None:
        if self.raw is not None:
            self.raw.close()
            self.raw = None
