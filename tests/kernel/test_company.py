"""Acts that go together: each caller hears of its own, and one that spoils the statement spoils nobody's act."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from models.kernel.company import MOST_TOGETHER, Company, go_alone
from models.kernel.errors import Conflict, LeaseLost, Unavailable
from tests.kernel.races import DEADLINE_SECONDS, until


class Desk:
    """Carries out what it is asked in the groups in which it comes; the first act is held until it is let go."""

    def __init__(self) -> None:
        self.groups: list[list[Any]] = []
        self.held = threading.Event()
        self.company: Company[Any, Any] = Company(self.together)

    def together(self, items: Sequence[Any]) -> list[Any]:
        self.groups.append(list(items))
        if items[0] == "first":
            assert self.held.wait(DEADLINE_SECONDS)
        for item in items:
            if isinstance(item, Exception):
                raise item
        return [LeaseLost("gone") if item == "lost" else f"did {item}" for item in items]


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2 * MOST_TOGETHER) as made:
        yield made


def come(desk: Desk, pool: ThreadPoolExecutor, *items: Any) -> list[Future[Any]]:
    """The first is at it; the others come meanwhile, in this order; then it is let go."""
    futures = [pool.submit(desk.company.go, "first")]
    until(lambda: desk.groups, "the first is at it")
    for count, item in enumerate(items, 1):
        futures.append(pool.submit(desk.company.go, item))
        until(lambda count=count: len(desk.company.waiting) == count, "it waits")  # type: ignore[misc]
    desk.held.set()
    return futures


def ends(futures: Sequence[Future[Any]]) -> list[Any]:
    return [future.exception(DEADLINE_SECONDS) or future.result() for future in futures]


def test_those_who_come_meanwhile_go_together_and_each_hears_of_its_own(desk: Desk, pool: ThreadPoolExecutor) -> None:
    assert ends(come(desk, pool, "a", "b", "c")) == ["did first", "did a", "did b", "did c"]
    assert desk.groups == [["first"], ["a", "b", "c"]]


def test_an_answer_that_is_an_exception_is_raised_to_its_caller_alone(desk: Desk, pool: ThreadPoolExecutor) -> None:
    _, before, lost, after = ends(come(desk, pool, "a", "lost", "b"))
    assert (before, type(lost), after) == ("did a", LeaseLost, "did b")
    assert len(desk.groups) == 2


@pytest.mark.parametrize("error", [Conflict("held", code="locked"), TypeError("no JSON")])
def test_one_that_spoils_the_statement_makes_each_go_by_itself(
    desk: Desk, pool: ThreadPoolExecutor, error: Exception
) -> None:
    assert ends(come(desk, pool, "a", error, "b")) == ["did first", "did a", error, "did b"]
    assert desk.groups[1] == ["a", error, "b"]
    assert sorted(desk.groups[2:], key=repr) == sorted([["a"], [error], ["b"]], key=repr)


def test_a_server_that_is_away_is_asked_once_and_reaches_everyone_in_the_statement(
    desk: Desk, pool: ThreadPoolExecutor
) -> None:
    away = Unavailable("away", code="database_unavailable")
    assert ends(come(desk, pool, "a", away)) == ["did first", away, away]
    assert len(desk.groups) == 2


def test_a_statement_has_a_bound(desk: Desk, pool: ThreadPoolExecutor) -> None:
    ended = ends(come(desk, pool, *range(MOST_TOGETHER + 5)))
    assert ended[1:] == [f"did {number}" for number in range(MOST_TOGETHER + 5)]
    assert [len(group) for group in desk.groups] == [1, MOST_TOGETHER, 5]


def test_a_thread_that_goes_alone_waits_for_nobody(desk: Desk, pool: ThreadPoolExecutor) -> None:
    first = pool.submit(desk.company.go, "first")
    until(lambda: desk.groups, "the first is at it")
    with ThreadPoolExecutor(1, initializer=go_alone) as apart:
        assert apart.submit(desk.company.go, "stop").result(DEADLINE_SECONDS) == "did stop"
    assert not first.done()
    desk.held.set()
    assert first.result(DEADLINE_SECONDS) == "did first"


def test_a_lead_that_was_held_in_the_parent_is_held_by_nobody_in_the_child(
    desk: Desk, pool: ThreadPoolExecutor
) -> None:
    first = pool.submit(desk.company.go, "first")
    until(lambda: desk.groups, "the first is at it")
    child = multiprocessing.get_context("fork").Process(target=desk.company.go, args=("child",))
    child.start()
    child.join(DEADLINE_SECONDS)
    assert child.exitcode == 0
    desk.held.set()
    assert first.result(DEADLINE_SECONDS) == "did first"
