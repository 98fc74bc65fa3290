"""Whatever is thrown at the API, it never fails of itself: anything but a 5xx, and every refusal is a problem."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from orchestrator_web.json import walk
from orchestrator_web.parsing import flatten
from tests.web.service import Api, assert_problem, rows

MANY = settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))

names = st.sampled_from(
    [
        "command",
        "params",
        "priority",
        "timeout_seconds",
        "metadata",
        "target",
        "ticket_id",
        "force",
        "expires_in_seconds",
    ]
)
texts = st.text(st.characters(codec=None), max_size=20)
plausible = st.sampled_from(["drive", "scan", "high", "normal", "tick-20200101-00000000", True, 1, 300, 1.5, "robot-1"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts | plausible
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | texts, inner, max_size=5), max_leaves=20
)
objects = st.dictionaries(names, leaves | documents, max_size=9)


def sane(answer: TestResponse) -> None:
    if answer.status_code >= 400:
        assert_problem(answer, *range(400, 500))


def test_any_json_at_any_post_is_answered_or_refused(api: Api) -> None:
    @MANY
    @given(path=st.sampled_from(["/ticket", "/execute"]), document=documents | objects)
    def attempt(path: str, document: Any) -> None:
        body = json.dumps(document).encode()
        answer = api.call("POST", path, data=body, content_type="application/json", headers={"Prefer": "respond-async"})
        sane(answer)
        if answer.status_code == 201:
            made = answer.get_json()
            assert api.get(f"/ticket/{made['id']}").get_json() == made

    attempt()
    assert {row["state"] for row in rows("SELECT DISTINCT state FROM tickets")} <= {"pending"}


def test_any_bytes_at_any_post_are_refused(api: Api) -> None:
    @MANY
    @given(path=st.sampled_from(["/ticket", "/execute", "/ticket/x/cancel"]), body=st.binary(max_size=200))
    def attempt(path: str, body: bytes) -> None:
        assert_problem(api.send(path, body), 400, 404, 422)

    attempt()
    assert rows("SELECT count(*) AS n FROM tickets") == [{"n": 0}]


def test_any_query_string_at_the_list_is_answered_or_refused(api: Api) -> None:
    parts = st.sampled_from(
        ["limit=", "offset=", "status=", "priority=", "command=", "target=", "cursor=", "&", "=", "%", ";"]
    )
    raw = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=12)

    @MANY
    @given(st.lists(parts | raw | st.sampled_from(["10", "pending", "high", "%00", "%FF"]), max_size=8).map("".join))
    def attempt(query: str) -> None:
        sane(api.call("GET", "/tickets", query_string=query))

    attempt()


def test_any_path_is_answered_or_refused(api: Api) -> None:
    @MANY
    @given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#"), max_size=40))
    def attempt(path: str) -> None:
        sane(api.get(f"/{path.lstrip('/')}"))
        sane(api.get(f"/ticket/{path}"))

    attempt()


def test_any_header_value_is_answered_or_refused(api: Api) -> None:
    values = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=60)

    @MANY
    @given(name=st.sampled_from(["Authorization", "X-API-Key", "X-Correlation-Id", "Prefer", "Range"]), value=values)
    def attempt(name: str, value: str) -> None:
        sane(api.get("/tickets", headers={name: value}))

    attempt()


@given(documents)
@settings(max_examples=200, deadline=None)
def test_a_walk_names_each_part_of_a_document_by_a_pointer_that_finds_it(document: Any) -> None:
    for pointer, part, _ in walk(document):
        found = document
        for name in (escaped.replace("~1", "/").replace("~0", "~") for escaped in pointer.split("/")[1:]):
            found = found[int(name)] if isinstance(found, list) else found[name]
        assert found is part or pointer.endswith("/" + str(part).replace("~", "~0").replace("/", "~1"))


@given(st.recursive(st.lists(st.text(), min_size=1), lambda inner: st.dictionaries(st.text(), inner, min_size=1)))
def test_every_message_of_a_schema_becomes_one_error_with_a_pointer(messages: Any) -> None:
    def count(part: Any) -> int:
        return len(part) if isinstance(part, list) else sum(map(count, part.values()))

    found = list(flatten({"json": messages}))
    assert len(found) == count(messages)
    assert all(pointer == "" or pointer.startswith("/") for pointer, _ in found)
