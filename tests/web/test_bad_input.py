"""Bad input is refused with a problem that points at the fault, and changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.web.service import DRIVE, Api, assert_problem, counts, each, refusals

WRONG = (422,)
NOT_JSON = (400,)


@pytest.fixture(autouse=True)
def _changes_nothing(api: Api) -> Iterator[None]:
    """Around every test here: no table gains or loses a row; the ledger gains refusals alone."""
    before = counts("ledger")
    kept = len(refusals())
    notes = counts()["ledger"]
    yield
    assert counts("ledger") == before
    assert counts()["ledger"] - notes == len(refusals()) - kept


def pointers(problem: dict[str, Any]) -> set[str]:
    return {error["pointer"] for error in problem["errors"]}


@each(
    "body",
    [
        b"", b" ", b"{", b"not json", b"{'command': 'scan'}", b'{"command": "scan",}', b'{"command": "scan"} trailing',
        b'\xef\xbb\xbf{"command": "scan"}', b'{"command": "\xff\xfe"}', b'{"command": "\xed\xa0\x80"}',
        b'{"command": "\\ud800"}', b'{"command": "\\udfff\\ud800"}', b'{"\\ud800": 1, "command": "scan"}',
        b'{"command": "scan", "params": {"speed": NaN}}', b'{"command": "scan", "params": {"speed": Infinity}}',
        b'{"command": "scan", "params": {"speed": -Infinity}}', b'{"command": "scan", "params": {"speed": 1e400}}',
        b'{"command": "scan", "params": {"speed": -1e400}}', b'{"command": "scan", "timeout_seconds": 1e400}',
        b"[" * 100_000, b'{"a":' * 5_000, b'{"command": "a\nb"}', b"\x00",
        b'{"command": "scan"}'.replace(b'"', b"\x00"),
        '{"command": "scan"}'.encode("utf-16"), '{"command": "scan"}'.encode("utf-32"), b"NaN", b"nul", b"01", b"\xff",
    ],
)  # fmt: skip
def test_what_is_not_json_is_400(api: Api, body: bytes) -> None:
    for path in ("/ticket", "/execute"):
        assert assert_problem(api.send(path, body), 400)["code"] == "not_json"


@each("body", [b"[]", b'"text"', b"null", b"1", b"true", b'[{"command": "scan"}]', b"1.5e3"])
def test_a_body_that_is_json_but_no_object_is_422(api: Api, body: bytes) -> None:
    for path in ("/ticket", "/execute"):
        problem = assert_problem(api.send(path, body), 422)
        assert problem["errors"] == [{"pointer": "", "detail": "must be an object"}]


@each(
    "path, content_type",
    itertools.product(
        ["/ticket", "/execute", "/ticket/tick-20200101-00000000/cancel"],
        [
            None, "", "text/plain", "application/x-www-form-urlencoded", "application/xml", "multipart/form-data", ";",
            "application/jsonx", "application/json-patch+json", "json", "application/json, text/plain",
        ],
    ),
)  # fmt: skip
def test_a_body_of_another_content_type_is_415(api: Api, path: str, content_type: str | None) -> None:
    problem = assert_problem(api.send(path, b'{"command": "scan"}', content_type), 415)
    assert problem["code"] == "unsupported_media_type"


def test_a_charset_beside_the_content_type_is_no_fault(api: Api) -> None:
    assert_problem(api.send("/ticket", b"{}", "application/json; charset=utf-8"), 422)
    assert_problem(api.send("/ticket", b"{}", "Application/JSON"), 422)


def test_a_body_of_two_megabytes_is_413(api: Api) -> None:
    body = b'{"command": "scan", "params": {"x": "' + b"a" * 2**21 + b'"}}'
    for path in ("/ticket", "/execute"):
        assert assert_problem(api.send(path, body), 413)["code"] == "body_too_large"


def test_nesting_that_json_allows_and_no_store_should_is_422(api: Api) -> None:
    for opening, closing in ((b'{"a":', b"}"), (b"[", b"]")):
        deep = b'{"command": "scan", "params": {"x": ' + opening * 40 + b"1" + closing * 40 + b"}}"
        problem = assert_problem(api.send("/ticket", deep), 422)
        assert "nested deeper than 32 levels" in problem["detail"]
        assert problem["errors"][0]["pointer"].startswith("/params/x/")


WRONG_TICKETS: list[tuple[dict[str, Any], str]] = [
    ({}, "/command"),
    ({"command": None}, "/command"),
    *(({"command": value}, "/command") for value in (1, 1.5, True, [], {}, "x" * 257)),
    *(({"command": "scan", "params": value}, "/params") for value in (None, [], "x", 1, True, [["a", 1]])),
    *(({"command": "scan", "metadata": value}, "/metadata") for value in (None, [], "x", 1, False)),
    *(
        ({"command": "scan", "priority": value}, "/priority")
        for value in (None, True, 1, "urgent", "HIGH", "high ", "", [], ["high"], {"high": 1})
    ),
    *(
        ({"command": "scan", "timeout_seconds": value}, "/timeout_seconds")
        for value in (0, -1, 3601, 1.5, True, False, "300", "", [], {}, 2**31, 2**63, -(2**63), 10**30, 1e300)
    ),
    *(
        ({"command": "scan", "target": value}, "/target")
        for value in (None, "", 1, True, "a b", "x" * 65, "é", "a\n", "../etc", "a/b", [])
    ),
]


@each("ticket, pointer", WRONG_TICKETS)
def test_a_ticket_with_a_wrong_field_is_422_and_points_at_it(api: Api, ticket: dict[str, Any], pointer: str) -> None:
    problem = assert_problem(api.post("/ticket", json=ticket), *WRONG)
    assert pointers(problem) == {pointer}


def test_every_wrong_field_is_named_at_once(api: Api) -> None:
    problem = assert_problem(api.post("/ticket", json={"priority": "urgent", "timeout_seconds": 0}), *WRONG)
    assert pointers(problem) == {"/command", "/priority", "/timeout_seconds"}


WRONG_EXECUTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "/ticket_id"),
    *(({"ticket_id": value}, "/ticket_id") for value in (None, 1, True, [], {}, ["tick-20200101-00000000"])),
    *(
        ({"ticket_id": "tick-20200101-00000000", "force": value}, "/force")
        for value in ("yes", "true", "false", 1, 0, 1.0, None, [], {}, "")
    ),
    *(
        ({"ticket_id": "tick-20200101-00000000", "expires_in_seconds": value}, "/expires_in_seconds")
        for value in (0, -1, 86_401, 1.5, True, "60", None, [], 2**63)
    ),
]


@each("execution, pointer", WRONG_EXECUTIONS)
def test_an_execution_with_a_wrong_field_is_422(api: Api, execution: dict[str, Any], pointer: str) -> None:
    problem = assert_problem(api.post("/execute", json=execution), *WRONG)
    assert pointers(problem) == {pointer}


@each(
    "body",
    [
        b'{"command": "a\\u0000b"}', b'{"command": "scan", "params": {"a\\u0000b": 1}}',
        b'{"command": "scan", "metadata": {"a": ["\\u0000"]}}', b'{"command": "scan", "target": "\\u0000"}',
        b'{"command": "scan", "\\u0000": 1}', b'{"ticket_id": "tick-20200101-00000000\\u0000"}',
    ],
)  # fmt: skip
def test_a_nul_character_anywhere_in_a_body_is_422(api: Api, body: bytes) -> None:
    for path in ("/ticket", "/execute"):
        problem = assert_problem(api.send(path, body), *WRONG)
        assert "NUL" in problem["detail"]


@each(
    "path",
    [
        "/ticket/%00", "/ticket/tick-20200101-0000000%00", "/ticket/%FF%FE", "/ticket/%ED%A0%80",
        "/ticket/" + "x" * 9000,
        "/ticket/tick-20200101-00000000%0A", "/ticket/TICK-20200101-00000000", "/ticket/-1", "/ticket/%F0%9F%98%80",
        "/ticket/..%2f..%2fetc%2fpasswd", "/ticket/' OR 1=1", "/ticket/tick-\uff12\uff10200101-00000000", "/%00",
        "/nowhere", "/ticket/", "/ticket//", "/static/%00", "/static/..%2fapp.py", "/static/../app.py",
        "/static/docs.html",
        "/docs/", "/tickets/", "/TICKETS", "/telemetry", "/ticket/a/b/c", "/" + "y" * 60_000,
        "//evil.example/..", "/telemetry//metrics", "/./tickets", "/tickets;a=b",
    ],
)  # fmt: skip
def test_a_path_to_nothing_is_404_for_reading(api: Api, path: str) -> None:
    assert_problem(api.get(path), 404)


@each(
    "ticket_id", ["%00", "%FF", "%ED%A0%80", "tick-20200101-0000000%00", "x" * 5000, "tick-20200101-00000000", "%0d%0a"]
)
def test_cancelling_nothing_is_404_and_kept_as_a_refusal(api: Api, ticket_id: str) -> None:
    before = len(refusals())
    assert_problem(api.post(f"/ticket/{ticket_id}/cancel"), 404)
    assert len(refusals()) == before + 1
    assert refusals()[-1]["actor"] == "admin"


@each(
    "query, pointer",
    [
        *((f"limit={value}", "/limit") for value in
          ("0", "-1", "1001", "1.5", "1e2", "true", "", "ten", "0x10", "1_0", "%D9%A3", "%2B5", "%00", "9" * 5000)),
        *((f"offset={value}", "/offset") for value in
          ("-1", "10001", "1.5", "true", "", "x", "9" * 30, "9" * 5000, "1_0", "%00")),
        *((f"status={value}", "/status") for value in ("", "COMPLETED", "done", "pending,failed", "%00", "null")),
        *((f"priority={value}", "/priority") for value in ("", "urgent", "1", "HIGH")),
        *((f"target={value}", "/target") for value in ("", "a%20b", "x" * 65, "%00", "%0A", "a%0A")),
        *((f"command={value}", "/command") for value in ("%00", "a%00b", "x" * 257)),
        *((f"cursor={value}", "/cursor") for value in
          ("", "x", "abcd", "%00", "x" * 5000, "AAAA" * 20, "%C3%A9", "=", "....", "a%20b")),
        ("unknown=1", "/unknown"), ("Limit=1", "/Limit"), ("a%00b=1", "/a\x00b"), ("%FF=1", "/%FF"),
        ("limit[]=1", "/limit[]"),
        ("limit=1&limit=2", "/limit"), ("limit=1&limit=1", "/limit"), ("status=pending&status=failed", "/status"),
        ("command=a&command=b", "/command"), ("page=2", "/page"), ("=1", "/"),
    ],
)  # fmt: skip
def test_a_list_with_a_wrong_parameter_is_422_and_points_at_it(api: Api, query: str, pointer: str) -> None:
    problem = assert_problem(api.get(f"/tickets?{query}"), *WRONG)
    assert pointers(problem) == {pointer}


def test_a_parameter_where_none_is_known_is_no_reason_for_an_error(api: Api) -> None:
    for path in ("/", "/healthz", "/telemetry/metrics", "/telemetry/events", "/openapi.json"):
        assert api.get(f"{path}?x=%00&x=%FF&limit=-1").status_code == 200


@each(
    "method, path, allowed",
    [
        ("DELETE", "/ticket", "OPTIONS, POST"), ("GET", "/ticket", "OPTIONS, POST"),
        ("PUT", "/execute", "OPTIONS, POST"),
        ("GET", "/execute", "OPTIONS, POST"), ("POST", "/tickets", "GET, HEAD, OPTIONS"),
        ("PATCH", "/", "GET, HEAD, OPTIONS"),
        ("BREW", "/tickets", "GET, HEAD, OPTIONS"), ("TRACE", "/ticket", "OPTIONS, POST"),
        ("CONNECT", "/tickets", "GET, HEAD, OPTIONS"), ("HEAD", "/execute", "OPTIONS, POST"),
    ],
)  # fmt: skip
def test_a_method_that_a_path_does_not_know_is_405_and_says_which_it_knows(
    api: Api, method: str, path: str, allowed: str
) -> None:
    answer = api.call(method, path)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == allowed
    if method != "HEAD":
        assert_problem(answer, 405)


def test_the_path_is_judged_before_the_body(api: Api) -> None:
    assert_problem(api.send("/nowhere", b"text", "text/plain"), 404)
    assert_problem(api.send("/tickets", b"text", "text/plain"), 405)


def test_head_answers_as_get_without_a_body_and_options_names_the_methods(api: Api) -> None:
    for path in ("/", "/tickets", "/healthz", "/openapi.json"):
        head = api.call("HEAD", path)
        assert (head.status_code, head.data) == (200, b"")
    options = api.call("OPTIONS", "/ticket")
    assert options.status_code == 200
    assert set(options.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


def test_a_body_on_a_get_is_not_looked_at(api: Api) -> None:
    assert api.call("GET", "/tickets", data=b"{not json", content_type="text/plain").status_code == 200
    assert api.call("GET", "/", data=b"\x00\xff", content_type="application/json").status_code == 200


def test_a_url_of_sixty_kilobytes_is_refused_or_answered_but_never_an_error(api: Api) -> None:
    assert_problem(api.get("/tickets?command=" + "x" * 60_000), 422)
    assert_problem(api.get("/tickets?" + "&".join(f"p{n}=1" for n in range(5_000))), 422)


@each(
    "name, value",
    itertools.product(
        ["X-Correlation-Id", "Prefer", "Accept", "Cookie", "X-Forwarded-For", "If-None-Match"],
        ["\x00", "\xff" * 300, "a" * 60_000, "\t", "é", "' OR 1=1"],
    ),
)
def test_a_strange_header_is_no_reason_for_an_error(api: Api, name: str, value: str) -> None:
    assert api.get("/tickets", headers={name: value}).status_code == 200
    assert_problem(api.post("/execute", json={"ticket_id": "x"}, headers={name: value}), 404)


@each("host", ["", "evil.example", "a b", "\xff", "x" * 5000, "localhost:99999", "[::1", "'\"<script>"])
def test_a_strange_host_changes_nothing(api: Api, host: str) -> None:
    for path in ("/tickets", "//tickets", "/telemetry//metrics"):
        answer = api.get(path, headers={"Host": host})
        assert answer.status_code in {200, 400, 404}
        assert "Location" not in answer.headers


def test_a_refused_request_leaves_an_existing_ticket_as_it_was(api: Api) -> None:
    before = api.get("/tickets").get_json()
    assert_problem(api.send("/ticket", b'{"command": "scan", "params": {"speed": NaN}}'), *NOT_JSON)
    assert api.get("/tickets").get_json() == before


def test_the_problem_of_a_wrong_field_is_whole(api: Api) -> None:
    answer = api.post("/ticket", json={**DRIVE, "priority": "urgent"}, headers={"X-Correlation-Id": "mine-1"})
    assert assert_problem(answer, 422) == {
        "type": "urn:orchestrator:problem:invalid",
        "title": "Invalid request",
        "status": 422,
        "detail": "/priority: Must be one of: critical, high, normal, low.",
        "instance": "/ticket",
        "code": "invalid",
        "message": "/priority: Must be one of: critical, high, normal, low.",
        "correlation_id": "mine-1",
        "errors": [{"pointer": "/priority", "detail": "Must be one of: critical, high, normal, low."}],
    }
