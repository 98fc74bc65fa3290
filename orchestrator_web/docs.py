"""The API described: /openapi.json, and two pages over it from vendored files, so that they work with no network.

flask-smorest describes what blueprints declare. `complete` makes that true to what the application
does: every error is a problem, public routes ask for no credential, and plain routes are there too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, current_app, send_from_directory
from flask.typing import ResponseReturnValue
from flask_smorest import Api
from werkzeug.exceptions import NotFound

from orchestrator_web import idempotency
from orchestrator_web.auth import permission_of, public
from orchestrator_web.json import dumps
from orchestrator_web.problems import PROBLEM_JSON, TITLES, Problem

STATIC = "static"
VARIABLE = re.compile(r"<(?:[^:>]+:)?([^>]+)>")
A_DAY = 86_400
SERVED = frozenset({"docs.js", "redoc.js", "redoc.standalone.js", "swagger-ui-bundle.js", "swagger-ui.css"})

OF_THE_LIBRARY = ("Error", "PaginationMetadata")
A_PROBLEM = {"schema": {"$ref": "#/components/schemas/Problem"}}
ENGINE = {
    "type": ["object", "null"],
    "required": ["ready", "state", "ingestion_paused", "scheduling_paused", "paused_why"],
    "properties": {
        **{name: {"type": "boolean"} for name in ("ready", "ingestion_paused", "scheduling_paused")},
        "state": {"type": "string"},
        "paused_why": {"type": ["string", "null"]},
    },
}
READINESS = {
    "type": "object",
    "required": ["status", "missing", "engine"],
    "properties": {
        "status": {"type": "string"},
        "missing": {"type": "array", "items": {"type": "string"}},
        "engine": ENGINE,
    },
}
HEALTH = {"type": "object", "required": ["status"], "properties": {"status": {"const": "healthy"}}}
TEXT = {"type": "string"}
PLAIN_ROUTES: dict[str, tuple[str, dict[int, tuple[str, dict[str, Any]]]]] = {
    "/healthz": ("Whether this process answers.", {200: ("application/json", HEALTH)}),
    "/readyz": (
        "Whether the service can do its work; else what is missing.",
        {200: ("application/json", READINESS), 503: ("application/json", READINESS)},
    ),
    "/metrics": ("Prometheus metrics.", {200: ("text/plain", TEXT)}),
    "/openapi.json": ("This document.", {200: ("application/json", {"type": "object"})}),
    "/docs": ("This document as a page to try it on.", {200: ("text/html", TEXT)}),
    "/redoc": ("This document as a page to read.", {200: ("text/html", TEXT)}),
    "/static/{name}": ("A file of those pages.", {200: ("*/*", TEXT)}),
}


def register(app: Flask, api: Api) -> None:
    @functools.cache
    def document() -> bytes:
        return dumps(complete(app, api))

    @public
    def openapi() -> ResponseReturnValue:
        return Response(document(), content_type="application/json")

    app.add_url_rule("/openapi.json", view_func=openapi)
    app.add_url_rule("/docs", "docs", page("docs.html"))
    app.add_url_rule("/redoc", "redoc", page("redoc.html"))
    app.add_url_rule("/static/<name>", view_func=static_file)


def page(name: str) -> object:
    @public
    def view() -> ResponseReturnValue:
        return send_from_directory(f"{current_app.root_path}/{STATIC}", name)

    return view


@public
def static_file(name: str) -> ResponseReturnValue:
    if name not in SERVED:
        raise NotFound
    return send_from_directory(f"{current_app.root_path}/{STATIC}", name, max_age=A_DAY)


def complete(app: Flask, api: Api) -> dict[str, Any]:
    """The whole document."""
    if "Problem" not in api.spec.components.schemas:
        api.spec.components.schema("Problem", schema=Problem)
    document: dict[str, Any] = api.spec.to_dict()
    components = document["components"]
    for name in OF_THE_LIBRARY:
        components["schemas"].pop(name, None)
    components["responses"] = {
        str(status): {"description": title, "content": {PROBLEM_JSON: A_PROBLEM}} for status, title in TITLES.items()
    } | {"default": {"description": "Any other problem", "content": {PROBLEM_JSON: A_PROBLEM}}}
    for path, method, endpoint in routes(app):
        item = document["paths"].setdefault(path, {})
        operation = item.setdefault(method, {"tags": ["service"], "responses": {}})
        if idempotency.is_creating(app, endpoint):
            describe_repetition(operation)
        complete_operation(operation, item, is_public=permission_of(app, endpoint) == "")
        if path in PLAIN_ROUTES:
            describe_plain_route(operation, path)
    return document


def routes(app: Flask) -> Iterator[tuple[str, str, str]]:
    """(path, method, endpoint) of every route, as the document names them."""
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield VARIABLE.sub(r"{\1}", rule.rule), method.lower(), rule.endpoint


def complete_operation(operation: dict[str, Any], item: dict[str, Any], *, is_public: bool) -> None:
    """Say of an operation who may call it and how it can fail; a failure is a problem, whoever declared it."""
    answers = operation["responses"]
    failures = {"default", "503"} | {status for status in answers if status >= "400"}
    if is_public:
        operation["security"] = []
    else:
        failures |= {"401", "403", "429"}
    places = {parameter["in"] for parameter in operation.get("parameters", []) + item.get("parameters", [])}
    failures |= {"400", "408", "413", "415", "422"} if "requestBody" in operation else set()
    failures |= {"422"} if "query" in places else set()
    failures |= {"404"} if "path" in places else set()
    answers.update({status: {"$ref": f"#/components/responses/{status}"} for status in failures})


def describe_repetition(operation: dict[str, Any]) -> None:
    """A view that creates something takes an Idempotency-Key."""
    operation["parameters"] = [*operation.get("parameters", []), idempotency.PARAMETER]
    operation["responses"] |= {"409": {}, "422": {}}  # complete_operation says what they hold


def describe_plain_route(operation: dict[str, Any], path: str) -> None:
    operation["summary"], answers = PLAIN_ROUTES[path]
    for status, (kind, schema) in answers.items():
        described = {"description": TITLES.get(status, "OK"), "content": {kind: {"schema": schema}}}
        operation["responses"][str(status)] = described
    if "{name}" in path:
        operation["parameters"] = [{"in": "path", "name": "name", "required": True, "schema": TEXT}]
        operation["responses"]["404"] = {"$ref": "#/components/responses/404"}
