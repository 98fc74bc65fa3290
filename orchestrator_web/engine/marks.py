"""Marks in the log of inputs: from the marked record on nothing is dropped, so that it can be exported and replayed."""

from __future__ import annotations

from typing import Any

from flask import Response, g
from flask_smorest import Blueprint
from marshmallow import RAISE, Schema, fields, validate

from models.engine import retention
from models.kernel.session import statement, transaction
from orchestrator_web.auth import requires
from orchestrator_web.fields import StrictInteger
from orchestrator_web.idempotency import creating
from orchestrator_web.json import dumps
from orchestrator_web.parsing import JSON, StrictParser, check_query

GREATEST = 2**63 - 1
NAME = validate.Regexp(r"^[A-Za-z0-9._:-]{1,64}(?![\s\S])", error="must be 1 to 64 letters, digits or . _ : -")

blueprint = Blueprint("engine_marks", __name__, description="Records of the log that are kept")
blueprint.ARGUMENTS_PARSER = StrictParser()
blueprint.before_request(check_query)


class MarkRequest(Schema):
    """What to keep."""

    class Meta:
        unknown = RAISE

    name = fields.String(required=True, validate=NAME)
    ingest_seq = StrictInteger(
        load_default=None,
        allow_none=True,
        validate=validate.Range(1, GREATEST),
        metadata={"description": "the first record to keep; without it all that there are"},
    )


class Mark(Schema):
    """Records from `ingest_seq` on are kept until the mark is removed."""

    name = fields.String(required=True)
    ingest_seq = fields.Integer(required=True)
    created_at = fields.String(required=True, metadata={"format": "date-time"})
    created_by = fields.String(required=True)


class Marks(Schema):
    marks = fields.List(fields.Nested(Mark), required=True)


def shown(row: Any) -> dict[str, Any]:
    return {**row._mapping, "created_at": row.created_at.isoformat()}


def answer(body: Any, status: int = 200) -> Response:
    return Response(dumps(body), status=status, content_type=JSON)


@blueprint.get("/engine/marks")
@blueprint.response(200, Marks)
@requires("read")
def list_marks() -> Response:
    """All marks, by the record that they keep."""
    with statement() as connection:
        return answer({"marks": [shown(row) for row in retention.list_marks(connection)]})


@blueprint.post("/engine/marks")
@blueprint.arguments(MarkRequest())
@blueprint.response(201, Mark)
@blueprint.alt_response(409, success=False)
@blueprint.alt_response(410, success=False)
@requires("admin")
@creating(together=True)
def set_mark(connection: Any, wanted: dict[str, Any]) -> Response:
    """Keep records from one on. The same mark again is answered alike; 410 when the record is kept no longer."""
    g.subject = (retention.MARK, wanted["name"])
    return answer(shown(retention.set_mark(connection, wanted["name"], wanted["ingest_seq"], g.caller)), 201)


@blueprint.delete("/engine/marks/<name>")
@blueprint.response(204)
@blueprint.alt_response(404, success=False)
@requires("admin")
def remove_mark(name: str) -> Response:
    """Keep nothing for this mark any more."""
    g.subject = (retention.MARK, name[:64].replace("\x00", ""))
    with transaction() as connection:
        retention.remove_mark(connection, name, g.caller)
    return Response(status=204)
