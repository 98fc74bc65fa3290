"""Fills a baseline's backlog: `python -m benchmarks.systems.fill SYSTEM COUNT`. Its time is never measured."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any


def naive(count: int) -> None:
    """Rows in one statement, then a message each, as the web would have sent."""
    from sqlalchemy import insert

    from benchmarks.systems.naive import Ticket, celery, sessions

    ids = [f"tick-{datetime.now(UTC).timestamp()}-{number}" for number in range(count)]
    same: dict[str, Any] = {
        "command": "scan",
        "params": {},
        "priority": "normal",
        "timeout_seconds": 300,
        "details": {},
        "target": "default",
    }
    with sessions() as session:
        session.execute(insert(Ticket), [{"id": each, **same} for each in ids])
        session.commit()
    send(celery, "naive.execute", ids)


def raw(count: int) -> None:
    from benchmarks.systems.raw_celery import app

    send(app, "raw.execute", [f"raw-{number}" for number in range(count)])


def send(app: Any, task: str, ids: list[str]) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        for each in ids:
            app.send_task(task, (each,), producer=producer)


def procrastinate(count: int) -> None:
    from benchmarks.systems.queue_in_postgres import execute, opened

    opened()
    for start in range(0, count, 1000):
        execute.batch_defer(*({"ticket_id": f"p-{number}"} for number in range(start, min(count, start + 1000))))


SYSTEMS = {"naive": naive, "raw": raw, "procrastinate": procrastinate}

if __name__ == "__main__":
    SYSTEMS[sys.argv[1]](int(sys.argv[2]))
