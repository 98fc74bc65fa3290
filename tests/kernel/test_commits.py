"""Shared commits: who creates at the same moment goes together, and each hears of its own rows alone."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import IntegrityError

from models.kernel import commits
from models.kernel.commits import Draft, Writer, share
from models.kernel.company import Entry
from models.kernel.errors import Unavailable
from models.kernel.ledger import ledger
from models.kernel.session import transaction, use_reserved_connections
from models.kernel.settings import settings
from tests.kernel.parcel import PACK, pack, parcels
from tests.kernel.races import DEADLINE_SECONDS, WAITING, alone, until

END_WAITING = text(
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
TRANSACTIONS = text("SELECT count(DISTINCT xmin::text) FROM parcels WHERE id <> 'held'")


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    commits.writers.clear()
    yield
    commits.writers.clear()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def parcel(name: str) -> dict[str, Any]:
    return {"id": name, "van": None, "tenant": "default", "priority": 2, "tries": 3, "expires_at": None}


def send(*names: str, actor: str = "test") -> Any:
    return share(PACK, [parcel(name) for name in names], actor=actor, correlation_id=f"c-{names[0]}")


def blocked() -> None:
    """Somebody's statement waits in the database."""
    until(lambda: alone(lambda c: c.scalar(WAITING)), "the first writes and is held up")


def come(pool: ThreadPoolExecutor, *names: str) -> list[Future[Any]]:
    """One caller for each of the names, in this order, while somebody writes."""
    futures = []
    for count, name in enumerate(names, 1):
        futures.append(pool.submit(send, name, actor=f"actor-{name}"))
        until(lambda count=count: len(commits.writers[PACK].waiting) == count, "it waits")  # type: ignore[misc]
    return futures


def held_up(pool: ThreadPoolExecutor, first: str, *others: str) -> list[Future[Any]]:
    """The first writes, held up by whoever holds its row; the others come meanwhile."""
    leader = pool.submit(send, first, actor=f"actor-{first}")
    blocked()
    return [leader, *come(pool, *others)]


def left(name: str) -> None:
    """Nobody waits for anybody any more."""
    writer = commits.writers[PACK]
    assert (writer.waiting, writer.is_busy) == ([], False)
    assert [row["id"] for row in send(name)] == [name]


def test_whoever_comes_while_somebody_writes_goes_together_in_one_commit(
    connection: Connection, pool: ThreadPoolExecutor
) -> None:
    with transaction() as other:
        other.execute(text("LOCK TABLE parcels IN EXCLUSIVE MODE"))
        sent = held_up(pool, "a", "b", "c", "d", "e")
    assert [future.result(DEADLINE_SECONDS)[0]["id"] for future in sent] == ["a", "b", "c", "d", "e"]
    assert connection.scalar(TRANSACTIONS) == 2
    left("f")


def test_each_row_has_its_own_caller_and_correlation_id(connection: Connection, pool: ThreadPoolExecutor) -> None:
    with transaction() as other:
        other.execute(text("LOCK TABLE parcels IN EXCLUSIVE MODE"))
        sent = held_up(pool, "a", "b", "c")
    for name, future in zip("abc", sent, strict=True):
        (made,) = future.result(DEADLINE_SECONDS)
        kept = connection.execute(select(parcels).where(parcels.c.id == name)).mappings().one()
        assert {key: made[key] for key in kept} == dict(kept)
        assert (made["correlation_id"], made["state"], made["revision"]) == (f"c-{name}", "packed", 1)
        told = connection.execute(select(ledger).where(ledger.c.subject_id == name)).one()
        assert (told.actor, told.correlation_id, told.topic) == (f"actor-{name}", f"c-{name}", "parcel_packed")
        assert (told.from_state, told.to_state, told.body) == (None, "packed", {"parcel": name})


def test_a_caller_of_several_rows_gets_exactly_them(connection: Connection, pool: ThreadPoolExecutor) -> None:
    with transaction() as other:
        other.execute(text("LOCK TABLE parcels IN EXCLUSIVE MODE"))
        (first,) = held_up(pool, "a")
        (one,) = come(pool, "b")
        many = pool.submit(send, "c", "d", "e")
    assert [{row["id"] for row in future.result(DEADLINE_SECONDS)} for future in (first, one, many)] == [
        {"a"},
        {"b"},
        {"c", "d", "e"},
    ]


