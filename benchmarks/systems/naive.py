"""The naive service: Flask, one ORM commit, `send_task`, and a worker that commits started and done.

The web is run as gunicorn is usually run, `gunicorn --worker-class gthread --workers 2 --threads 8`, the worker as
Celery usually is (prefork). It forgets what the broker loses between commit and message, and runs twice what is
delivered twice. `POST /forgetful` only sends the message: raw Celery behind the same web, which remembers nothing.
`POST /draft` only commits.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from flask import jsonify
from sqlalchemy import JSON, DateTime, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from benchmarks.systems.drafts import draft, make_app
from benchmarks.systems.marks import mark

QUEUE = "naive"

engine = create_engine(os.environ["BENCH_DATABASE_URL"])
sessions = sessionmaker(engine)
celery = Celery("naive", broker=os.environ["BENCH_BROKER_URL"])
celery.conf.update(task_default_queue=QUEUE, task_ignore_result=True, broker_connection_retry_on_startup=True)
app = make_app("naive")


class Base(DeclarativeBase):
    pass


class Ticket(Base):
    __tablename__ = "naive_tickets"

    id: Mapped[str] = mapped_column(String, primary_key=True, default=lambda: f"tick-{uuid.uuid4()}")
    command: Mapped[str] = mapped_column(String)
    params: Mapped[dict[str, Any]] = mapped_column(JSON)
    priority: Mapped[str] = mapped_column(String)
    timeout_seconds: Mapped[int]
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    target: Mapped[str] = mapped_column(String, index=True)
    status: Mapped[str] = mapped_column(String, default="pending", index=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=lambda: datetime.now(UTC), index=True)
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    completed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)


def create() -> Ticket:
    given = draft()
    given["details"] = given.pop("metadata")
    with Session(engine, expire_on_commit=False) as session:
        ticket = Ticket(**given)
        session.add(ticket)
        session.commit()
    return ticket


def shown(ticket: Ticket) -> dict[str, Any]:
    fields = ("id", "command", "params", "priority", "timeout_seconds", "target", "status")
    return {**{name: getattr(ticket, name) for name in fields}, "created_at": ticket.created_at.isoformat()}


@app.post("/ticket")
def create_and_send() -> Any:
    ticket = create()
    celery.send_task("naive.execute", (ticket.id,))
    return jsonify(shown(ticket)), 201


@app.post("/draft")
def create_only() -> Any:
    return jsonify(shown(create())), 201


@app.post("/forgetful")
def send_only() -> Any:
    given = {"id": f"tick-{uuid.uuid4()}", **draft()}
    celery.send_task("naive.execute", (given["id"],))
    return jsonify(given), 201


@celery.task(name="naive.execute")
def execute(ticket_id: str) -> None:
    with sessions() as session:
        ticket = session.get_one(Ticket, ticket_id)
        ticket.status, ticket.started_at = "executing", datetime.now(UTC)
        session.commit()
        began = time.monotonic_ns()
        result = {"executed": True}  # the driver would be here
        mark(ticket_id, began)
        ticket.status, ticket.completed_at, ticket.result = "completed", datetime.now(UTC), result
        session.commit()
