"""A key, its work and its answer commit together, and whoever comes second gets the answer."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tries
from hypothesis import strategies as st
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from models.kernel import idempotency
from models.kernel.errors import InProgress, Invalid
from models.kernel.idempotency import KeptAnswer, Repeatable, claim_key, keep_answer
from models.kernel.session import statement, transaction
from tests.conftest import forget
from tests.kernel.races import alone, meanwhile, together, waits_or_ends

ONCE = Repeatable.of("ada", "POST", "/things", "key-1", b"{}")
MADE = KeptAnswer(201, {"Location": "/things/1"}, b'{"id": 1}')


@pytest.fixture
def things(database: str) -> str:
    """A table of what was made; each row names its maker's key."""
    with statement() as connection:
        connection.execute(text("CREATE TABLE things (id BIGINT GENERATED ALWAYS AS IDENTITY, key TEXT)"))
    return database


def make(request: Repeatable) -> KeptAnswer:
    """What a creating view does with a key: one transaction."""
    with transaction() as connection:
        return act(connection, request)


def act(connection: Connection, request: Repeatable) -> KeptAnswer:
    kept = claim_key(connection, request)
    if kept is not None:
        return kept
    insert = text("INSERT INTO things (key) VALUES (:key) RETURNING id")
    made = connection.scalar(insert, {"key": request.scope_sha256})
    answer = KeptAnswer(201, {"Location": f"/things/{made}"}, str(made).encode())
    keep_answer(connection, request, answer)
    return answer


def count(what: str = "things") -> int:
    return int(alone(lambda connection: connection.scalar(text(f"SELECT count(*) FROM {what}"))))


def test_two_at_once_make_one_thing_and_get_the_same_answer(things: str) -> None:
    first, second = meanwhile(lambda c: act(c, ONCE), lambda _c: make(ONCE))
    assert first == second
    assert count() == 1


def test_many_at_once_make_one_thing_and_get_the_same_answer(things: str) -> None:
    answers = together(*[lambda _c: make(ONCE)] * 8)
    assert len({answer.body for answer in answers}) == 1
    assert count() == 1


def test_whoever_waited_for_one_that_failed_does_the_work(things: str) -> None:
    class Failed(Exception):
        pass

    with ThreadPoolExecutor(1) as pool:
        with contextlib.suppress(Failed), transaction() as connection:
            act(connection, ONCE)
            second = pool.submit(make, ONCE)
            waits_or_ends(second)
            raise Failed
        assert second.result(20).status == 201
    assert count() == 1


def test_whoever_waits_longer_than_the_lock_timeout_is_told_that_it_runs(
    things: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("ORCHESTRATOR_LOCK_TIMEOUT", "0.2")
    forget()
    with transaction() as connection:
        act(connection, ONCE)
        with pytest.raises(InProgress) as refused:
            make(ONCE)
    assert refused.value.code == "idempotency_key_in_use"
    assert make(ONCE).body == b"1"


def test_another_body_under_the_same_key_is_refused(things: str) -> None:
    make(ONCE)
    with pytest.raises(Invalid) as refused:
        make(Repeatable.of("ada", "POST", "/things", "key-1", b'{"other": 1}'))
    assert refused.value.code == "idempotency_key_reused"
    assert count() == 1


@pytest.mark.parametrize(
    "other",
    [
        ("bob", "POST", "/things", "key-1"),
        ("ada", "PUT", "/things", "key-1"),
        ("ada", "POST", "/thing", "skey-1"),
        ("ada", "POST", "/things", "key-2"),
    ],
)
def test_a_key_is_of_one_client_one_method_and_one_path(things: str, other: tuple[str, str, str, str]) -> None:
    make(ONCE)
    make(Repeatable.of(*other, b"{}"))
    assert count() == 2


REQUESTS = st.lists(st.tuples(st.sampled_from(["ada", "bob"]), st.integers(0, 4)), max_size=25)


def test_any_sequence_of_repeats_makes_each_key_s_thing_once(things: str) -> None:
    @tries(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(sequence=REQUESTS)
    def repeat(sequence: list[tuple[str, int]]) -> None:
        with statement() as connection:
            connection.execute(text("TRUNCATE things, idempotency_keys"))
        answers: dict[tuple[str, int], set[bytes]] = {}
        for client, key in sequence:
            kept = make(Repeatable.of(client, "POST", "/things", f"key-{key}", b"{}"))
            answers.setdefault((client, key), set()).add(kept.body)
        assert count() == len(answers)
        assert all(len(bodies) == 1 for bodies in answers.values())

    repeat()


def test_old_keys_are_forgotten_and_young_ones_are_not(things: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "FORGOTTEN_AT_ONCE", 3)
    for number in range(8):
        make(Repeatable.of("ada", "POST", "/things", f"key-{number}", b"{}"))
    age = "UPDATE idempotency_keys SET created_at = created_at - interval '{} hours' WHERE client = 'ada' RETURNING 1"
    alone(lambda c: c.execute(text(age.format(25))))
    make(Repeatable.of("bob", "POST", "/things", "young", b"{}"))
    assert alone(idempotency.forget_old_keys) == 8
    assert count("idempotency_keys") == 1


def test_one_round_of_forgetting_is_bounded(things: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "FORGOTTEN_AT_ONCE", 1)
    monkeypatch.setattr(idempotency, "MOST_BATCHES", 2)
    for number in range(3):
        make(Repeatable.of("ada", "POST", "/things", f"key-{number}", b"{}"))
    alone(lambda c: c.execute(text("UPDATE idempotency_keys SET created_at = '2020-01-01'")))
    assert alone(idempotency.forget_old_keys) == 2


@pytest.mark.parametrize(
    ("values", "check"),
    [
        ("'short', repeat('b', 64), NULL, NULL, NULL", "hashes"),
        ("repeat('a', 64), repeat('b', 64), 201, NULL, NULL", "whole_answer"),
        ("repeat('a', 64), repeat('b', 64), 409, '{}', ''", "success"),
    ],
)
def test_the_database_keeps_no_half_and_no_failed_answer(things: str, values: str, check: str) -> None:
    insert = text(
        "INSERT INTO idempotency_keys (client, scope_sha256, body_sha256, status, headers, answer)"
        f" VALUES ('ada', {values})"
    )
    with pytest.raises(IntegrityError, match=f"idempotency_keys_{check}_check"):
        alone(lambda c: c.execute(insert))
