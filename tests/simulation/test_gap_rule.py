"""The gap rule with writers and a reader that exist only here: every order of draws, commits, rollbacks and reads.

What the follower asks of the database is answered from memory, so that thousands of orders are tried in seconds. A
commit may fall between the read that sees a gap and the list of those who may fill it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule, run_state_machine_as_test

from models.kernel import feed
from models.kernel.feed import Follower

MANY = settings(
    max_examples=400, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NOBODY: Any = None


class Ledger:
    """A ledger in memory: numbers are drawn before their transactions end."""

    def __init__(self) -> None:
        self.drawn = 0
        self.transactions = 0
        self.open: dict[str, list[int]] = {}
        self.committed: set[int] = set()
        self.ends_meanwhile: str | None = None

    def begin(self) -> str:
        self.transactions += 1
        name = f"3/{self.transactions}"
        self.open[name] = []
        return name

    def end(self, name: str, *, commits: bool) -> None:
        numbers = self.open.pop(name, [])
        self.committed |= set(numbers) if commits else set()

    def draw(self, name: str) -> None:
        self.drawn += 1
        self.open[name].append(self.drawn)

    # what the follower asks

    def list_rows(self, _connection: Any, after: int, limit: int) -> list[dict[str, int]]:
        return [{"seq": seq} for seq in sorted(self.committed) if seq > after][:limit]

    def list_writers(self, _connection: Any) -> list[str]:
        if self.ends_meanwhile is not None:
            self.end(self.ends_meanwhile, commits=True)
        return list(self.open)

    def is_any_left(self, _connection: Any, writers: Sequence[str]) -> bool:
        return any(name in self.open for name in writers)


class Reading(RuleBasedStateMachine):
    """One reader and any number of writers."""

    writers = Bundle("writers")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.follower = Follower(0)
        self.seen: list[int] = []
        self.patch = pytest.MonkeyPatch()
        for name in ("list_rows", "list_writers", "is_any_left"):
            self.patch.setattr(feed, name, getattr(self.ledger, name))

    @rule(target=writers)
    def begin(self) -> str:
        return self.ledger.begin()

    @rule(writer=writers)
    def draw(self, writer: str) -> None:
        if writer in self.ledger.open:
            self.ledger.draw(writer)

    @rule(writer=consumes(writers), commits=st.booleans())
    def end(self, writer: str, commits: bool) -> None:
        self.ledger.end(writer, commits=commits)

    @rule(limit=st.integers(1, 5), meanwhile=st.none() | writers)
    def read(self, limit: int, meanwhile: str | None) -> None:
        self.ledger.ends_meanwhile = meanwhile
        self.seen += [row["seq"] for row in self.follower.read(NOBODY, limit)]
        self.ledger.ends_meanwhile = None
        assert self.seen == sorted(set(self.seen)), "once each, in order"

    def teardown(self) -> None:
        """Once everybody has ended, the reader has read all that was committed, and soon."""
        try:
            for writer in list(self.ledger.open):
                self.ledger.end(writer, commits=True)
            for _ in range(2 * len(self.ledger.committed) + 2):
                self.seen += [row["seq"] for row in self.follower.read(NOBODY, 5)]
            assert self.seen == sorted(self.ledger.committed)
        finally:
            self.patch.undo()


def test_every_order_of_commits_and_reads_loses_nothing_and_doubles_nothing() -> None:
    run_state_machine_as_test(Reading, settings=MANY)


def without_gap_rule(self: Follower, connection: Any, limit: int = 5) -> list[Any]:
    found = feed.list_rows(connection, self.position, limit)
    self.position = max([self.position, *(row["seq"] for row in found)])
    return found


def without_second_read(self: Follower, connection: Any, limit: int = 5) -> list[Any]:
    """Skips a gap at once when nobody who may fill it is left, instead of reading again."""
    found = feed.list_rows(connection, self.position, limit)
    for index, row in enumerate(found):
        if row["seq"] > self.position + 1 and feed.list_writers(connection):
            return found[:index]
        self.position = row["seq"]
    return found


@pytest.fixture(params=[without_gap_rule, without_second_read])
def mutant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Follower, "read", request.param)
    return


@pytest.mark.usefixtures("mutant")
def test_a_follower_without_a_part_of_the_rule_is_found_out() -> None:
    patient = settings(MANY, max_examples=20_000, print_blob=False, derandomize=True)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Reading, settings=patient)
