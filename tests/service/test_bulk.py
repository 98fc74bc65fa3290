"""Operations over many tickets in the running service: answered at once, and finished whoever dies meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.running import Running
from tests.service.test_killing import kill, valkey_of
from tests.service.waiting import eventually

ENDED = ("completed", "failed", "cancelled")
MANY = 4000


@pytest.fixture
def crowd(service: Running, robot: str) -> Iterator[str]:
    """The robot of MANY pending tickets, whose executions end with the test."""
    for _ in range(MANY // 1000):
        made = service.ask("POST", "/tickets/batch", json={"tickets": [{"command": "scan", "target": robot}] * 1000})
        assert made.status_code == 201, made.text
    yield robot
    asked = service.ask("POST", "/tickets/cancel", json={"filter": {"target": robot}})
    ended(service, asked.json()["id"])


def operation(service: Running, operation_id: str) -> dict[str, Any]:
    answer = service.ask("GET", f"/operations/{operation_id}")
    return dict(answer.json()) if answer.status_code == 200 else {"status": "away", "matched": 0}


def ended(service: Running, operation_id: str) -> dict[str, Any]:
    """The operation at its end."""
    eventually(lambda: operation(service, operation_id)["status"] in ENDED, within=60, what="the operation ends")
    return operation(service, operation_id)


def begin(service: Running, crowd: str) -> str:
    """An operation that has done something and not all."""
    asked = service.ask("POST", "/tickets/execute", json={"filter": {"target": crowd}})
    assert asked.status_code == 202, asked.text
    operation_id = str(asked.json()["id"])
    seen = eventually(lambda: operation(service, operation_id)["matched"], what="the first chunk is done")
    assert seen < MANY, "it was over before anything could happen to it"
    return operation_id


def assert_each_was_set_going_once(service: Running, crowd: str, operation_id: str) -> None:
    told = service.row(
        "SELECT count(*) AS n, count(DISTINCT subject_id) AS tickets FROM ledger"
        " JOIN tickets ON tickets.id = subject_id WHERE target = %s AND topic = 'ticket_queued'",
        crowd,
    )
    assert told == {"n": MANY, "tickets": MANY}
    at_end = ended(service, operation_id)
    assert (at_end["status"], at_end["matched"], at_end["done"]) == ("completed", MANY, MANY)


def test_a_worker_killed_in_the_middle_of_an_operation_is_followed_by_one_that_does_the_rest(
    service: Running, crowd: str
) -> None:
    operation_id = begin(service, crowd)
    kill(service, "system")
    ended(service, operation_id)
    assert_each_was_set_going_once(service, crowd, operation_id)
    topics = service.topics(operation_id)
    assert topics.count("operation_started") == 2


def test_an_operation_outlives_the_loss_of_everything_in_valkey(service: Running, crowd: str) -> None:
    operation_id = begin(service, crowd)
    with valkey_of(service) as client:
        client.flushall()
    ended(service, operation_id)
    assert_each_was_set_going_once(service, crowd, operation_id)


def test_an_operation_outlives_a_kill_of_postgres(service: Running, crowd: str) -> None:
    operation_id = begin(service, crowd)
    kill(service, "postgres")
    ended(service, operation_id)
    assert_each_was_set_going_once(service, crowd, operation_id)


def test_a_cancelled_operation_sets_nothing_more_going(service: Running, crowd: str) -> None:
    operation_id = begin(service, crowd)
    cancelled = service.ask("POST", f"/operations/{operation_id}/cancel").json()
    assert cancelled["status"] == "cancelled"
    left = service.row("SELECT count(*) AS n FROM tickets WHERE target = %s AND state = 'pending'", crowd)
    assert left == {"n": MANY - cancelled["done"]}


def test_a_batch_that_is_larger_than_a_body_may_be_is_refused_whole(service: Running, robot: str) -> None:
    big = {"command": "scan", "target": robot, "metadata": {"note": "x" * 1200}}
    answer = service.ask("POST", "/tickets/batch", json={"tickets": [big] * 1000})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert service.rows("SELECT id FROM tickets WHERE target = %s", robot) == []
