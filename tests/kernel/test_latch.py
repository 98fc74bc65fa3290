"""Latches: engaged once, released once, and what was ordered before a release stays held back."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import IntegrityError

from models.kernel.clients import Caller
from models.kernel.latch import (
    barred_since,
    engage_latch,
    find_latch,
    is_engaged,
    latches,
    list_latches,
    release_latch,
)
from models.kernel.session import statement
from tests.kernel.races import together


@pytest.fixture
def latching(connection: Connection, writer: Caller) -> Any:
    """Engage a scope."""
    return lambda scope, reason="smoke", by=writer: engage_latch(connection, scope, reason, by)


def test_the_first_to_engage_is_the_one_that_is_remembered(
    connection: Connection, writer: Caller, latching: Any
) -> None:
    assert latching("all", "smoke")
    first = find_latch(connection, "all")
    other = Caller("other", "default", frozenset({"write"}), "correlation-2")
    assert not latching("all", "fire", other)
    assert find_latch(connection, "all") == first
    assert first is not None
    assert (first["engaged_by"], first["reason"], first["correlation_id"]) == ("writer", "smoke", "correlation-1")


def test_what_was_released_can_be_engaged_anew(connection: Connection, writer: Caller, latching: Any) -> None:
    latching("rover")
    assert release_latch(connection, "rover", "air is clear", writer)
    assert find_latch(connection, "rover") is None
    assert list_latches(connection) == []
    assert latching("rover", "again")
    again = find_latch(connection, "rover")
    assert again is not None
    assert (again["reason"], again["released_at"], again["release_reason"]) == ("again", None, None)


def test_releasing_what_is_not_engaged_changes_nothing(connection: Connection, writer: Caller, latching: Any) -> None:
    assert not release_latch(connection, "rover", "no need", writer)
    latching("rover")
    assert release_latch(connection, "rover", "first", writer)
    assert not release_latch(connection, "rover", "second", writer)
    assert connection.scalar(select(latches.c.release_reason)) == "first"


def test_the_first_of_the_scopes_asked_for_is_found(connection: Connection, latching: Any) -> None:
    for scope in ("rover", "all", "crane"):
        latching(scope)
    found = find_latch(connection, "all", "rover")
    assert found is not None
    assert found["scope"] == "all"
    assert [row["scope"] for row in list_latches(connection)] == ["rover", "all", "crane"]
    assert len(list_latches(connection, limit=2)) == 2


def test_a_latch_holds_over_its_own_scope_alone(connection: Connection, writer: Caller, latching: Any) -> None:
    latching("rover")
    asked = [("rover",), ("all", "rover"), ("all",), ("crane",)]
    assert [connection.scalar(select(is_engaged(*scopes))) for scopes in asked] == [True, True, False, False]
    release_latch(connection, "rover", "done", writer)
    assert connection.scalar(select(is_engaged("rover"))) is False


def test_what_was_ordered_before_a_release_is_still_held_back(
    connection: Connection, writer: Caller, latching: Any
) -> None:
    latching("all")
    before = connection.scalar(select(func.clock_timestamp()))
    release_latch(connection, "all", "done", writer)
    after = connection.scalar(select(func.clock_timestamp()))
    assert connection.scalar(select(barred_since(before)).select_from(latches)) is True
    assert connection.scalar(select(barred_since(after)).select_from(latches)) is False


def test_of_many_that_engage_at_once_one_is_the_first(database: str, writer: Caller) -> None:
    def engage(connection: Connection) -> bool:
        return engage_latch(connection, "all", "smoke", writer)

    assert sorted(together(*[engage] * 8)) == [False] * 7 + [True]


def test_a_clock_that_was_set_back_keeps_nothing_stopped(connection: Connection, writer: Caller, latching: Any) -> None:
    latching("all")
    connection.execute(text("UPDATE latches SET engaged_at = clock_timestamp() + interval '1 hour'"))
    assert release_latch(connection, "all", "the clock was wrong", writer)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scope": ""},
        {"scope": "a b"},
        {"scope": "x" * 65},
        {"reason": ""},
        {"reason": "x" * 501},
        {"released_at": func.clock_timestamp()},
        {"released_by": "somebody"},
        {
            "released_at": func.clock_timestamp() - text("interval '1 hour'"),
            "released_by": "x",
            "release_reason": "too early",
        },
    ],
    ids=str,
)
def test_the_database_refuses_a_latch_that_makes_no_sense(database: str, wrong: dict[str, Any]) -> None:
    row = {"scope": "rover", "engaged_by": "x", "reason": "smoke", "correlation_id": "c"}
    with pytest.raises(IntegrityError), statement() as connection:
        connection.execute(latches.insert().values({**row, **wrong}))
