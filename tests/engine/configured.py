"""An accepted configuration, for tests that need one and not the planner."""

from __future__ import annotations

from typing import Any

from models.engine.control import accept_config
from models.kernel.session import transaction
from tests.engine.market import MINUTES_3, SOURCES


def configure(max_records: int = 100_000, max_age_ms: int | None = None, **members: Any) -> None:
    """Accept a configuration of the test's sources; `members` replace or add."""
    retention = {"max_records": max_records} | ({} if max_age_ms is None else {"max_age_ms": max_age_ms})
    body = {
        "sources": [{"source_id": name, "symbols": sorted(symbols)} for name, symbols in SOURCES.items()],
        "scheduler": {"mode": "boundary", "boundary_interval_ms": MINUTES_3, "boundary_delay_ms": 1000},
        "engine": {"engine_mode": "truth", "alignment_ms": MINUTES_3},
        "buffer_retention": retention,
        **members,
    }
    with transaction() as connection:
        accept_config(connection, body, "test")
