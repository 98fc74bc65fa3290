"""/engine/marks: admins say which records are kept, everybody who may read sees it."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from models.engine.retention import tend_inputs
from orchestrator_web.app import create_app
from tests.engine.configured import configure
from tests.engine.market import event
from tests.engine.test_inputs import append, rows
from tests.kernel.races import alone
from tests.web.service import Api, assert_problem, key_with

PATH = "/engine/marks"


@pytest.fixture
def app(database: str, broker: str) -> Flask:
    configure(max_records=40)
    append(*[event()] * 35, max_records=40)
    rows("UPDATE engine_symbols SET cut_end_ingest_seq = 35 RETURNING symbol")
    return create_app()


@pytest.fixture
def api(app: Flask, admin_key: str) -> Api:
    return Api(app, admin_key)


def test_a_mark_keeps_records_until_it_is_removed(api: Api) -> None:
    made = api.post(PATH, json={"name": "audit-1", "ingest_seq": 7})
    assert made.status_code == 201
    mark = made.get_json()
    assert (mark["name"], mark["ingest_seq"], mark["created_by"]) == ("audit-1", 7, "admin")
    assert api.get(PATH).get_json() == {"marks": [mark]}
    assert alone(tend_inputs) == []
    assert api.call("DELETE", f"{PATH}/audit-1").status_code == 204
    assert api.get(PATH).get_json() == {"marks": []}
    assert len(alone(tend_inputs)) == 1


def test_a_mark_without_a_record_keeps_all_and_may_be_repeated(api: Api) -> None:
    made = [api.post(PATH, json={"name": "all"}) for _ in range(2)]
    assert [each.status_code for each in made] == [201, 201]
    assert made[0].get_json() == made[1].get_json()
    assert made[0].get_json()["ingest_seq"] == 1


def test_what_is_gone_taken_or_to_come_is_refused(api: Api) -> None:
    alone(tend_inputs)
    assert_problem(api.post(PATH, json={"name": "a", "ingest_seq": 10}), 410)
    assert_problem(api.post(PATH, json={"name": "a", "ingest_seq": 37}), 422)
    assert api.post(PATH, json={"name": "a", "ingest_seq": 36}).status_code == 201
    assert_problem(api.post(PATH, json={"name": "a", "ingest_seq": 35}), 409)
    assert_problem(api.call("DELETE", f"{PATH}/b"), 404)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/name"),
        ({"name": ""}, "/name"),
        ({"name": "a b"}, "/name"),
        ({"name": "a\n"}, "/name"),
        ({"name": "x" * 65}, "/name"),
        ({"name": "a", "ingest_seq": 0}, "/ingest_seq"),
        ({"name": "a", "ingest_seq": 2**63}, "/ingest_seq"),
        ({"name": "a", "ingest_seq": "1"}, "/ingest_seq"),
        ({"name": "a", "else": 1}, "/else"),
    ],
)
def test_a_wrong_mark_is_422_and_names_the_member(api: Api, body: dict[str, Any], pointer: str) -> None:
    problem = assert_problem(api.post(PATH, json=body), 422)
    assert [each["pointer"] for each in problem["errors"]] == [pointer]


def test_only_admins_set_and_remove_marks(app: Flask, api: Api) -> None:
    api.post(PATH, json={"name": "a"})
    writer = Api(app, key_with("read", "write", name="writer"))
    assert_problem(writer.post(PATH, json={"name": "b"}), 403)
    assert_problem(writer.call("DELETE", f"{PATH}/a"), 403)
    assert [mark["name"] for mark in writer.get(PATH).get_json()["marks"]] == ["a"]