def test_a_row_that_is_refused_fails_none_of_the_others(connection: Connection, pool: ThreadPoolExecutor) -> None:
    pack(connection, "c")
    with transaction() as other:
        other.execute(text("LOCK TABLE parcels IN EXCLUSIVE MODE"))
        first, good, bad, last = held_up(pool, "a", "b", "c", "d")
    assert [future.result(DEADLINE_SECONDS)[0]["id"] for future in (first, good, last)] == ["a", "b", "d"]
    with pytest.raises(IntegrityError):
        bad.result(DEADLINE_SECONDS)
    assert sorted(connection.scalars(select(ledger.c.subject_id))) == ["a", "b", "c", "d"]
    left("e")


def test_a_row_that_cannot_be_said_fails_none_of_the_others(connection: Connection, pool: ThreadPoolExecutor) -> None:
    with transaction() as other:
        other.execute(text("LOCK TABLE parcels IN EXCLUSIVE MODE"))
        first, good = held_up(pool, "a", "b")
        bad = pool.submit(share, PACK, [{**parcel("c"), "van": object()}], actor="test", correlation_id="c-c")
        until(lambda: len(commits.writers[PACK].waiting) == 2, "it waits")
    assert [future.result(DEADLINE_SECONDS)[0]["id"] for future in (first, good)] == ["a", "b"]
    with pytest.raises(TypeError):
        bad.result(DEADLINE_SECONDS)
    left("d")


def test_a_lost_connection_reaches_everyone_in_the_statement_and_nobody_else(
    connection: Connection, pool: ThreadPoolExecutor
) -> None:
    with transaction() as other:
        pack(other, "a", "b")
        first, second, third = held_up(pool, "a", "b", "c")
        connection.execute(END_WAITING)
        with pytest.raises(Unavailable):
            first.result(DEADLINE_SECONDS)
        blocked()  # the next two go together, and run into `b`
        (behind,) = come(pool, "d")
        connection.execute(END_WAITING)
        for future in (second, third):
            with pytest.raises(Unavailable):
                future.result(DEADLINE_SECONDS)
    assert [row["id"] for row in behind.result(DEADLINE_SECONDS)] == ["d"]
    left("e")


def test_who_finds_nobody_writing_writes_at_once_and_alone(connection: Connection) -> None:
    for name in "abc":
        assert send(name)[0]["id"] == name
    assert connection.scalar(TRANSACTIONS) == 3


def test_nobody_waits_longer_than_two_statements_may_take(
    connection: Connection, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("ORCHESTRATOR_LOCK_TIMEOUT", "0.1")
    environment.setenv("ORCHESTRATOR_STATEMENT_TIMEOUT", "0.1")
    settings.cache_clear()
    writer = Writer(PACK)
    writer.is_busy = True  # by somebody who never comes back
    with pytest.raises(Unavailable) as refused:
        writer.go(Draft([parcel("a")], "test", "c-1"))
    assert (refused.value.code, writer.waiting) == ("database_unavailable", [])


def test_a_lead_that_comes_at_the_last_moment_is_taken(connection: Connection, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ORCHESTRATOR_LOCK_TIMEOUT", "0.1")
    environment.setenv("ORCHESTRATOR_STATEMENT_TIMEOUT", "0.1")
    settings.cache_clear()
    writer = Writer(PACK)
    late = Entry[Draft, Any](Draft([parcel("a")], "test", "c-1"))
    writer.is_busy = True

    class Word:
        def get(self, timeout: float) -> bool:
            late.word = own
            writer.hand_on()
            raise queue.Empty

    own, late.word = late.word, Word()  # type: ignore[assignment]
    writer.join(late)
    assert [row["id"] for row in late.answer()] == ["a"]
    assert writer.is_busy is False


def test_a_thread_with_reserved_connections_waits_for_nobody(connection: Connection, pool: ThreadPoolExecutor) -> None:
    def reserved() -> Any:
        use_reserved_connections()
        return send("b")

    with transaction() as other:
        pack(other, "a")
        (first,) = held_up(pool, "a")
        with ThreadPoolExecutor(1) as apart:
            assert apart.submit(reserved).result(DEADLINE_SECONDS)[0]["id"] == "b"
        assert not first.done()
        connection.execute(END_WAITING)
    with pytest.raises(Unavailable):
        first.result(DEADLINE_SECONDS)
