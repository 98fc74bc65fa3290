"""What tickets tell as it happens: outcomes to callers of /execute, events to streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response
from flask_smorest import Blueprint

from models.kernel.feed import Selection
from models.kernel.session import statement
from models.tickets import events
from models.tickets.queries import get_ticket, list_outcomes
from models.tickets.states import TICKET
from orchestrator_web.auth import requires
from orchestrator_web.cursors import write_event_cursor
from orchestrator_web.feed import Event
from orchestrator_web.json import dumps
from orchestrator_web.openings import Resumption, find_place, open_stream, open_websocket
from orchestrator_web.parsing import StrictParser
from orchestrator_web.tickets import answers, schemas

STREAM = "tickets"

blueprint = Blueprint("ticket events", __name__, description="What happens to tickets, as it happens")
blueprint.ARGUMENTS_PARSER = StrictParser()


@blueprint.get("/tickets/events")
@blueprint.arguments(schemas.EventQuery(), location="query")
@blueprint.arguments(Resumption(), location="headers")
@blueprint.response(200, schemas.TicketEvent, content_type="text/event-stream")
@blueprint.alt_response(404, success=False)
@blueprint.alt_response(410, success=False)
@requires("read")
def stream_events(wanted: dict[str, Any], resumed: dict[str, str]) -> Response:
    """Events of tickets, as server-sent events; each `data` is one JSON object of this schema.

    Reconnect with the last `id` and nothing is lost or doubled. A comment every 15 s says that the stream lives;
    `event: problem` is its last word. A page reads it with `fetch()`, which sends `Authorization`.
    """
    return open_stream(STREAM, selection(wanted), find_place(STREAM, wanted, resumed))


@blueprint.get("/ws/tickets")
@blueprint.arguments(schemas.EventQuery(), location="query")
@blueprint.arguments(Resumption(), location="headers")
@blueprint.alt_response(101, schema=schemas.TicketEvent, description="The same events, each a WebSocket message")
@blueprint.alt_response(404, success=False)
@blueprint.alt_response(410, success=False)
@blueprint.alt_response(426, success=False)
@requires("read")
def connect_events(wanted: dict[str, Any], resumed: dict[str, str]) -> Response:
    """The same events over a WebSocket, each message one JSON object with a `type`.

    `opened` and `heartbeat` carry the `id` to resume from; `problem` is the last word, and the close code is 4000
    plus its status. A page, which can set no header, names two protocols: `new WebSocket(url, ["bearer", credential])`.
    """
    return open_websocket(STREAM, selection(wanted), find_place(STREAM, wanted, resumed))


def selection(wanted: Mapping[str, Any]) -> Selection:
    """The events that a query asks for. Raises NotFound for an unknown ticket."""
    if "ticket_id" in wanted:
        with statement() as connection:
            get_ticket(connection, wanted["ticket_id"])
    topics = {wanted["topic"]} if "topic" in wanted else events.PUBLIC_TOPICS
    facts = tuple((name, wanted[name]) for name in ("command", "target") if name in wanted)
    return Selection(TICKET.kind, frozenset(topics), wanted.get("ticket_id"), facts)


def render_event(row: Mapping[str, Any]) -> Event | None:
    """A row of the ledger as the public sees it; None when it is not for the public."""
    if row["subject_kind"] != TICKET.kind or row["topic"] not in events.PUBLIC_TOPICS:
        return None
    cursor = write_event_cursor(STREAM, row["seq"])
    body = dumps(
        {
            "id": cursor,
            "seq": row["seq"],
            "type": row["topic"],
            "ticket_id": row["subject_id"],
            "command": row["body"].get("command"),
            "target": row["body"].get("target"),
            "revision": row["revision"],
            "from": row["from_state"],
            "to": row["to_state"],
            "at": row["at"].isoformat(),
            "correlation_id": row["correlation_id"],
            "data": row["body"],
        }
    )
    head = f"id: {cursor}\nevent: {row['topic']}\ndata: ".encode()
    return Event(row["seq"], row, head + body + b"\n\n", body.decode())


def read_outcomes(executions: list[tuple[str, int]]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """The recorded outcomes of these executions, in one statement."""
    with statement() as connection:
        return list_outcomes(connection, executions)


def render_outcome(outcome: Mapping[str, Any]) -> bytes:
    """The body that answers the waiting caller."""
    return dumps(answers.outcome(outcome))
