"""Many tickets at once: created all or none, executed, cancelled and replayed by an operation that is followed."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from flask import Response, g
from flask_smorest import Blueprint
from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

from models.kernel import bulk
from models.kernel.errors import Invalid
from models.kernel.settings import settings
from models.tickets import batches, operations
from models.tickets.tables import PRIORITIES
from orchestrator_web.auth import requires
from orchestrator_web.fields import BoundedList, StrictInteger
from orchestrator_web.idempotency import creating
from orchestrator_web.kernel.operations import DATE_TIME, Operation, accepted, answer
from orchestrator_web.parsing import StrictParser
from orchestrator_web.tickets import answers
from orchestrator_web.tickets.schemas import (
    DEFAULT_TIMEOUT_SECONDS,
    LONGEST_COMMAND,
    TARGET,
    TicketCreateRequest,
    TicketSchema,
)

MOST = 1000
MOST_ERRORS = 100
ITEM = re.compile(r"/(?:tickets|ids)/([0-9]+)")
TICKET_ID = validate.Regexp(r"^tick-[0-9]{8}-[0-9a-f]{8}(?![\s\S])", error="is not a ticket's id")

batches.register_acts()


class BatchParser(StrictParser):
    """Says of each error which item it is in, and lists the first MOST_ERRORS of them."""

    def load_json(self, req: Any, schema: Any) -> Any:
        try:
            return super().load_json(req, schema)
        except Invalid as error:
            raise indexed(error) from None

    def handle_error(self, error: ValidationError, req: Any, schema: Any, **options: Any) -> NoReturn:
        try:
            super().handle_error(error, req, schema, **options)
        except Invalid as refused:
            raise indexed(refused) from None


def indexed(error: Invalid) -> Invalid:
    found = [{**each, "index": int(at[1])} if (at := ITEM.match(each["pointer"])) else each for each in error.errors]
    more = f" ({len(found)} errors; the first {MOST_ERRORS} are listed)" if len(found) > MOST_ERRORS else ""
    return Invalid(error.message + more, errors=found[:MOST_ERRORS], code=error.code)


blueprint = Blueprint("batches", __name__, description="Many tickets at once")
blueprint.ARGUMENTS_PARSER = BatchParser()


class TicketBatch(Schema):
    """Tickets to create, all or none."""

    class Meta:
        unknown = RAISE

    tickets = BoundedList(fields.Nested(TicketCreateRequest), required=True, validate=validate.Length(1, MOST))


class CreatedBatch(Schema):
    count = fields.Integer(required=True)
    tickets = fields.List(fields.Nested(TicketSchema), required=True, metadata={"description": "in the order given"})


class TicketFilter(Schema):
    """Which tickets, of those that existed when the operation was asked for; at least one member."""

    class Meta:
        unknown = RAISE

    command = fields.String(validate=validate.Length(max=LONGEST_COMMAND))
    priority = fields.String(validate=validate.OneOf(PRIORITIES))
    target = fields.String(validate=TARGET)
    created_before = fields.AwareDateTime(format="iso", metadata=DATE_TIME)
    created_after = fields.AwareDateTime(format="iso", metadata=DATE_TIME)

    @validates_schema
    def is_not_empty(self, data: dict[str, Any], **_: Any) -> None:
        if not data:
            raise ValidationError("name at least one property; `status` alone means all in that state")


class ExecuteFilter(TicketFilter):
    status = fields.String(validate=validate.OneOf(batches.FOUND_BY_FILTER[batches.EXECUTE]))


class CancelFilter(TicketFilter):
    status = fields.String(validate=validate.OneOf(batches.FOUND_BY_FILTER[batches.CANCEL]))


class ReplayFilter(TicketFilter):
    status = fields.String(validate=validate.OneOf(batches.FOUND_BY_FILTER[batches.REPLAY]))


class TicketSelection(Schema):
    """Either ids or a filter."""

    class Meta:
        unknown = RAISE

    ids = BoundedList(
        fields.String(validate=TICKET_ID), validate=validate.Length(1, MOST), metadata={"uniqueItems": True}
    )

    @validates_schema
    def is_one_of_both(self, data: dict[str, Any], **_: Any) -> None:
        if ("ids" in data) == ("filter" in data):
            raise ValidationError("give ids or filter, one of both")

    @validates_schema
    def are_distinct(self, data: dict[str, Any], **_: Any) -> None:
        first: dict[str, int] = {}
        found = ((index, first.setdefault(ticket_id, index)) for index, ticket_id in enumerate(data.get("ids", [])))
        repeated = {index: [f"repeats /ids/{earlier}"] for index, earlier in found if earlier != index}
        if repeated:
            raise ValidationError({"ids": repeated})


def expiry() -> Any:
    return StrictInteger(
        load_default=lambda: settings().execute_expiry_seconds,
        validate=validate.Range(1, 86_400),
        metadata={"description": "what could not start this long after the request fails as expired, or is not begun"},
    )


class ExecuteSelection(TicketSelection):
    filter = fields.Nested(ExecuteFilter)
    expires_in_seconds = expiry()


class ReplaySelection(TicketSelection):
    filter = fields.Nested(ReplayFilter)
    expires_in_seconds = expiry()


class CancelSelection(TicketSelection):
    filter = fields.Nested(CancelFilter)


@blueprint.post("/tickets/batch")
@blueprint.arguments(TicketBatch())
@blueprint.response(201, CreatedBatch)
@requires("write")
@creating
def create_batch(connection: Any, wanted: dict[str, Any]) -> Response:
    """Create up to 1000 tickets, all or none; each error names the item it is in."""
    drafts = wanted["tickets"]
    for draft in drafts:
        draft["timeout_seconds"] = draft["timeout_seconds"] or DEFAULT_TIMEOUT_SECONDS
    rows = operations.create_tickets(connection, drafts, g.caller)
    return answer({"count": len(rows), "tickets": [answers.ticket(row) for row in rows]}, 201)


@blueprint.post("/tickets/execute")
@blueprint.arguments(ExecuteSelection())
@blueprint.response(202, Operation)
@requires("write")
@creating
def execute_tickets(connection: Any, wanted: dict[str, Any]) -> Response:
    """Carry pending tickets out; answers at once with the operation that sets them going."""
    return ask(connection, batches.EXECUTE, wanted)


@blueprint.post("/tickets/cancel")
@blueprint.arguments(CancelSelection())
@blueprint.response(202, Operation)
@requires("write")
@creating
def cancel_tickets(connection: Any, wanted: dict[str, Any]) -> Response:
    """Cancel tickets that have not ended; answers at once with the operation that does it."""
    return ask(connection, batches.CANCEL, wanted)


@blueprint.post("/tickets/replay")
@blueprint.arguments(ReplaySelection())
@blueprint.response(202, Operation)
@requires("write")
@creating
def replay_tickets(connection: Any, wanted: dict[str, Any]) -> Response:
    """Carry ended tickets out again. A filter finds failed and cancelled ones, ids also completed ones."""
    return ask(connection, batches.REPLAY, wanted)


def ask(connection: Any, act: str, wanted: dict[str, Any]) -> Response:
    filters = {name: plain(value) for name, value in wanted.get("filter", {}).items()}
    expires = float(wanted.get("expires_in_seconds", bulk.DEFAULT_EXPIRY_SECONDS))
    row = bulk.ask_operation(
        connection, act, g.caller, ids=wanted.get("ids"), filter=filters or None, expires_in_seconds=expires
    )
    return accepted(row)


def plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value
