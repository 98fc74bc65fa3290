"""Rates are limited by client over all processes, and a Redis that is away refuses and delays nobody."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import redis
from flask import Flask, g

from models.kernel import clock
from models.kernel.clients import Caller
from models.kernel.errors import TooMany
from models.kernel.hints import redis_url
from models.kernel.session import transaction
from orchestrator_web import ratelimit
from orchestrator_web.app import create_app
from tests.conftest import forget
from tests.web.service import DRIVE, Api, assert_problem, key_with, rows

NOON = 1_800_000_000.25


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    moment = [NOON]
    monkeypatch.setattr(clock, "wall", lambda: moment[0])
    return moment


@pytest.fixture
def counted(broker: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url(broker)) as client:
        for name in client.keys("orchestrator:rate:*"):
            client.delete(name)
        yield client


def set_limit(name: str, limit: int | None) -> None:
    rows("UPDATE clients SET rate_limit = :limit WHERE name = :name RETURNING 1", limit=limit, name=name)


def limited(app: Flask, limit: int, name: str = "limited") -> Api:
    key = key_with("read", "write", name=name)
    set_limit(name, limit)
    return Api(app, key)


def test_every_authenticated_answer_says_what_may_still_be_asked(app: Flask, api: Api, counted: redis.Redis) -> None:
    answer = api.get("/tickets")
    limit, remaining, reset = (answer.headers[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining", "Reset"))
    assert (limit, remaining, reset) == ("1000", "999", str(int(NOON) + 1))
    refused = Api(app, key_with(name="nobody")).get("/tickets")
    assert refused.status_code == 403
    assert refused.headers["X-RateLimit-Remaining"] == "999"
    assert "X-RateLimit-Limit" not in Api(app).get("/").headers


@pytest.mark.parametrize("limit", [1, 3, 39])
def test_a_small_limit_is_exact_and_ends_with_the_second(
    app: Flask, counted: redis.Redis, now: list[float], limit: int
) -> None:
    caller = limited(app, limit)
    for left in reversed(range(limit)):
        answer = caller.get("/tickets")
        assert (answer.status_code, answer.headers["X-RateLimit-Remaining"]) == (200, str(left))
    refused = caller.get("/tickets")
    problem = assert_problem(refused, 429)
    assert (problem["code"], problem["retriable"], problem["retry_after_ms"]) == ("rate_limited", True, 750)
    assert (refused.headers["Retry-After"], refused.headers["X-RateLimit-Remaining"]) == ("1", "0")
    now[0] += 1
    assert caller.get("/tickets").status_code == 200


def test_what_is_refused_does_nothing(app: Flask, counted: redis.Redis) -> None:
    caller = limited(app, 1)
    caller.create()
    assert_problem(caller.post("/ticket", json=DRIVE), 429)
    assert rows("SELECT count(*) AS n FROM tickets") == [{"n": 1}]


def test_one_client_s_requests_cost_another_nothing(app: Flask, counted: redis.Redis) -> None:
    busy, other = limited(app, 1, "busy"), limited(app, 1, "other")
    assert [busy.get("/tickets").status_code for _ in range(2)] == [200, 429]
    assert other.get("/tickets").status_code == 200


def test_a_token_has_the_limit_of_its_client(database: str, broker: str, environment: pytest.MonkeyPatch) -> None:
    import jwt

    secret = "a secret of more than thirty-two bytes"
    environment.setenv("JWT_SECRET_KEY", secret)
    forget()
    key_with("read", name="robot-user")
    set_limit("robot-user", 7)
    token = jwt.encode({"sub": "robot-user", "exp": 4_000_000_000}, secret, algorithm="HS256")
    assert Api(create_app(), token).get("/tickets").headers["X-RateLimit-Limit"] == "7"


def test_no_limit_counts_and_says_nothing(app: Flask, counted: redis.Redis) -> None:
    answer = limited(app, 0).get("/tickets")
    assert answer.status_code == 200
    assert "X-RateLimit-Limit" not in answer.headers
    assert counted.keys("orchestrator:rate:*") == []


def test_the_emergency_stop_is_never_refused(app: Flask, counted: redis.Redis) -> None:
    caller = Caller("limited", "default", frozenset({"write"}), "c", 1)
    with app.test_request_context("/estop", method="POST"):
        for _ in range(5):
            ratelimit.count_request(caller)
        assert "rate" not in g
    with app.test_request_context("/estop"):
        ratelimit.count_request(caller)
        with pytest.raises(TooMany):
            ratelimit.count_request(caller)


class Process:
    """The part of a web process that counts."""

    def __init__(self) -> None:
        self.budget = ratelimit.Budget()

    def asks(self, limit: int, second: int = 1) -> bool:
        return ratelimit.take(self.budget, "ada", limit, second)


@pytest.mark.parametrize("limit", [1, 7, 39, 40, 100, 1000])
def test_several_processes_never_give_more_than_the_limit_and_hardly_less(counted: redis.Redis, limit: int) -> None:
    processes = [Process() for _ in range(4)]
    given = sum(process.asks(limit) for _ in range(limit) for process in processes)
    assert given <= limit
    assert given >= limit - 3 * (max(1, limit // ratelimit.SHARES) - 1)
    assert not any(process.asks(limit) for process in processes) or limit >= 40


def test_most_requests_ask_redis_nothing(app: Flask, counted: redis.Redis) -> None:
    process = Process()
    before = counted.info("stats")["total_commands_processed"]
    assert all(process.asks(1000) for _ in range(1000))
    assert counted.info("stats")["total_commands_processed"] - before <= 2 * ratelimit.SHARES + 10
    assert not process.asks(1000)
    assert 0 < counted.ttl("orchestrator:rate:1:ada") <= ratelimit.COUNTER_SECONDS


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of a broker that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


@pytest.mark.parametrize("kind", ["deaf", "away"])
def test_without_redis_each_process_counts_alone_says_so_once_and_delays_nobody(
    database: str, environment: pytest.MonkeyPatch, deaf: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setenv("BROKER_URL", deaf if kind == "deaf" else "redis://127.0.0.1:1/0")
    forget()
    caller = limited(create_app(), 30)
    with caplog.at_level(logging.WARNING, "orchestrator_web.ratelimit"):
        began = time.monotonic()
        answers = [caller.get("/tickets").status_code for _ in range(31)]
        took = time.monotonic() - began
    assert answers == [200] * 30 + [429]
    assert took < 5
    assert [record.message for record in caplog.records] == ["rates are counted by each process alone"]


def test_a_redis_that_does_not_answer_costs_one_short_wait_in_an_outage(
    database: str, environment: pytest.MonkeyPatch, deaf: str
) -> None:
    environment.setenv("BROKER_URL", deaf)
    forget()
    process = Process()
    began = time.monotonic()
    assert process.asks(1000)
    first = time.monotonic() - began
    began = time.monotonic()
    assert all(process.asks(1000) for _ in range(999))
    assert first < 1
    assert time.monotonic() - began < ratelimit.SHARES * ratelimit.PATIENCE_SECONDS / 2  # else each share waited


def test_redis_is_asked_again_after_the_outage(
    broker: str, counted: redis.Redis, environment: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: moment[0])
    ratelimit.counters.away, ratelimit.counters.away_until = True, 1005.0
    assert Process().asks(1)
    assert counted.keys("orchestrator:rate:*") == []
    moment[0] = 1005.0
    assert Process().asks(1)
    assert not Process().asks(1)


def test_threads_of_one_process_give_no_more_than_the_limit(app: Flask, counted: redis.Redis) -> None:
    caller = Caller("ada", "default", frozenset({"read"}), "c", 100)
    given: list[bool] = []

    def ask() -> None:
        for _ in range(50):
            with app.test_request_context("/tickets"):
                try:
                    ratelimit.count_request(caller)
                    given.append(True)
                except TooMany:
                    given.append(False)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(given), sum(given)) == (200, 100)


def test_budgets_are_bounded_and_dropping_them_gives_nobody_more(
    app: Flask, counted: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratelimit, "MOST_BUDGETS", 1)
    callers = [limited(app, 1, name) for name in ("ada", "bob")]
    assert [caller.get("/tickets").status_code for caller in callers * 2] == [200, 200, 429, 429]
    assert len(ratelimit.budgets) == 1


def test_a_rate_out_of_bounds_is_refused_by_the_database(database: str) -> None:
    from sqlalchemy.exc import IntegrityError

    key_with("read", name="ada")
    with pytest.raises(IntegrityError, match="clients_rate_limit_check"), transaction():
        set_limit("ada", -1)
