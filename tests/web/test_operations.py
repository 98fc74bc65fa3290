"""Operations over HTTP: asked for, followed, listed, cancelled; and every wrong request refused without a trace."""

from __future__ import annotations

from typing import Any

from orchestrator_tasks.kernel import bulk as worker
from tests.web.service import REFUSED, Api, assert_problem, each, finished, key_with, rows

MISSING = "tick-20200101-00000000"
NOBODY = "00000000-0000-0000-0000-000000000000"
ACTS = ("/tickets/execute", "/tickets/cancel", "/tickets/replay")


def run(operation_id: str) -> None:
    (job,) = rows("SELECT id FROM jobs WHERE subject_id = :id", id=operation_id)
    worker.run(job["id"], operation_id)


def test_an_operation_is_answered_at_once_and_followed_to_its_end(api: Api) -> None:
    ids = [api.create(command="scan")["id"] for _ in range(3)]
    asked = api.post("/tickets/execute", json={"ids": [*ids, MISSING]})
    assert asked.status_code == 202
    operation = asked.get_json()
    assert asked.headers["Location"] == f"/operations/{operation['id']}"
    assert (operation["status"], operation["total"], operation["matched"]) == ("queued", 4, 0)
    run(operation["id"])
    ended = api.get(asked.headers["Location"]).get_json()
    assert (ended["status"], ended["matched"], ended["done"]) == ("completed", 4, 3)
    assert ended["refused"] == {"ticket_not_found": 1}
    assert ended["examples"] == [{"id": MISSING, "code": "ticket_not_found"}]
    assert ended["created_at"] <= ended["started_at"] <= ended["completed_at"]
    assert {api.get(f"/ticket/{ticket_id}").get_json()["status"] for ticket_id in ids} == {"queued"}


def test_an_operation_by_filter_says_which_filter_it_was(api: Api) -> None:
    api.create(command="scan", target="a")
    body = {"filter": {"status": "pending", "target": "a", "created_after": "2020-01-01T00:00:00Z"}}
    operation = api.post("/tickets/cancel", json=body).get_json()
    assert operation["total"] is None
    assert operation["filter"] == {"status": "pending", "target": "a", "created_after": "2020-01-01T00:00:00+00:00"}
    run(operation["id"])
    assert api.get(f"/operations/{operation['id']}").get_json()["done"] == 1


def test_failed_tickets_are_replayed_by_one_request(api: Api) -> None:
    ids = [finished(api, REFUSED) for _ in range(2)]
    operation = api.post("/tickets/replay", json={"filter": {"status": "failed"}, "expires_in_seconds": 7}).get_json()
    assert operation["expires_in_seconds"] == 7
    run(operation["id"])
    assert {api.get(f"/ticket/{ticket_id}").get_json()["status"] for ticket_id in ids} == {"queued"}


def test_operations_are_listed_newest_first_page_by_page(api: Api) -> None:
    made = [api.post("/tickets/cancel", json={"ids": [MISSING]}).get_json()["id"] for _ in range(5)]
    run(made[0])
    first = api.get("/operations?limit=2").get_json()
    second = api.get(f"/operations?limit=2&cursor={first['next_cursor']}").get_json()
    third = api.get(f"/operations?limit=2&cursor={second['next_cursor']}").get_json()
    listed = [each["id"] for page in (first, second, third) for each in page["operations"]]
    assert (listed, third["next_cursor"]) == (made[::-1], None)
    assert [each["id"] for each in api.get("/operations?status=completed").get_json()["operations"]] == made[:1]
    assert_problem(api.get(f"/operations?status=queued&cursor={first['next_cursor']}"), 422)


def test_an_operation_is_cancelled_once(api: Api) -> None:
    operation = api.post("/tickets/cancel", json={"ids": [MISSING]}).get_json()
    cancelled = api.post(f"/operations/{operation['id']}/cancel")
    assert (cancelled.status_code, cancelled.get_json()["status"]) == (200, "cancelled")
    problem = assert_problem(api.post(f"/operations/{operation['id']}/cancel"), 409)
    assert (problem["code"], problem["state"]) == ("operation_terminal", "cancelled")


def test_a_repeated_request_with_the_same_key_asks_for_one_operation(api: Api) -> None:
    keyed = {"headers": {"Idempotency-Key": "k-1"}, "json": {"ids": [MISSING]}}
    first, second = (api.post("/tickets/execute", **keyed) for _ in range(2))
    assert first.get_json()["id"] == second.get_json()["id"]
    assert rows("SELECT count(*) AS n FROM bulk_operations") == [{"n": 1}]


