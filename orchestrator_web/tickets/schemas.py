"""What ticket requests and answers look like. Wire names are the contract's."""

from __future__ import annotations

from marshmallow import EXCLUDE, RAISE, Schema, fields, validate

from models.kernel.settings import settings
from models.tickets.events import PUBLIC_TOPICS
from models.tickets.states import TICKET
from models.tickets.tables import DEFAULT_TARGET, MAX_TIMEOUT_SECONDS, PRIORITIES
from orchestrator_web.fields import Json, QueryInteger, StrictBoolean, StrictInteger

LONGEST_COMMAND = 256
DEFAULT_TIMEOUT_SECONDS = 300
LARGEST_PAGE, DEFAULT_PAGE = 1000, 100
DEEPEST_OFFSET = 10_000
# The end is spelled so that Python and JSON Schema (ECMA-262) mean the same by it.
# `all`, however it is spelled, is the scope of an e-stop over every robot.
TARGET_NAME = r"(?![Aa][Ll][Ll](?![\s\S]))[A-Za-z0-9._:-]{1,64}(?![\s\S])"
TARGET = validate.Regexp("^" + TARGET_NAME, error="must be 1 to 64 letters, digits or . _ : -, and not all")
TICKET_ID = r"^tick-[0-9]{8}-[0-9a-f]{8}(?![\s\S])"
STATES = tuple(TICKET.edges)


class TicketCreateRequest(Schema):
    """A command for a robot. Unknown fields are ignored, as the reference does."""

    class Meta:
        unknown = EXCLUDE

    command = fields.String(required=True, validate=validate.Length(max=LONGEST_COMMAND))
    params = Json(load_default=dict)
    priority = fields.String(load_default="normal", validate=validate.OneOf(PRIORITIES))
    timeout_seconds = StrictInteger(
        load_default=DEFAULT_TIMEOUT_SECONDS,
        allow_none=True,
        validate=validate.Range(1, MAX_TIMEOUT_SECONDS),
        metadata={"description": "null means the default"},
    )
    metadata = Json(load_default=dict)
    target = fields.String(
        load_default=DEFAULT_TARGET, validate=TARGET, metadata={"description": "the robot; one motion at a time each"}
    )


class TicketSchema(Schema):
    """A ticket and its whole life."""

    id = fields.String(required=True, metadata={"example": "tick-20261121-9e3779b9"})
    command = fields.String(required=True)
    params = Json(required=True)
    priority = fields.String(required=True, validate=validate.OneOf(PRIORITIES))
    status = fields.String(required=True, validate=validate.OneOf(STATES))
    timeout_seconds = fields.Integer(required=True)
    metadata = Json(required=True)
    target = fields.String(required=True)
    created_at = fields.String(required=True, metadata={"format": "date-time"})
    updated_at = fields.String(required=True, metadata={"format": "date-time"})
    started_at = fields.String(required=True, allow_none=True, metadata={"format": "date-time"})
    completed_at = fields.String(required=True, allow_none=True, metadata={"format": "date-time"})
    result = Json(required=True, allow_none=True)
    error = fields.String(required=True, allow_none=True)
    error_code = fields.String(required=True, allow_none=True)


class ExecuteRequest(Schema):
    """Which ticket to carry out."""

    class Meta:
        unknown = EXCLUDE

    ticket_id = fields.String(required=True)
    force = StrictBoolean(load_default=False, metadata={"description": "run a ticket again that has ended"})
    expires_in_seconds = StrictInteger(
        load_default=lambda: settings().execute_expiry_seconds,
        validate=validate.Range(1, 86_400),
        metadata={"description": "a command that could not start within this time fails as expired"},
    )


class ExecuteResponse(Schema):
    """The outcome of one execution; `status` says whether it succeeded."""

    ticket_id = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(STATES))
    result = Json(required=True, allow_none=True)
    error = fields.String(required=True, allow_none=True)
    error_code = fields.String(required=True, allow_none=True)
    execution_time_ms = fields.Float(required=True)
    message = fields.String(required=True)


