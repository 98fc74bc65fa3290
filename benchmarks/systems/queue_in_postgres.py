"""Procrastinate, a queue in Postgres: its own client behind the naive service's web, its own worker."""

from __future__ import annotations

import functools
import os
import time
import uuid
from typing import Any

import procrastinate
from flask import jsonify

from benchmarks.systems.drafts import draft, make_app
from benchmarks.systems.marks import mark

QUEUE = "tickets"
URL = os.environ["BENCH_PLAIN_DATABASE_URL"]

queue = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=URL, min_size=4, max_size=10))
app = make_app("procrastinate")


@queue.task(name="execute", queue=QUEUE)
async def execute(ticket_id: str, **_draft: Any) -> None:
    mark(ticket_id, time.monotonic_ns())


@functools.cache
def opened() -> procrastinate.App:
    """The queue as this process's threads reach it: through a pool."""
    return queue.open()


@app.post("/ticket")
def create() -> Any:
    given = {"id": f"tick-{uuid.uuid4()}", **draft()}
    opened()
    execute.defer(ticket_id=given["id"], draft=given)
    return jsonify(given), 201


def main() -> None:
    """Make the tables."""
    opened().schema_manager.apply_schema()
    queue.close()


if __name__ == "__main__":
    main()
