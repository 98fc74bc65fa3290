"""POST /engine/events: a body of raw market events becomes one batch of the log, all or nothing."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flask import Response, request
from flask_smorest import Blueprint
from marshmallow import Schema, fields

from models.engine import inputs
from models.engine.contract import WHITE_SPACE, Received, check_event
from models.engine.inputs import Intake, append_events, append_parts, get_intake, tell_batch, tell_failure
from models.kernel import clock
from models.kernel.errors import Invalid, OrchestratorError, Unavailable
from models.kernel.session import statement
from models.kernel.settings import settings
from orchestrator_web.auth import requires
from orchestrator_web.compression import decode_body
from orchestrator_web.idempotency import after_commit, creating
from orchestrator_web.json import dumps
from orchestrator_web.metrics import APPEND_FAILURES
from orchestrator_web.parsing import ENGINE_EVENTS, JSON, check_query
from orchestrator_web.problems import BadRequest

MOST_EVENTS = 50_000
MOST_LINES = 4 * MOST_EVENTS
LINES_IN_PART = 128  # enough to be worth a message to Postgres, few enough to be checked while it works
MOST_ERRORS, QUOTED = 10, 3
INFLATES_TO = 4  # times the largest body
INTAKE_SECONDS = 1.0

Numbered = Iterator[tuple[int, bytes]]
View = Callable[..., Response]

blueprint = Blueprint("engine_events", __name__, description="Raw market events that come in")
blueprint.before_request(check_query)


class Appended(Schema):
    """Where the events lie in the log: they are numbered on in the order given."""

    accepted = fields.Integer(required=True)
    first_ingest_seq = fields.Integer(required=True)
    last_ingest_seq = fields.Integer(required=True)


EVENT: dict[str, Any] = {
    "type": "object",
    "description": "RawMarketEvent v1; further members and unknown event types are kept",
    "required": [
        *("schema", "schema_version", "event_type", "source_id", "symbol"),
        *("exchange_ts_ms", "recv_ts_ms", "raw_payload", "normalized"),
    ],
    "properties": {
        "schema": {"const": "raw_market_event"},
        "schema_version": {"const": "1"},
        "event_type": {"type": "string", "minLength": 1, "maxLength": 64},
        "source_id": {"type": "string", "minLength": 1, "maxLength": 64},
        "symbol": {"type": "string", "minLength": 1, "maxLength": 64},
        "exchange_ts_ms": {"type": ["integer", "null"]},
        "recv_ts_ms": {"type": "integer"},
        "raw_payload": {"type": "string"},
        "raw_payload_encoding": {"enum": ["text", "base64"]},
        "normalized": {"type": "object"},
    },
}
BODY = {
    "required": True,
    "content": {
        "application/x-ndjson": {"schema": {"type": "string", "description": "one event a line"}},
        JSON: {"schema": {"oneOf": [EVENT, {"type": "array", "items": EVENT, "minItems": 1}]}},
    },
}
ENCODING = {
    "in": "header",
    "name": "Content-Encoding",
    "schema": {"type": "string", "enum": ["gzip", "identity"]},
    "description": f"gzip: the body may inflate to {INFLATES_TO} times the largest one that is taken",
}


def telling(view: View) -> View:
    """A batch that fails is told to the log by its failure domain, also when its commit fails."""

    @functools.wraps(view)
    def tell(*args: Any, **kwargs: Any) -> Response:
        try:
            return view(*args, **kwargs)
        except OrchestratorError as error:
            tell_failure("buffer" if isinstance(error, Unavailable) else "ingest", error)
            if isinstance(error, Unavailable):
                APPEND_FAILURES.labels(error.code).inc()
            raise

    return tell


@blueprint.post(ENGINE_EVENTS)
@blueprint.response(201, Appended)
@blueprint.doc(requestBody=BODY, parameters=[ENCODING])
@requires("write")
@telling
@creating(together=True)
def append_body(connection: Any) -> Response:
    """Append events to the log, all or none; each error names the line, or the item, that it is in."""
    intake = present_intake()
    received, appended = append_checked(connection, read_body(), intake)
    after_commit(lambda: tell_batch(received, appended))
    said = {name: getattr(appended, name) for name in Appended._declared_fields}
    return Response(dumps(said), status=201, content_type=JSON)


kept: dict[str, tuple[float, Intake]] = {}
"""By database: the present intake, and until when it counts as present."""


def present_intake() -> Intake:
    """Whom to take events from, looked up at most once in INTAKE_SECONDS. Raises Unavailable."""
    database = settings().database_url
    until, intake = kept.get(database, (0.0, None))
    if intake is None or until < clock.monotonic():
        with statement() as connection:
            intake = get_intake(connection)
        kept.clear()
        kept[database] = clock.monotonic() + INTAKE_SECONDS, intake
    return intake


def read_body() -> bytes:
    """The body as it was before it was compressed. Raises BadRequest, or Invalid when nothing is in it."""
    body = request.get_data(cache=True)
    largest = settings().engine_max_body_bytes * INFLATES_TO
    body = decode_body(body, request.headers.get("Content-Encoding", ""), largest) if body else body
    if not body.strip(WHITE_SPACE):
        raise Invalid("The body holds no event", errors=[{"pointer": "", "detail": "is empty"}], code="no_events")
    return body


def append_checked(connection: Any, body: bytes, intake: Intake) -> tuple[Sequence[Received], inputs.Appended]:
    """Have every event of the body checked and in the log; answers also the last of them, or all.

    Raises as `check_body` and `append_events` do, and nothing of the body is in the log.
    """
    lines = [] if request.mimetype == JSON else [line for _, line in lines_of(body)]
    if not LINES_IN_PART < len(lines) <= MOST_EVENTS:
        received = check_body(body, intake)
        return received, append_events(connection, received, max_records=intake.max_records)
    last: list[Received] = []
    try:
        parts = check_parts(lines, intake, last)
        return last, append_parts(connection, len(lines), parts, max_records=intake.max_records)
    except Invalid:
        check_body(body, intake)  # which says all that is wrong, and where
        raise


def check_parts(lines: Sequence[bytes], intake: Intake, last: list[Received]) -> Iterator[Sequence[Received]]:
    """The events of the lines, some at a time; `last` holds those of the last part. Raises Invalid."""
    for start in range(0, len(lines), LINES_IN_PART):
        some = lines[start : start + LINES_IN_PART]
        last[:] = [check_event(line, intake.sources, intake.alignment_ms) for line in some]
        yield last


def check_body(body: bytes, intake: Intake) -> list[Received]:
    """Every event of the body. Raises BadRequest, or Invalid that points at the first MOST_ERRORS that are wrong."""
    if request.mimetype != JSON:
        return check_events(lines_of(body), intake, "line")
    document = text_of(body)
    if document.startswith("{"):
        return [check_event(body, intake.sources, intake.alignment_ms)]
    if not document.startswith("["):
        why = "must be an object or an array of objects"
        raise Invalid(f"The body {why}", errors=[{"pointer": "", "detail": why}])
    return check_events(items_of(document), intake, "index")


def check_events(texts: Numbered, intake: Intake, numbering: str) -> list[Received]:
    received: list[Received] = []
    errors: list[dict[str, Any]] = []
    code = ""
    for number, text in texts:
        if len(received) == MOST_EVENTS:
            raise Invalid(f"The body holds more than {MOST_EVENTS} events", code="too_many_events")
        try:
            received.append(check_event(text, intake.sources, intake.alignment_ms))
        except Invalid as error:
            code = code or error.code
            errors += located(error, number, numbering)
            if len(errors) == MOST_ERRORS:
                break
    if errors:
        more = f", and perhaps more: the first {MOST_ERRORS} are listed" if len(errors) == MOST_ERRORS else ""
        raise Invalid("; ".join(each["detail"] for each in errors[:QUOTED]) + more, errors=errors, code=code)
    if not received:
        raise Invalid("The body holds no event", errors=[{"pointer": "", "detail": "is empty"}], code="no_events")
    return received


def located(error: Invalid, number: int, numbering: str) -> list[dict[str, Any]]:
    """What is wrong with one event, with the number of its line (from 1) or item (from 0) before it."""
    index = {"index": number} if numbering == "index" else {}
    return [
        {
            "pointer": f"/{number}{each['pointer']}",
            "detail": f"{numbering} {number}: {each['pointer'].lstrip('/')} {each['detail']}".replace(":  ", ": "),
            **index,
        }
        for each in error.errors
    ]


def lines_of(body: bytes) -> Numbered:
    """The lines that are not empty, counted from 1. Raises Invalid: empty ones, too, cost each a step."""
    if body.count(b"\n") > MOST_LINES:
        raise Invalid(f"The body holds more than {MOST_LINES} lines, empty ones included", code="too_many_events")
    return ((number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip(WHITE_SPACE))


def text_of(body: bytes) -> str:
    try:
        return body.strip(WHITE_SPACE).decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not JSON: it is not UTF-8 at byte {error.start}", code="not_json") from None


DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)  # what they make is thrown away
SPACE = re.compile(r"[ \t\r\n]*")


def items_of(document: str) -> Numbered:
    """The items of a JSON array from 0, each exactly as it stands there. Raises BadRequest when it is none."""
    at = after_space(document, 1)
    number = 0
    while document[at : at + 1] != "]" or number:
        end = end_of_item(document, at, number)
        yield number, document[at:end].encode()
        at = after_space(document, end)
        number += 1
        if document[at : at + 1] != ",":
            break
        at = after_space(document, at + 1)
    if document[at:] != "]":
        raise not_json(document, at, "the array does not end with its last item")


def end_of_item(document: str, at: int, number: int) -> int:
    try:
        return DECODER.raw_decode(document, at)[1]
    except (ValueError, RecursionError):
        raise not_json(document, at, f"item {number} is no value") from None


def not_json(document: str, at: int, why: str) -> BadRequest:
    return BadRequest(f"The body is not JSON: {why} (character {at} of {len(document)})", code="not_json")


def after_space(document: str, at: int) -> int:
    match = SPACE.match(document, at)
    return match.end() if match else at
