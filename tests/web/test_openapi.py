"""The OpenAPI document is valid, whole and true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from jsonschema import Draft202012Validator

from orchestrator_web.auth import permission_of
from tests.web import golden
from tests.web.service import DRIVE, REFUSED, Api, finished, key_with

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


@pytest.fixture
def document(anonymous: Api) -> dict[str, Any]:
    answer = anonymous.get("/openapi.json")
    assert answer.content_type == "application/json"
    return dict(answer.get_json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in item.keys() & METHODS:
            yield path, method, {**item[method], "parameters": parameters(item, item[method])}


def parameters(item: dict[str, Any], operation: dict[str, Any]) -> list[dict[str, Any]]:
    return list(item.get("parameters", [])) + list(operation.get("parameters", []))


def resolved(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in part:
        assert part["$ref"].startswith("#/")
        target: Any = document
        for name in part["$ref"][2:].split("/"):
            target = target[name]
        part = target
    return part


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for inner in part.values():
            yield from references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from references(inner)


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def test_the_document_has_the_form_of_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert document["info"].keys() >= {"title", "version"}
    assert document.keys() <= {"openapi", "info", "servers", "paths", "components", "security", "tags", "externalDocs"}
    for path, method, operation in operations(document):
        named = re.findall(r"{([^}]+)}", path)
        in_path = [p for p in operation["parameters"] if p["in"] == "path"]
        assert sorted(p["name"] for p in in_path) == sorted(named), path
        assert all(p["required"] is True for p in in_path)
        keys = [(p["in"], p["name"]) for p in operation["parameters"]]
        assert len(keys) == len(set(keys))
        assert operation["summary"], (path, method)
        for status, answer in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d|default", status)
            assert resolved(document, answer)["description"], (path, status)


def test_every_reference_leads_somewhere_and_every_component_is_used(document: dict[str, Any]) -> None:
    used = set(references(document))
    for reference in used:
        resolved(document, {"$ref": reference})
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert schemas <= used


def test_every_schema_is_a_json_schema_whose_patterns_mean_the_same_in_javascript(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for _, _, operation in operations(document):
        for parameter in operation["parameters"]:
            Draft202012Validator.check_schema(parameter["schema"])
            assert not re.search(r"\\[AZz]|\(\?P", parameter["schema"].get("pattern", ""))


def test_every_route_is_documented_and_nothing_else(app: Flask, document: dict[str, Any]) -> None:
    routed = {
        (re.sub(r"<([^>]+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(path, method) for path, method, _ in operations(document)} == routed


def test_every_operation_says_how_it_succeeds_and_how_it_fails(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        answers = {status: resolved(document, answer) for status, answer in operation["responses"].items()}
        assert [status for status in answers if status.startswith("2") or status == "101"], (path, method)
        assert "default" in answers
        for status, answer in answers.items():
            assert answer.get("content") or status in {"101", "204"}, (path, status)
            if (status == "default" or status >= "4") and (path, status) != ("/readyz", "503"):
                assert answer["content"] == PROBLEM, (path, status)


def test_a_public_operation_asks_for_no_credential_and_any_other_for_one(app: Flask, document: dict[str, Any]) -> None:
    assert document["security"] == [{"bearer": []}, {"key": []}]
    assert document["components"]["securitySchemes"].keys() == {"bearer", "key"}
    public = {
        re.sub(r"<([^>]+)>", r"{\1}", rule.rule)
        for rule in app.url_map.iter_rules()
        if permission_of(app, rule.endpoint) == ""
    }
    for path, _, operation in operations(document):
        assert (operation.get("security") == []) is (path in public), path
        assert (operation["responses"].keys() >= {"401", "403"}) is (path not in public), path


def test_what_the_service_answers_is_what_the_document_says(api: Api, document: dict[str, Any]) -> None:
    ticket_id = finished(api, REFUSED)
    waiting = api.create()["id"]
    calls: list[tuple[str, str, str, dict[str, Any]]] = [
        ("get", "/", "/", {}),
        ("get", "/healthz", "/healthz", {}),
        ("get", "/readyz", "/readyz", {}),
        ("post", "/ticket", "/ticket", {"json": DRIVE}),
        ("post", "/ticket", "/ticket", {"json": {"priority": 1}}),
        ("post", "/ticket", "/ticket", {"data": b"{", "content_type": "application/json"}),
        ("post", "/ticket", "/ticket", {"data": b"{}", "content_type": "text/plain"}),
        ("get", "/ticket/{ticket_id}", f"/ticket/{ticket_id}", {}),
        ("get", "/ticket/{ticket_id}", "/ticket/none", {}),
        ("post", "/execute", "/execute", {"json": {"ticket_id": ticket_id}}),
        ("post", "/execute", "/execute", {"json": {"ticket_id": "none"}}),
        ("post", "/execute", "/execute", {"json": {"ticket_id": waiting}}),
        ("post", "/ticket/{ticket_id}/cancel", f"/ticket/{waiting}/cancel", {}),
        ("post", "/ticket/{ticket_id}/cancel", f"/ticket/{waiting}/cancel", {}),
        ("get", "/tickets", "/tickets", {}),
        ("get", "/tickets", "/tickets?limit=0", {}),
        ("get", "/telemetry/metrics", "/telemetry/metrics", {}),
        ("get", "/telemetry/events", "/telemetry/events", {}),
    ]
    for caller in (api, Api(api.app), Api(api.app, key_with())):
        for method, path, url, options in calls:
            answer = caller.call(method.upper(), url, **options)
            said = document["paths"][path][method]["responses"].get(str(answer.status_code))
            assert said is not None, (method, url, answer.status_code)
            content = resolved(document, said)["content"]
            check(document, content[answer.content_type]["schema"], answer.get_json())


def test_the_document_s_limits_are_the_ones_that_are_checked(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["TicketCreateRequest"]["properties"]
    assert fields["command"]["maxLength"] == 256
    assert (fields["timeout_seconds"]["minimum"], fields["timeout_seconds"]["maximum"]) == (1, 3600)
    query = {p["name"]: p["schema"] for p in document["paths"]["/tickets"]["get"]["parameters"]}
    assert query.keys() == {"status", "command", "priority", "target", "limit", "offset", "cursor"}
    assert (query["limit"]["minimum"], query["limit"]["maximum"], query["offset"]["maximum"]) == (1, 1000, 10_000)


def test_the_document_is_the_one_that_callers_rely_on(document: dict[str, Any]) -> None:
    """A wanted change is held anew by `python -m tests.web.golden`."""
    assert golden.golden_hash(document) == golden.FILE.read_text().strip()
