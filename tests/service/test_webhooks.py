"""Webhooks of the real service: how soon they come, and that they come whatever dies on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
import redis
from standardwebhooks import Webhook

from models.kernel.clock import utcnow
from models.kernel.hints import redis_url
from orchestrator_cli.embedded.valkey import Valkey
from tests.service.running import Running
from tests.service.waiting import eventually
from tests.tasks.receivers import Handler, Receiver, hang, receiving, status

SCAN = {"command": "scan", "params": {}}
SOON_SECONDS = 3.0  # far above what it takes, for a machine that does other things as well


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


@pytest.fixture
def hook(service: Running, receiver: Receiver) -> Iterator[dict[str, Any]]:
    """A subscription to what happens to tickets."""
    made = service.ask("POST", "/webhooks", json={"url": receiver.url, "topics": ["ticket_*", "execution_*"]})
    assert made.status_code == 201, made.text
    yield made.json()
    service.ask("DELETE", f"/webhooks/{made.json()['id']}")


def heard(receiver: Receiver, ticket_id: str) -> list[str]:
    """What was told of a ticket, in the order of its arrival, each event once."""
    events = {request.id: request.event for request in list(receiver.requests)}
    return [event["type"] for event in events.values() if event["data"]["ticket_id"] == ticket_id]


WHOLE = ["ticket_created", "ticket_queued", "execution_started", "execution_completed"]


def test_a_ticket_s_whole_life_arrives_signed_in_order_and_soon(
    service: Running, receiver: Receiver, hook: dict[str, Any]
) -> None:
    late: list[float] = []

    def timed(handler: Handler) -> None:
        at = datetime.fromisoformat(receiver.requests[-1].event["timestamp"])
        late.append((utcnow() - at).total_seconds())
        status(204)(handler)

    receiver.act = timed
    ticket_id = service.go(**SCAN)
    service.wait_until(ticket_id, "completed")
    eventually(lambda: len(heard(receiver, ticket_id)) == 4, what="the whole life was told")
    assert heard(receiver, ticket_id) == WHOLE
    assert max(late) < SOON_SECONDS
    for request in receiver.requests:
        Webhook(hook["secret"]).verify(request.body, request.headers)


def test_a_worker_killed_in_the_middle_of_a_delivery_delivers_again_under_the_same_id(
    service: Running, receiver: Receiver, hook: dict[str, Any]
) -> None:
    receiver.acts = [hang]
    ticket_id = service.create(**SCAN)
    assert receiver.came.wait(20)
    os.kill(service.pid_of("system"), signal.SIGKILL)
    path = f"/webhooks/{hook['id']}/deliveries?state=delivered"
    eventually(lambda: service.ask("GET", path).json()["deliveries"], within=60, what="it was delivered after all")
    assert len(receiver.requests) >= 2
    assert {request.id for request in receiver.requests} == {receiver.requests[0].id}
    assert heard(receiver, ticket_id) == ["ticket_created"]
    eventually(service.is_ready, within=60, what="the worker is back")


def test_a_broker_that_forgets_everything_delays_events_and_loses_none(
    service: Running, receiver: Receiver, hook: dict[str, Any]
) -> None:
    tickets = []
    with redis.Redis.from_url(redis_url(Valkey(service.home / "valkey").url())) as broker:
        for _ in range(10):
            tickets.append(service.create(**SCAN))
            broker.flushall()
    told = [["ticket_created"]] * 10
    eventually(lambda: [heard(receiver, one) for one in tickets] == told, within=60, what="every event arrived")


def test_a_dispatcher_killed_while_it_feeds_loses_no_event_and_doubles_none(
    service: Running, receiver: Receiver, hook: dict[str, Any]
) -> None:
    tickets = [service.create(**SCAN) for _ in range(5)]
    os.kill(service.pid_of("dispatcher"), signal.SIGKILL)
    tickets += [service.create(**SCAN) for _ in range(5)]
    told = [["ticket_created"]] * 10
    eventually(lambda: [heard(receiver, one) for one in tickets] == told, within=60, what="every event arrived")
    assert service.row("SELECT count(*) AS n FROM webhook_deliveries WHERE webhook_id = %s", hook["id"])["n"] == 10
    eventually(service.is_ready, within=60, what="the dispatcher is back")
