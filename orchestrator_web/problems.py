"""One door from errors to HTTP: every failure leaves as one problem object (RFC 9457)."""

from __future__ import annotations

import logging
import math
from typing import Any

from flask import Flask, Response, g, request
from marshmallow import INCLUDE, Schema, fields
from sqlalchemy.exc import DataError
from werkzeug.exceptions import HTTPException

from models.kernel import errors
from orchestrator_web.json import dumps

log = logging.getLogger(__name__)

STATUSES: dict[type[errors.OrchestratorError], int] = {
    errors.Invalid: 422,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.TooMany: 429,
    errors.Unavailable: 503,
}

TITLES = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    410: "Gone",
    413: "Body too large",
    415: "Unsupported media type",
    422: "Invalid request",
    426: "Upgrade required",
    429: "Too many requests",
    500: "Internal error",
    503: "Unavailable",
}

CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
SERVER_ERROR = 500
PROBLEM_JSON = "application/problem+json"


class FieldError(Schema):
    pointer = fields.String(required=True, metadata={"description": "JSON Pointer (RFC 6901) to the field"})
    detail = fields.String(required=True)
    index = fields.Integer(metadata={"description": "of the item of a list that it is in"})


class Problem(Schema):
    """What went wrong (RFC 9457)."""

    class Meta:
        unknown = INCLUDE

    type = fields.String(required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    instance = fields.String(required=True)
    code = fields.String(required=True)
    message = fields.String(required=True)
    correlation_id = fields.String(required=True, allow_none=True)
    errors = fields.List(fields.Nested(FieldError))
    state = fields.String(metadata={"description": "the present state, where it is the reason"})
    retriable = fields.Boolean()
    retry_after_ms = fields.Integer()


class BadRequest(errors.OrchestratorError):
    """The body is not what HTTP or JSON call a body."""

    code = "bad_request"

    def __init__(self, message: str, status: int = 400, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.status = status


def status_of(error: errors.OrchestratorError) -> int:
    if isinstance(error, BadRequest):
        return error.status
    return next((status for kind, status in STATUSES.items() if isinstance(error, kind)), SERVER_ERROR)


def members_of(status: int, code: str, detail: str, **members: Any) -> dict[str, Any]:
    """The members of a problem. `message` repeats `detail` under the name that other contracts use."""
    return {
        "type": f"urn:orchestrator:problem:{code}",
        "title": TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "code": code,
        "message": detail,
        **members,
    }


def problem(status: int, code: str, detail: str, **members: Any) -> Response:
    """A problem response."""
    g.problem_code = code
    here = {"instance": request.path, "correlation_id": g.get("correlation_id")}
    body = members_of(status, code, detail, **here, **members)
    response = Response(dumps(body), status=status, content_type=PROBLEM_JSON)
    if "retry_after_ms" in members:
        response.headers["Retry-After"] = str(math.ceil(members["retry_after_ms"] / 1000))
    if status == 401:  # noqa: PLR2004 - RFC 9110, section 11.6.1
        response.headers["WWW-Authenticate"] = 'Bearer realm="orchestrator"'
    return response


def of_orchestrator(error: errors.OrchestratorError) -> Response:
    status = status_of(error)
    if status == SERVER_ERROR:
        return of_bug(error)
    members: dict[str, Any] = {}
    if isinstance(error, errors.Invalid) and error.errors:
        members["errors"] = error.errors
    if isinstance(error, errors.IllegalTransition):
        members["state"] = error.state
    if isinstance(error, errors.Unavailable | errors.TooMany | errors.InProgress):
        members |= {"retriable": True, "retry_after_ms": int(error.retry_after * 1000)}
    return problem(status, error.code, error.message, **members)


def of_http(error: HTTPException) -> Response:
    status = error.code or SERVER_ERROR
    made = problem(status, CODES.get(status, "http_error"), error.description or TITLES.get(status, "Error"))
    valid_methods = getattr(error, "valid_methods", None)
    if valid_methods:
        made.headers["Allow"] = ", ".join(sorted(valid_methods))
    return made


def of_data(_error: DataError) -> Response:
    """The database refused a value that no check of ours had caught: the caller's mistake, and nothing was written."""
    log.exception("the database refused a value")
    return problem(422, "invalid", "A value in the request cannot be stored")


def of_bug(_error: Exception) -> Response:
    log.exception("a request failed")
    return problem(SERVER_ERROR, "internal", "Something went wrong; the correlation id finds it in the logs")


def register(app: Flask) -> None:
    app.register_error_handler(errors.OrchestratorError, of_orchestrator)
    app.register_error_handler(HTTPException, of_http)
    app.register_error_handler(DataError, of_data)
    app.register_error_handler(Exception, of_bug)
