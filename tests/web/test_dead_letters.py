"""Dead letters over HTTP: listed page by page, replayed one by one or by filter, each once."""

from __future__ import annotations

from typing import Any

from models.kernel.session import transaction
from models.tickets.operations import Outcome
from tests.web.service import DRIVE, Api, assert_problem, each, finished, rows
from tests.web.test_operations import run

TIMED_OUT = Outcome("failed", error="Execution timed out after 5s", error_code="timeout")
BROKEN = Outcome("failed", error="The bus is on fire", error_code="driver_failed")


def letters(api: Api, query: str = "") -> list[dict[str, Any]]:
    return list(api.get(f"/dead-letters{query}").get_json()["dead_letters"])


def test_letters_are_listed_oldest_first_by_code_and_task_page_by_page(api: Api) -> None:
    died = [finished(api, outcome) for outcome in (TIMED_OUT, BROKEN, TIMED_OUT)]
    first = api.get("/dead-letters?limit=2").get_json()
    rest = api.get(f"/dead-letters?limit=2&cursor={first['next_cursor']}").get_json()
    listed = first["dead_letters"] + rest["dead_letters"]
    assert ([each["subject_id"] for each in listed], rest["next_cursor"]) == (died, None)
    assert listed[0]["code"] == "timeout"
    assert listed[0]["replayed_at"] is None
    assert [each["subject_id"] for each in letters(api, "?code=driver_failed")] == died[1:2]
    assert len(letters(api, "?task=tickets.execute")) == 3
    assert letters(api, "?task=unheard.of") == []
    assert_problem(api.get(f"/dead-letters?code=timeout&cursor={first['next_cursor']}"), 422)


def test_a_letter_is_replayed_once_and_carries_a_stamp(api: Api) -> None:
    ticket_id = finished(api, TIMED_OUT)
    (letter,) = letters(api)
    answer = api.post(f"/dead-letters/{letter['id']}/replay")
    assert (answer.status_code, answer.get_json()["replayed_by"]) == (200, "admin")
    assert api.get(f"/ticket/{ticket_id}").get_json()["status"] == "queued"
    assert letters(api) == []
    problem = assert_problem(api.post(f"/dead-letters/{letter['id']}/replay"), 409)
    assert problem["code"] == "already_replayed"


def test_a_letter_whose_ticket_has_completed_is_left_as_it_was(api: Api) -> None:
    finished(api, TIMED_OUT)
    (letter,) = letters(api)
    with transaction() as connection:
        connection.exec_driver_sql("UPDATE tickets SET state = 'completed', result = '{}'")
    assert assert_problem(api.post(f"/dead-letters/{letter['id']}/replay"), 409)["code"] == "ticket_terminal"
    assert letters(api) == [letter]


def test_whoever_runs_a_failed_ticket_again_has_answered_its_letters(api: Api) -> None:
    forced, replayed, other = (finished(api, TIMED_OUT) for _ in range(3))
    numbers = {letter["subject_id"]: letter["id"] for letter in letters(api)}
    assert api.accept(forced, force=True).status_code == 202
    run(api.post("/tickets/replay", json={"ids": [replayed]}).get_json()["id"])
    assert [letter["subject_id"] for letter in letters(api)] == [other]
    problem = assert_problem(api.post(f"/dead-letters/{numbers[forced]}/replay"), 409)
    assert problem["code"] == "already_replayed"
    assert rows("SELECT DISTINCT replayed_by FROM dead_letters WHERE replayed_at IS NOT NULL") == [
        {"replayed_by": "admin"}
    ]


def test_a_letter_that_is_being_replayed_does_not_hold_up_whoever_forces_its_ticket(api: Api) -> None:
    ticket_id = finished(api, TIMED_OUT)
    with transaction() as replaying:
        replaying.exec_driver_sql("SELECT FROM dead_letters FOR UPDATE")
        assert api.accept(ticket_id, force=True).status_code == 202
    assert len(letters(api)) == 1


def test_letters_are_replayed_by_filter_as_an_operation(api: Api) -> None:
    timed_out = [finished(api, TIMED_OUT) for _ in range(3)]
    (other,) = [finished(api, BROKEN)]
    asked = api.post("/dead-letters/replay", json={"filter": {"code": "timeout"}})
    assert asked.status_code == 202
    run(asked.get_json()["id"])
    operation = api.get(asked.headers["Location"]).get_json()
    assert (operation["act"], operation["status"], operation["done"]) == ("dead_letters.replay", "completed", 3)
    assert {api.get(f"/ticket/{ticket_id}").get_json()["status"] for ticket_id in timed_out} == {"queued"}
    assert [each["subject_id"] for each in letters(api)] == [other]


def test_a_repeated_replay_with_the_same_key_answers_as_the_first_did(api: Api) -> None:
    finished(api, TIMED_OUT, **DRIVE)
    path = f"/dead-letters/{letters(api)[0]['id']}/replay"
    answers = [api.post(path, headers={"Idempotency-Key": "k-1"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert rows("SELECT count(*) AS n FROM jobs") == [{"n": 1}]


@each("name", ["0", "-1", "x", "1.0", "999999999999999999", "9" * 40, "%00", "1%0A", "%D9%A1"])
def test_a_letter_that_does_not_exist_is_not_found(api: Api, name: str) -> None:
    assert assert_problem(api.post(f"/dead-letters/{name}/replay"), 404)["code"] == "letter_not_found"


@each("query", ["limit=0", "limit=1001", "cursor=x", "code=", "task=", "code=%00", "cod=x", "code=" + "x" * 129])
def test_a_wrong_question_for_letters_is_refused(api: Api, query: str) -> None:
    assert_problem(api.get(f"/dead-letters?{query}"), 422)


@each(
    "body",
    [
        {},
        {"filter": {}},
        {"filter": None},
        {"filter": {"code": 7}},
        {"filter": {"code": ""}},
        {"filter": {"code": "a\x00"}},
        {"filter": {"cod": "x"}},
        {"filter": {"code": "x"}, "ids": [1]},
    ],
)
def test_a_wrong_filter_replays_nothing(api: Api, body: dict[str, Any]) -> None:
    assert_problem(api.post("/dead-letters/replay", json=body), 422)
    assert rows("SELECT count(*) AS n FROM bulk_operations") == [{"n": 0}]
