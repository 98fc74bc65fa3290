"""Dead letters: work that ended without doing what it was for, listed and set going again by an operator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flask import Response, g
from flask_smorest import Blueprint
from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

from models.kernel import bulk, dead_letters
from models.kernel.errors import NotFound
from models.kernel.session import statement
from models.kernel.settings import settings
from orchestrator_web import hints, paging
from orchestrator_web.auth import requires
from orchestrator_web.fields import QueryInteger
from orchestrator_web.idempotency import after_commit, creating
from orchestrator_web.kernel.operations import DATE_TIME, DEFAULT_PAGE, LARGEST_PAGE, Operation, accepted, answer
from orchestrator_web.parsing import StrictParser

NUMBER = re.compile(r"[1-9][0-9]{0,17}")
LONGEST_NAME = 128
TIMES = ("died_at", "replayed_at")

blueprint = Blueprint("dead_letters", __name__, description="Work that ended without doing what it was for")
blueprint.ARGUMENTS_PARSER = StrictParser()


class DeadLetter(Schema):
    """What died, of what, and whether it was set going again."""

    id = fields.Integer(required=True)
    task = fields.String(required=True)
    subject_kind = fields.String(required=True)
    subject_id = fields.String(required=True)
    code = fields.String(required=True)
    error = fields.String(required=True)
    correlation_id = fields.String(required=True)
    died_at = fields.String(required=True, metadata=DATE_TIME)
    replayed_at = fields.String(required=True, allow_none=True, metadata=DATE_TIME)
    replayed_by = fields.String(required=True, allow_none=True)


class DeadLetterPage(Schema):
    dead_letters = fields.List(fields.Nested(DeadLetter), required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class DeadLetterFilter(Schema):
    """Which letters; at least one member."""

    class Meta:
        unknown = RAISE

    task = fields.String(validate=validate.Length(1, LONGEST_NAME))
    code = fields.String(validate=validate.Length(1, LONGEST_NAME))

    @validates_schema
    def is_not_empty(self, data: dict[str, Any], **_: Any) -> None:
        if not data:
            raise ValidationError("name a task, a code or both")


class DeadLetterSelection(Schema):
    class Meta:
        unknown = RAISE

    filter = fields.Nested(DeadLetterFilter, required=True)


class DeadLetterQuery(Schema):
    """Filters and page of a list of dead letters."""

    class Meta:
        unknown = RAISE

    task = fields.String(validate=validate.Length(1, LONGEST_NAME))
    code = fields.String(validate=validate.Length(1, LONGEST_NAME))
    limit = QueryInteger(load_default=DEFAULT_PAGE, validate=validate.Range(1, LARGEST_PAGE))
    cursor = fields.String(validate=validate.Length(1, 512), metadata={"description": "next_cursor of the page before"})


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, **{name: row[name] and row[name].isoformat() for name in TIMES}}


@blueprint.get("/dead-letters")
@blueprint.arguments(DeadLetterQuery(), location="query")
@blueprint.response(200, DeadLetterPage)
@requires("admin")
def list_dead_letters(wanted: dict[str, Any]) -> Response:
    """The letters that wait for a replay, oldest first."""
    filters = {name: wanted.get(name) for name in ("task", "code")}
    question = {"list": "dead_letters", **filters}
    after = int(paging.read_cursor(question, wanted["cursor"])[1]) if "cursor" in wanted else 0
    limit = wanted["limit"]
    with statement() as connection:
        rows = dead_letters.list_letters(connection, **filters, after=after, limit=limit + 1)
    more = len(rows) > limit
    rows = rows[:limit]
    following = paging.write_cursor(question, (rows[-1]["died_at"], str(rows[-1]["id"]))) if more else None
    return answer({"dead_letters": [shown(row) for row in rows], "next_cursor": following})


@blueprint.post("/dead-letters/<letter_id>/replay")
@blueprint.response(200, DeadLetter)
@blueprint.alt_response(409, success=False)
@requires("admin")
@creating(together=True)
def replay_dead_letter(connection: Any, letter_id: str) -> Response:
    """Set what died going again, once. 409 when that was done before or its present state forbids it."""
    if not NUMBER.fullmatch(letter_id):
        raise NotFound("There is no such dead letter", code="letter_not_found")
    letter = dead_letters.replay_as_registered(
        connection, int(letter_id), g.caller, expires_in_seconds=settings().execute_expiry_seconds
    )
    g.subject = (letter["subject_kind"], letter["subject_id"])
    after_commit(hints.work_is_owed)
    return answer(shown(letter))


@blueprint.post("/dead-letters/replay")
@blueprint.arguments(DeadLetterSelection())
@blueprint.response(202, Operation)
@requires("admin")
@creating
def replay_dead_letters(connection: Any, wanted: dict[str, Any]) -> Response:
    """Set all going again that a filter finds; answers the operation that does it."""
    expires = settings().execute_expiry_seconds
    row = bulk.ask_operation(
        connection, dead_letters.REPLAY, g.caller, filter=wanted["filter"], expires_in_seconds=expires
    )
    return accepted(row)