WRONG_SELECTIONS: list[tuple[Any, str]] = [
    ({}, ""),
    ({"ids": [MISSING], "filter": {"target": "a"}}, ""),
    ({"ids": []}, "/ids"),
    ({"ids": [MISSING] * 1001}, "/ids"),
    ({"ids": [MISSING, "tick-20200101-00000001", MISSING]}, "/ids/2"),
    ({"ids": [MISSING, "tick-1"]}, "/ids/1"),
    ({"ids": [MISSING + "\n"]}, "/ids/0"),
    ({"ids": [None]}, "/ids/0"),
    ({"ids": [7]}, "/ids/0"),
    ({"ids": MISSING}, "/ids"),
    ({"ids": None}, "/ids"),
    ({"ids": {"0": MISSING}}, "/ids"),
    ({"ids": ["a\x00"]}, "/ids/0"),
    ({"filter": {}}, "/filter"),
    ({"filter": None}, "/filter"),
    ({"filter": []}, "/filter"),
    ({"filter": {"status": "completed"}}, "/filter/status"),
    ({"filter": {"status": "PENDING"}}, "/filter/status"),
    ({"filter": {"status": ["pending"]}}, "/filter/status"),
    ({"filter": {"priority": "urgent"}}, "/filter/priority"),
    ({"filter": {"target": "a b"}}, "/filter/target"),
    ({"filter": {"target": None}}, "/filter/target"),
    ({"filter": {"command": "x" * 257}}, "/filter/command"),
    ({"filter": {"comand": "drive"}}, "/filter/comand"),
    ({"filter": {"created_before": "yesterday"}}, "/filter/created_before"),
    ({"filter": {"created_before": "2020-01-01T00:00:00"}}, "/filter/created_before"),
    ({"filter": {"created_before": 10**30}}, "/filter/created_before"),
    ({"filter": {"created_after": None}}, "/filter/created_after"),
    ({"ids": [MISSING], "id": MISSING}, "/id"),
]


@each("path, case", [(path, case) for path in ACTS for case in WRONG_SELECTIONS])
def test_a_wrong_selection_is_refused_where_it_is_wrong(api: Api, path: str, case: tuple[Any, str]) -> None:
    body, pointer = case
    problem = assert_problem(api.post(path, json=body), 422)
    assert pointer in [error["pointer"] for error in problem["errors"]], problem["errors"]
    assert rows("SELECT count(*) AS n FROM bulk_operations") == [{"n": 0}]


@each("wrong", [0, -1, 86_401, 10**30, "60", 1.5, True, None])
def test_a_wrong_expiry_is_refused_for_each_act_that_has_one(api: Api, wrong: Any) -> None:
    for path in ("/tickets/execute", "/tickets/replay"):
        problem = assert_problem(api.post(path, json={"ids": [MISSING], "expires_in_seconds": wrong}), 422)
        assert [error["pointer"] for error in problem["errors"]] == ["/expires_in_seconds"]
    assert_problem(api.post("/tickets/cancel", json={"ids": [MISSING], "expires_in_seconds": 5}), 422)


@each("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2020-06-30T12:00:00.123456Z"])
def test_the_ends_of_time_are_moments_too(api: Api, moment: str) -> None:
    for name in ("created_before", "created_after"):
        operation = api.post("/tickets/cancel", json={"filter": {name: moment}}).get_json()
        run(operation["id"])
        assert api.get(f"/operations/{operation['id']}").get_json()["status"] == "completed"


@each("name", ["x", NOBODY, NOBODY.replace("0", "A"), "%00", f"{NOBODY}%0A", "a" * 300])
def test_an_operation_that_does_not_exist_is_not_found(api: Api, name: str) -> None:
    assert assert_problem(api.get(f"/operations/{name}"), 404)["code"] == "operation_not_found"
    assert assert_problem(api.post(f"/operations/{name}/cancel"), 404)["code"] == "operation_not_found"


@each("query", ["limit=0", "limit=1001", "limit=x", "status=done", "cursor=x", "cursor=", "act=x", "limit=1&limit=2"])
def test_a_wrong_question_for_operations_is_refused(api: Api, query: str) -> None:
    assert_problem(api.get(f"/operations?{query}"), 422)


def test_a_cursor_of_another_list_is_refused(api: Api) -> None:
    for _ in range(2):
        api.create(command="scan")
        api.post("/tickets/cancel", json={"ids": [MISSING]})
    cursor = api.get("/tickets?limit=1").get_json()["next_cursor"]
    assert assert_problem(api.get(f"/operations?cursor={cursor}"), 422)["code"] == "cursor_invalid"
    assert assert_problem(api.get(f"/dead-letters?cursor={cursor}"), 422)["code"] == "cursor_invalid"


def test_a_million_wrong_ids_are_refused_without_looking_at_each(api: Api) -> None:
    problem = assert_problem(api.send("/tickets/execute", b'{"ids":[' + b"0," * 400_000 + b"0]}"), 422)
    assert [error["pointer"] for error in problem["errors"]] == ["/ids"]
    problem = assert_problem(api.send("/tickets/batch", b'{"tickets":[' + b"{}," * 300_000 + b"{}]}"), 422)
    assert [error["pointer"] for error in problem["errors"]] == ["/tickets"]


def test_readers_follow_operations_and_only_writers_ask_for_them(api: Api, reader: Api) -> None:
    operation = api.post("/tickets/cancel", json={"ids": [MISSING]}).get_json()
    assert reader.get(f"/operations/{operation['id']}").status_code == 200
    assert reader.get("/operations").status_code == 200
    for path in (*ACTS, "/tickets/batch", f"/operations/{operation['id']}/cancel"):
        assert_problem(reader.post(path, json={"ids": [MISSING]}), 403)
    writer = Api(api.app, key_with("read", "write", name="w"))
    for method, path in (
        ("GET", "/dead-letters"),
        ("POST", "/dead-letters/1/replay"),
        ("POST", "/dead-letters/replay"),
    ):
        assert_problem(writer.call(method, path, json={"filter": {"code": "x"}}), 403)
