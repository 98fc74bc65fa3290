"""The door to Celery: what a message says and where it lies."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from models.kernel.backlog import Ready
from models.kernel.errors import Unavailable
from models.kernel.jobs import CRITICAL, HIGH, LOW, NORMAL
from models.kernel.messages import CORRELATION, job_message, list_of, lists_of
from models.kernel.messages import message as compose
from orchestrator_tasks import publisher
from orchestrator_tasks.app import app
from orchestrator_tasks.tickets import tasks

PRIORITIES = (CRITICAL, HIGH, NORMAL, LOW)


def ready(number: int = 1, priority: int = NORMAL, queue: str = "io") -> Ready:
    return Ready(number, "tickets.execute", f"ticket-{number}", queue, priority, f"correlation-{number}")


def messages(valkey: redis.Redis, name: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in reversed(valkey.lrange(name, 0, -1))]


@pytest.mark.parametrize("priority", PRIORITIES)
def test_a_message_lies_in_the_list_of_its_priority_alone(valkey: redis.Redis, priority: int) -> None:
    publisher.publish([ready(priority=priority)])
    assert [valkey.llen(name) for name in lists_of("io")] == [int(p == priority) for p in PRIORITIES]
    assert publisher.count_messages("io") == 1


def test_a_message_names_the_job_and_carries_the_correlation_id_in_a_header(valkey: redis.Redis) -> None:
    publisher.publish([ready(7)])
    (message,) = messages(valkey, "io:2")
    assert message["headers"][CORRELATION] == "correlation-7"
    assert message["headers"]["task"] == "tickets.execute"
    assert kwargs_of(message) == {"job_id": 7, "subject_id": "ticket-7"}
    assert message["headers"]["eta"] is None


def test_a_message_is_the_one_that_celery_would_have_sent(valkey: redis.Redis) -> None:
    kwargs = {"job_id": 7, "subject_id": "ticket-7", "others": [(8, "ticket-8", None)]}
    theirs = app.amqp.as_task_v2("an-id", "tickets.execute", kwargs=kwargs, ignore_result=True)
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        app.amqp.send_task_message(
            producer, "tickets.execute", theirs, queue="io", declare=[], priority=HIGH, headers={CORRELATION: "c"}
        )
    ours = compose("tickets.execute", kwargs, "io", HIGH, task_id="an-id", headers={CORRELATION: "c"})
    valkey.lpush(list_of("io", HIGH), ours)
    expected, found = (told(each) for each in messages(valkey, "io:1"))
    assert found == expected


def told(message: dict[str, Any]) -> dict[str, Any]:
    """What a message says, but for who sent it and the number of its sending."""
    assert message["headers"].pop("origin")
    assert message["properties"].pop("delivery_tag")
    return {**message, "body": json.loads(base64.b64decode(message["body"]))}


def test_messages_of_one_priority_keep_their_order(valkey: redis.Redis) -> None:
    publisher.publish([ready(number) for number in (3, 1, 2)])
    said = [message["headers"][CORRELATION] for message in messages(valkey, "io:2")]
    assert said == ["correlation-3", "correlation-1", "correlation-2"]


@pytest.mark.parametrize(
    "act",
    [
        lambda: publisher.publish([ready()]),
        lambda: publisher.count_messages("io"),
        lambda: publisher.withdraw_canary("io", "a-canary"),
    ],
)
def test_a_queue_s_key_that_is_no_list_is_told_as_that_and_not_as_a_broker_that_is_away(
    valkey: redis.Redis, act: Callable[[], object]
) -> None:
    for name in lists_of("io"):
        valkey.set(name, "somebody else's")
    with pytest.raises(Unavailable, match="WRONGTYPE") as refused:
        act()
    assert refused.value.code == "broker_refused"


def test_messages_do_not_wait_for_one_another(valkey: redis.Redis) -> None:
    publisher.publish([ready(1)])  # whatever a first use costs
    before = count_reads(valkey)
    publisher.publish([ready(number, priority) for number, priority in enumerate(PRIORITIES * 8)])
    assert count_reads(valkey) - before < len(PRIORITIES * 8) / 2, "32 messages come in a few reads"


def count_reads(valkey: redis.Redis) -> int:
    """How often the server read what its clients sent, whatever the number of commands."""
    return int(valkey.info("stats")["total_reads_processed"])


def test_a_publish_after_a_flush_arrives(valkey: redis.Redis) -> None:
    publisher.publish([ready(1)])
    valkey.flushall()
    publisher.publish([ready(2)])
    assert publisher.count_messages("io") == 1
    assert valkey.llen("io:2") == 1


def kwargs_of(message: dict[str, Any]) -> dict[str, Any]:
    _args, kwargs, _embed = json.loads(base64.b64decode(message["body"]))
    return dict(kwargs)


def test_neighbours_of_one_priority_share_a_message_up_to_its_bound(valkey: redis.Redis) -> None:
    publisher.publish([ready(number) for number in range(5)], together=3)
    first, second = (kwargs_of(message) for message in messages(valkey, "io:2"))
    assert (first["job_id"], [order[0] for order in first["others"]]) == (0, [1, 2])
    assert (second["job_id"], second["others"]) == (3, [[4, "ticket-4", "correlation-4"]])


def test_no_message_holds_jobs_of_two_priorities_or_kinds(valkey: redis.Redis) -> None:
    other = Ready(9, "engine.run", "run-9", "io", NORMAL, "correlation-9")
    publisher.publish([ready(1, HIGH), ready(2, NORMAL), ready(3, NORMAL), other], together=8)
    assert [kwargs_of(message)["job_id"] for message in messages(valkey, "io:1")] == [1]
    assert [kwargs_of(message)["job_id"] for message in messages(valkey, "io:2")] == [2, 9]


def test_a_kind_that_goes_one_by_one_shares_no_message(valkey: redis.Redis) -> None:
    publisher.publish([Ready(n, "no.such", "s", "io", NORMAL, "c") for n in range(2)], together=8)
    assert publisher.count_messages("io") == 2


@pytest.mark.usefixtures("dead_broker")
def test_a_broker_that_is_away_is_said_plainly() -> None:
    with pytest.raises(Unavailable, match="broker"):
        publisher.count_messages("io")
    with pytest.raises(Unavailable, match="broker"):
        publisher.publish([ready()])


def test_flower_is_told_of_each_job_of_a_full_message() -> None:
    ids = [f"tick-20260101-{number:08x}" for number in range(tasks.MOST_TOGETHER)]
    ready = [Ready(10**9, "tickets.execute", each, "io", NORMAL, "0" * 36) for each in ids]
    shown = json.loads(job_message(*ready))["headers"]["kwargsrepr"]
    assert [each for each in ids if each not in shown] == []
