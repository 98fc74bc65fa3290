"""Time, through one place. Facts in rows use the database's clock; waits use `monotonic`."""

from __future__ import annotations

import time
from datetime import UTC, datetime

monotonic = time.monotonic
pause = time.sleep
wall = time.time


def utcnow() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.fromtimestamp(wall(), UTC)
