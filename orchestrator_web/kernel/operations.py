"""Operations over many subjects as callers see them: asked for elsewhere, followed and cancelled here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flask import Response, g
from flask_smorest import Blueprint
from marshmallow import RAISE, Schema, fields, validate

from models.kernel import bulk
from models.kernel.bulk_moves import OPERATION
from models.kernel.errors import NotFound
from models.kernel.session import statement
from orchestrator_web import hints, paging
from orchestrator_web.auth import requires
from orchestrator_web.fields import Json, QueryInteger
from orchestrator_web.idempotency import after_commit
from orchestrator_web.json import dumps
from orchestrator_web.parsing import StrictParser

OPERATION_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
STATES = tuple(OPERATION.edges)
LARGEST_PAGE, DEFAULT_PAGE = 1000, 100
DATE_TIME = {"format": "date-time"}
TIMES = ("created_at", "started_at", "completed_at")

blueprint = Blueprint("operations", __name__, description="Operations over many subjects at once")
blueprint.ARGUMENTS_PARSER = StrictParser()


class RefusedSubject(Schema):
    id = fields.String(required=True)
    code = fields.String(required=True)


class Operation(Schema):
    """Something that is done to many, and how far it is."""

    id = fields.String(required=True)
    act = fields.String(required=True, metadata={"example": "tickets.execute"})
    status = fields.String(required=True, validate=validate.OneOf(STATES))
    filter = Json(required=True, allow_none=True, metadata={"description": "null: it was asked for by ids"})
    options = Json(required=True)
    expires_in_seconds = fields.Float(
        required=True, metadata={"description": "what is not done this long after it was asked for is not done at all"}
    )
    total = fields.Integer(
        required=True, allow_none=True, metadata={"description": "how many ids; null: a filter finds out on the way"}
    )
    matched = fields.Integer(required=True, metadata={"description": "looked at so far: done and refused together"})
    done = fields.Integer(required=True)
    refused = fields.Dict(
        keys=fields.String(),
        values=fields.Integer(),
        required=True,
        metadata={"description": "how many were left as they are, by code"},
    )
    examples = fields.List(
        fields.Nested(RefusedSubject),
        required=True,
        metadata={"description": f"the first {bulk.MOST_EXAMPLES} that were refused"},
    )
    created_by = fields.String(required=True)
    created_at = fields.String(required=True, metadata=DATE_TIME)
    started_at = fields.String(required=True, allow_none=True, metadata=DATE_TIME)
    completed_at = fields.String(required=True, allow_none=True, metadata=DATE_TIME)
    error = fields.String(required=True, allow_none=True)
    error_code = fields.String(required=True, allow_none=True)


class OperationPage(Schema):
    operations = fields.List(fields.Nested(Operation), required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class OperationQuery(Schema):
    """Filter and page of a list of operations."""

    class Meta:
        unknown = RAISE

    status = fields.String(validate=validate.OneOf(STATES))
    limit = QueryInteger(load_default=DEFAULT_PAGE, validate=validate.Range(1, LARGEST_PAGE))
    cursor = fields.String(validate=validate.Length(1, 512), metadata={"description": "next_cursor of the page before"})


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    times = {name: row[name] and row[name].isoformat() for name in TIMES}
    return {name: row[name] for name in Operation._declared_fields if name in row} | {"status": row["state"], **times}


def answer(body: Any, status: int = 200) -> Response:
    return Response(dumps(body), status=status, content_type="application/json")


def accepted(row: Mapping[str, Any]) -> Response:
    """The answer to whoever asked for an operation; the dispatcher is woken once it is committed."""
    g.subject = (OPERATION.kind, row["id"])
    after_commit(hints.work_is_owed)
    made = answer(shown(row), 202)
    made.headers["Location"] = f"/operations/{row['id']}"
    return made


def known_form(operation_id: str) -> str:
    """The id, noted as what this request is about. Raises NotFound for a text that cannot be one."""
    if not OPERATION_ID.fullmatch(operation_id):
        raise NotFound(f"Operation '{operation_id[:64]}' not found".replace("\x00", ""), code="operation_not_found")
    g.subject = (OPERATION.kind, operation_id)
    return operation_id


@blueprint.get("/operations")
@blueprint.arguments(OperationQuery(), location="query")
@blueprint.response(200, OperationPage)
@requires("read")
def list_operations(wanted: dict[str, Any]) -> Response:
    """Operations, newest first."""
    question = {"list": "operations", "status": wanted.get("status")}
    after = paging.read_cursor(question, wanted["cursor"]) if "cursor" in wanted else None
    limit = wanted["limit"]
    with statement() as connection:
        rows = bulk.list_operations(connection, state=question["status"], after=after, limit=limit + 1)
    more = len(rows) > limit
    rows = rows[:limit]
    following = paging.write_cursor(question, (rows[-1]["created_at"], rows[-1]["id"])) if more else None
    return answer({"operations": [shown(row) for row in rows], "next_cursor": following})


@blueprint.get("/operations/<operation_id>")
@blueprint.response(200, Operation)
@requires("read")
def get_operation(operation_id: str) -> Response:
    """How far an operation is."""
    with statement() as connection:
        return answer(shown(bulk.get_operation(connection, known_form(operation_id))))


@blueprint.post("/operations/<operation_id>/cancel")
@blueprint.response(200, Operation)
@blueprint.alt_response(409, success=False)
@requires("write")
def cancel_operation(operation_id: str) -> Response:
    """End an operation where it stands. What it has done stays done."""
    with statement() as connection:
        return answer(shown(bulk.cancel_operation(connection, known_form(operation_id), g.caller)))
