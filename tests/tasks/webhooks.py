"""Subscriptions and deliveries as the tests of the tasks use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.kernel.clients import Caller
from models.kernel.session import statement
from models.kernel.webhooks import subscriptions
from models.kernel.webhooks.feeding import feed_webhooks
from models.tickets import operations
from orchestrator_tasks.kernel import webhooks
from orchestrator_tasks.tickets import tasks  # noqa: F401 - makes tickets a source of events
from tests.tasks.owed import change, rows

DRAFT = {
    "command": "scan",
    "params": {},
    "priority": "normal",
    "timeout_seconds": 30,
    "metadata": {},
    "target": "rover",
}


def caller_of(tenant: str = "default") -> Caller:
    return Caller(f"writer-{tenant}", tenant, frozenset({"read", "write"}), "correlation-1")


def subscribe(url: str, *topics: str, tenant: str = "default") -> tuple[Mapping[Any, Any], str]:
    """A subscription and its secret."""
    draft = {"url": url, "topics": list(topics or ("*",)), "description": ""}
    with statement() as connection:
        return subscriptions.create_webhook(connection, draft, caller_of(tenant))


def create_ticket(tenant: str = "default") -> str:
    with statement() as connection:
        return str(operations.create_tickets(connection, [DRAFT], caller_of(tenant))[0]["id"])


def feed() -> int:
    """Feed until nothing is left; answers how many deliveries came of it."""
    made, more = feed_webhooks()
    while more:
        some, more = feed_webhooks()
        made += some
    return made


def deliver_due() -> list[str]:
    """Do what a worker does with each job that is due, in the order of their lanes."""
    ready = rows(
        "SELECT id FROM jobs WHERE queue = 'hooks' AND fence IS NULL AND NOT waits AND run_at <= now() ORDER BY id"
    )
    return [webhooks.perform(job["id"]) for job in ready]


def deliver_all() -> list[str]:
    """Until nothing is due any more."""
    said: list[str] = []
    while some := deliver_due():
        said += some
    return said


def make_due() -> None:
    """The pauses before retries are over."""
    change("UPDATE jobs SET run_at = now() - interval '1 ms' WHERE queue = 'hooks' AND run_at > now()")


def deliveries() -> list[dict[str, Any]]:
    return rows("SELECT * FROM webhook_deliveries ORDER BY seq, id")


def delivery() -> dict[str, Any]:
    (only,) = deliveries()
    return only


def webhook(webhook_id: str) -> dict[str, Any]:
    (only,) = rows("SELECT * FROM webhooks WHERE id = :id", id=webhook_id)
    return only


def topics_of(kind: str) -> list[str]:
    return [row["topic"] for row in rows("SELECT topic FROM ledger WHERE subject_kind = :kind ORDER BY seq", kind=kind)]