class TicketQuery(Schema):
    """Filters and page of a list of tickets."""

    class Meta:
        unknown = RAISE

    status = fields.String(validate=validate.OneOf(STATES))
    command = fields.String(validate=validate.Length(max=LONGEST_COMMAND))
    priority = fields.String(validate=validate.OneOf(PRIORITIES))
    target = fields.String(validate=TARGET)
    limit = QueryInteger(load_default=DEFAULT_PAGE, validate=validate.Range(1, LARGEST_PAGE))
    offset = QueryInteger(
        load_default=0,
        validate=validate.Range(0, DEEPEST_OFFSET, error=f"must be 0 to {DEEPEST_OFFSET}; use cursor to go deeper"),
    )
    cursor = fields.String(validate=validate.Length(1, 512), metadata={"description": "next_cursor of the page before"})


class TicketPage(Schema):
    total = fields.Integer(required=True)
    total_is_estimate = fields.Boolean(required=True, metadata={"description": "true: there are more than `total`"})
    limit = fields.Integer(required=True)
    offset = fields.Integer(required=True)
    tickets = fields.List(fields.Nested(TicketSchema), required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class TicketCounts(Schema):
    total = fields.Integer(required=True)
    pending = fields.Integer(required=True)
    queued = fields.Integer(required=True)
    executing = fields.Integer(required=True)
    completed = fields.Integer(required=True)
    failed = fields.Integer(required=True)
    cancelled = fields.Integer(required=True)


class Health(Schema):
    service = fields.String(required=True)
    version = fields.String(required=True)
    status = fields.String(required=True)
    tickets = fields.Nested(TicketCounts, required=True)


class EventQuery(Schema):
    """Which events a stream tells, and from where on."""

    class Meta:
        unknown = RAISE

    ticket_id = fields.String(validate=validate.Regexp(TICKET_ID, error="must be the id of a ticket"))
    command = fields.String(validate=validate.Length(1, LONGEST_COMMAND))
    target = fields.String(validate=TARGET)
    topic = fields.String(validate=validate.OneOf(PUBLIC_TOPICS))
    after = fields.String(
        validate=validate.Length(1, 64),
        metadata={"description": "`id` of the last event read, or `earliest`; without it the stream begins now"},
    )


class TicketEvent(Schema):
    """Something that happened to a ticket."""

    id = fields.String(required=True, metadata={"description": "the cursor to resume from"})
    seq = fields.Integer(required=True, metadata={"description": "grows, with gaps"})
    type = fields.String(required=True, validate=validate.OneOf(PUBLIC_TOPICS))
    ticket_id = fields.String(required=True)
    command = fields.String(required=True, allow_none=True)
    target = fields.String(required=True, allow_none=True)
    revision = fields.Integer(required=True, metadata={"description": "of the ticket, after the move; 0 for a note"})
    from_ = fields.String(required=True, allow_none=True, data_key="from")
    to = fields.String(required=True, allow_none=True)
    at = fields.String(required=True, metadata={"format": "date-time"})
    correlation_id = fields.String(required=True)
    data = Json(required=True, metadata={"description": "the whole public record, such as an outcome"})


class MetricItem(Schema):
    timestamp = fields.String(required=True, metadata={"format": "date-time"})
    name = fields.String(required=True)
    value = fields.Float(required=True)
    tags = fields.Dict(keys=fields.String(), values=fields.String(), required=True)


class Latency(Schema):
    command = fields.String(required=True)
    status = fields.String(required=True)
    count = fields.Integer(required=True)
    mean_ms = fields.Float(required=True)
    p50_ms = fields.Float(required=True, allow_none=True)
    p95_ms = fields.Float(required=True, allow_none=True)


class Metrics(Schema):
    count = fields.Integer(required=True)
    metrics = fields.List(fields.Nested(MetricItem), required=True)
    latency = fields.List(fields.Nested(Latency), required=True)


class EventItem(Schema):
    timestamp = fields.String(required=True, metadata={"format": "date-time"})
    type = fields.String(required=True)
    data = Json(required=True)


class Events(Schema):
    count = fields.Integer(required=True)
    events = fields.List(fields.Nested(EventItem), required=True)
