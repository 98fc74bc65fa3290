"""Waiting for NOTIFY on a connection of its own, outside every pool."""

from __future__ import annotations

import select
from typing import Any

from models.kernel.session import plain_errors, single_statements


class Listener:
    """Listens on one channel; the connection is made when first needed and again after it was lost."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.connection: Any = None

    def wait(self, seconds: float) -> bool:
        """Whether a notification came within so many seconds. Raises Unavailable when the database is away."""
        with plain_errors():
            if self.connection is None:
                self.connection = single_statements().connect()
                self.connection.detach()
                self.connection.exec_driver_sql(f'LISTEN "{self.channel}"')
            try:
                return self.poll(seconds)
            except Exception:
                self.close()
                raise

    def poll(self, seconds: float) -> bool:
        raw = self.connection.connection.driver_connection
        ready, _, _ = select.select([raw], [], [], seconds)
        if not ready:
            return False
        # A statement of no effect makes the driver read the notifications, or notice that the connection is gone.
        self.connection.exec_driver_sql("SELECT 1")
        came = bool(raw.notifies)
        raw.notifies.clear()
        return came

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
