"""Whoever sends many wrong credentials is not looked up any more for a while; whoever is known still is."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from models.kernel import clock
from orchestrator_web import auth, guesses
from tests.web.service import Api, assert_problem, key_with

WRONG = "orc_000000000000_" + "x" * 32


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: moment[0])
    monkeypatch.setattr(guesses, "MOST_GUESSES", 3)
    return moment


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was looked up in the database."""
    seen: list[str] = []
    prove = auth.prove
    monkeypatch.setattr(auth, "prove", lambda credential: (seen.append(credential), prove(credential))[1])
    return seen


def guess(app: Flask, address: str, key: str = WRONG) -> Any:
    caller = Api(app, key)
    return caller.get("/tickets", environ_base={"REMOTE_ADDR": address})


def test_many_wrong_credentials_from_one_address_are_429_without_a_lookup(
    app: Flask, now: list[float], lookups: list[str]
) -> None:
    assert [guess(app, "192.0.2.1").status_code for _ in range(4)] == [401, 401, 401, 429]
    refused = guess(app, "192.0.2.1", WRONG[:-1] + "y")
    problem = assert_problem(refused, 429)
    assert (problem["code"], refused.headers["Retry-After"]) == ("too_many_guesses", "10")
    assert len(lookups) == 3


def test_another_address_is_not_refused_and_the_window_ends(app: Flask, now: list[float]) -> None:
    for _ in range(4):
        guess(app, "192.0.2.1")
    assert guess(app, "192.0.2.2").status_code == 401
    now[0] += guesses.WINDOW_SECONDS
    assert guess(app, "192.0.2.1").status_code == 401


def test_who_was_known_before_is_not_shut_out_by_a_guesser_behind_the_same_proxy(app: Flask, now: list[float]) -> None:
    key = key_with("read")
    assert guess(app, "192.0.2.1", key).status_code == 200
    for _ in range(4):
        guess(app, "192.0.2.1")
    now[0] += auth.CACHE_SECONDS + 1
    assert guess(app, "192.0.2.1", key).status_code == 200


def test_a_revoked_key_is_known_no_longer_and_counts_as_a_guess(app: Flask, now: list[float]) -> None:
    from tests.web.test_auth import revoke

    key = key_with("read")
    assert guess(app, "192.0.2.1", key).status_code == 200
    revoke(key)
    now[0] += auth.CACHE_SECONDS + 1
    assert [guess(app, "192.0.2.1", key).status_code for _ in range(4)] == [401, 401, 401, 429]


def test_the_addresses_of_one_ipv6_network_count_together(app: Flask, now: list[float]) -> None:
    answers = [guess(app, f"2001:db8::{host}").status_code for host in range(1, 5)]
    assert answers == [401, 401, 401, 429]
    assert guess(app, "2001:db8:0:1::1").status_code == 401


def test_what_is_remembered_of_guessers_is_bounded(
    app: Flask, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guesses, "MOST_ADDRESSES", 2)
    for host in range(5):
        guess(app, f"192.0.2.{host}")
        assert len(guesses.guessers) <= 2


def test_public_paths_are_open_to_a_guesser_too(app: Flask, now: list[float]) -> None:
    for _ in range(4):
        guess(app, "192.0.2.1")
    assert Api(app, WRONG).get("/healthz", environ_base={"REMOTE_ADDR": "192.0.2.1"}).status_code == 200
