"""Many tickets by one request: created all or none, in order, and every wrong one named."""

from __future__ import annotations

from typing import Any

from tests.web.service import DRIVE, Api, assert_problem, counts, rows


def batch(*tickets: Any) -> dict[str, Any]:
    return {"tickets": list(tickets)}


def test_a_thousand_tickets_are_created_by_one_request_in_the_order_given(api: Api) -> None:
    wanted = [{"command": "scan", "metadata": {"n": n}} for n in range(1000)]
    answer = api.post("/tickets/batch", json=batch(*wanted))
    assert answer.status_code == 201
    made = answer.get_json()
    assert made["count"] == 1000
    assert [ticket["metadata"]["n"] for ticket in made["tickets"]] == list(range(1000))
    assert api.get(f"/ticket/{made['tickets'][7]['id']}").get_json() == made["tickets"][7]
    (told,) = rows(
        "SELECT count(*) AS n, count(DISTINCT correlation_id) AS c FROM ledger WHERE topic = 'ticket_created'"
    )
    assert told == {"n": 1000, "c": 1}


def test_one_bad_item_creates_none_and_is_named_by_its_index(api: Api) -> None:
    before = counts("ledger")
    problem = assert_problem(
        api.post("/tickets/batch", json=batch(DRIVE, DRIVE, DRIVE, {**DRIVE, "priority": "x"})), 422
    )
    (error,) = problem["errors"]
    assert (error["index"], error["pointer"]) == (3, "/tickets/3/priority")
    assert counts("ledger") == before


def test_all_wrong_items_are_named_up_to_a_hundred(api: Api) -> None:
    wrong = [DRIVE if n % 2 else {"command": 7} for n in range(30)]
    problem = assert_problem(api.post("/tickets/batch", json=batch(*wrong)), 422)
    assert [error["index"] for error in problem["errors"]] == list(range(0, 30, 2))
    problem = assert_problem(api.post("/tickets/batch", json=batch(*[{}] * 250)), 422)
    assert len(problem["errors"]) == 100
    assert "250 errors; the first 100 are listed" in problem["detail"]


def test_every_item_with_a_nul_character_is_named_in_order(api: Api) -> None:
    drafts = [{"command": "a\x00"}, {"command": "scan"}, {"command": "b\x00"}]
    problem = assert_problem(api.post("/tickets/batch", json={"tickets": drafts}), 422)
    assert [error["index"] for error in problem["errors"]] == [0, 2]


def test_the_sentence_of_a_problem_says_how_much_more_is_wrong(api: Api) -> None:
    problem = assert_problem(api.post("/tickets/batch", json={"tickets": [{"command": 5}] * 9}), 422)
    assert "and 6 more" in problem["detail"]
    nothing = assert_problem(api.post("/tickets/execute", json={}), 422)
    assert not nothing["detail"].startswith(":")


def test_a_nul_character_is_refused_with_the_index_of_its_item(api: Api) -> None:
    problem = assert_problem(api.post("/tickets/batch", json=batch(DRIVE, {"command": "a\x00"})), 422)
    assert problem["errors"][0]["index"] == 1
