"""POST /execute sends the message itself while the queue is calm, and loses nothing when it cannot."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import redis

from models.kernel.errors import Unavailable
from models.kernel.hints import WORK, redis_url
from models.kernel.messages import CORRELATION, lists_of
from models.kernel.silence import Silence
from models.tickets.transitions import QUEUE
from orchestrator_web import hints, sending
from tests.conftest import forget
from tests.web.service import Api, rows

OF_JOB = "SELECT dispatched_at IS NOT NULL AS is_sent, dispatches FROM jobs WHERE subject_id = :id"


@pytest.fixture
def valkey(broker: str) -> Any:
    with redis.Redis.from_url(redis_url(broker)) as client:
        client.flushall()
        yield client


@pytest.fixture
def no_broker(api: Api, environment: pytest.MonkeyPatch) -> None:
    """Redis is away for this process."""
    environment.setenv("BROKER_URL", "redis://127.0.0.1:1/0")
    forget()


def messages(valkey: Any) -> list[dict[str, Any]]:
    return [json.loads(each) for name in lists_of(QUEUE) for each in reversed(valkey.lrange(name, 0, -1))]


def test_an_accepted_execution_is_sent_at_once(api: Api, valkey: Any) -> None:
    ticket_id = api.create()["id"]
    accepted = api.accept(ticket_id)
    (message,) = messages(valkey)
    _, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    assert kwargs["subject_id"] == ticket_id
    assert message["headers"][CORRELATION] == accepted.headers["X-Correlation-Id"]
    assert rows(OF_JOB, id=ticket_id) == [{"is_sent": True, "dispatches": 1}]


def test_a_forced_one_too(api: Api, valkey: Any) -> None:
    ticket_id = api.create()["id"]
    assert api.accept(ticket_id, force=True).status_code == 202
    assert len(messages(valkey)) == 1


def test_one_that_is_repeated_under_its_key_is_sent_once(api: Api, valkey: Any) -> None:
    ticket_id = api.create()["id"]
    headers = {"Prefer": "respond-async", "Idempotency-Key": "once"}
    for _ in range(2):
        assert api.post("/execute", json={"ticket_id": ticket_id}, headers=headers).status_code == 202
    assert len(messages(valkey)) == 1


def test_the_dispatcher_is_woken_for_what_is_not_ours_to_send(api: Api, valkey: Any) -> None:
    with valkey.pubsub(ignore_subscribe_messages=True) as bell:
        bell.subscribe(WORK)
        bell.get_message(timeout=1)
        assert api.accept(api.create(command="stop")["id"]).status_code == 202
        heard = bell.get_message(timeout=5)
    assert (heard["data"], messages(valkey)) == (QUEUE.encode(), [])


@pytest.mark.usefixtures("no_broker")
def test_a_job_whose_message_cannot_be_sent_is_the_dispatcher_s(api: Api) -> None:
    ticket_id = api.create()["id"]
    assert api.accept(ticket_id).status_code == 202
    assert rows(OF_JOB, id=ticket_id) == [{"is_sent": False, "dispatches": 0}]


@pytest.mark.usefixtures("no_broker")
def test_an_execution_that_was_accepted_stays_so_when_the_database_goes_too(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise Unavailable("The database cannot answer right now", code="database_unavailable")

    monkeypatch.setattr(sending, "hand_back_jobs", fail)
    ticket_id = api.create()["id"]
    assert api.accept(ticket_id).status_code == 202
    assert rows(OF_JOB, id=ticket_id) == [{"is_sent": True, "dispatches": 1}]  # sent again once it counts as lost


class Deaf:
    """A Redis that takes connections and answers nobody."""

    asked = 0

    def lpush(self, *_: Any) -> None:
        self.asked += 1
        raise redis.TimeoutError("Timeout reading from socket")

    pipeline = lpush


def test_a_silent_redis_is_waited_for_once_and_not_by_each_request(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = Deaf()
    monkeypatch.setattr(hints, "client", lambda: deaf)
    monkeypatch.setattr(hints, "silence", Silence())
    for command in ("scan", "scan", "stop"):
        ticket_id = api.create(command=command)["id"]
        assert api.accept(ticket_id).status_code == 202
        assert rows(OF_JOB, id=ticket_id) == [{"is_sent": False, "dispatches": 0}]
    assert deaf.asked == 1
