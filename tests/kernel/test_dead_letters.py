"""Dead letters: what died is listed, and replayed once, by an operator's word."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, func, select

from models.kernel.dead_letters import dead_letters, list_letters, replay_letter
from models.kernel.errors import Conflict, NotFound
from models.kernel.session import transaction
from tests.kernel import parcel
from tests.kernel.races import meanwhile


def replay(connection: Connection, parcel_id: str) -> None:
    assert parcel.ask(connection, parcel_id, again=True)


def refuse(_connection: Connection, parcel_id: str) -> None:
    raise Conflict(f"{parcel_id} cannot be sent again")


def died(connection: Connection, *names: str, code: str = "dropped") -> list[int]:
    for job in parcel.send(connection, *names):
        parcel.fail(connection, parcel.take_one(connection, job), code)
    return [letter["id"] for letter in list_letters(connection) if letter["subject_id"] in names]


def test_a_failure_leaves_a_letter_and_a_delivery_none(connection: Connection) -> None:
    died(connection, "bad")
    parcel.deliver(connection, parcel.take_one(connection, parcel.send(connection, "good")[0]))
    (letter,) = list_letters(connection)
    expected = {"task": parcel.TASK, "subject_kind": "parcel", "subject_id": "bad", "code": "dropped"}
    assert expected.items() <= letter.items()
    assert (letter["error"], letter["correlation_id"]) == ("It fell", "c-1")


def test_a_settle_that_lost_its_lease_leaves_no_letter(connection: Connection) -> None:
    taken = parcel.take_one(connection, parcel.send(connection, "p")[0])
    parcel.retry(connection, taken)
    assert parcel.fail(connection, taken) == []
    assert list_letters(connection) == []


def test_letters_are_listed_by_code_and_task_page_by_page(connection: Connection) -> None:
    first = died(connection, "a", "b", "c")
    (other,) = died(connection, "d", code="lost")
    assert [letter["id"] for letter in list_letters(connection, code="lost")] == [other]
    assert [letter["id"] for letter in list_letters(connection, task=parcel.TASK, limit=2)] == first[:2]
    assert [letter["id"] for letter in list_letters(connection, after=first[1])] == [first[2], other]
    assert list_letters(connection, task="unknown") == []


def test_a_letter_is_replayed_once(connection: Connection) -> None:
    (letter,) = died(connection, "p")
    with transaction() as whole:
        replay_letter(whole, letter, replay, "operator")
    assert parcel.state_of(connection, "p") == "queued"
    assert list_letters(connection) == []
    with pytest.raises(Conflict) as refused, transaction() as whole:
        replay_letter(whole, letter, replay, "operator")
    assert refused.value.code == "already_replayed"
    stamp = connection.execute(select(dead_letters.c.replayed_by, dead_letters.c.replayed_at)).one()
    assert stamp.replayed_by == "operator"


def test_of_two_replays_at_once_one_is_refused(connection: Connection) -> None:
    (letter,) = died(connection, "p")
    with pytest.raises(Conflict, match="replayed before"):
        meanwhile(lambda c: replay_letter(c, letter, replay, "one"), lambda c: replay_letter(c, letter, replay, "two"))
    assert parcel.count_jobs(connection) == 1


def test_a_replay_that_fails_leaves_the_letter_as_it_was(connection: Connection) -> None:
    (letter,) = died(connection, "p")
    with pytest.raises(Conflict, match="cannot be sent again"), transaction() as whole:
        replay_letter(whole, letter, refuse, "operator")
    assert [waiting["id"] for waiting in list_letters(connection)] == [letter]


def test_a_letter_that_does_not_exist_is_not_found(connection: Connection) -> None:
    with pytest.raises(NotFound):
        replay_letter(connection, 12345, replay, "operator")


def test_dying_again_after_a_replay_leaves_a_second_letter(connection: Connection) -> None:
    (letter,) = died(connection, "p")
    with transaction() as whole:
        replay_letter(whole, letter, replay, "operator")
    parcel.fail(connection, parcel.take_one(connection, parcel.job_of(connection, "p")["id"]))
    assert [waiting["id"] for waiting in list_letters(connection)] == [letter + 1]
    assert connection.scalar(select(func.count()).select_from(dead_letters)) == 2
