"""An accepted configuration, for tests that need one and not the planner."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import text

from models.kernel.session import transaction
from tests.engine.market import MINUTES_3, SOURCES


def configure(max_records: int = 100_000, max_age_ms: int | None = None, **members: Any) -> None:
    """Accept a configuration of the test's sources."""
    body = {
        "sources": [{"source_id": name, "symbols": sorted(symbols)} for name, symbols in SOURCES.items()],
        "engine": {"engine_mode": "truth", "alignment_ms": MINUTES_3},
        "buffer_retention": {"max_records": max_records, "max_age_ms": max_age_ms},
        **members,
    }
    accept = """
        WITH made AS (
            INSERT INTO engine_configs (digest, body, accepted_by)
            VALUES (encode(sha256(convert_to(:body, 'UTF8')), 'hex'), CAST(:body AS jsonb), 'test') RETURNING version)
        UPDATE engine_control SET config_version = (SELECT version FROM made)
    """
    with transaction() as connection:
        connection.execute(text(accept), {"body": json.dumps(body)})
