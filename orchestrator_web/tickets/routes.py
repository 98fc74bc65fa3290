"""The ticket endpoints: each reads a request, calls one operation or query, shapes one answer."""

from __future__ import annotations

import functools
import re
from typing import Any

from flask import Response, g, request
from flask_smorest import Blueprint
from werkzeug.http import parse_list_header

from models.kernel.errors import Invalid, NotFound
from models.kernel.session import statement
from models.kernel.tallies import count_states
from models.tickets import operations, queries, telemetry
from models.tickets.states import TICKET
from models.tickets.transitions import QUEUE
from orchestrator_web import hints, paging, sending
from orchestrator_web.auth import public, requires
from orchestrator_web.idempotency import after_commit, creating
from orchestrator_web.json import dumps
from orchestrator_web.outcomes import awaiting
from orchestrator_web.parsing import StrictParser
from orchestrator_web.tickets import answers, schemas

SERVICE, VERSION = "orchestrator-ren", "0.1.0"
TICKET_ID = re.compile(r"tick-[0-9]{8}-[0-9a-f]{8}")
COLUMNS = {"status": "state", "command": "command", "priority": "priority", "target": "target"}

PREFER = {
    "in": "header",
    "name": "Prefer",
    "schema": {"type": "string"},
    "description": "respond-async: answer 202 at once instead of waiting for the outcome",
}

blueprint = Blueprint("tickets", __name__, description="Robot command tickets")
blueprint.ARGUMENTS_PARSER = StrictParser()


def answer(body: Any, status: int = 200) -> Response:
    return Response(dumps(body), status=status, content_type="application/json")


def known_form(ticket_id: str) -> str:
    """The id, noted as what this request is about. Raises NotFound for a text that cannot be one."""
    if not TICKET_ID.fullmatch(ticket_id):
        raise NotFound(f"Ticket '{ticket_id[:64]}' not found".replace("\x00", ""), code="ticket_not_found")
    g.subject = (TICKET.kind, ticket_id)
    return ticket_id


@blueprint.get("/")
@blueprint.response(200, schemas.Health)
@public
def get_health() -> Response:
    """What the service is, and how many tickets are in which state."""
    with statement() as connection:
        counts = count_states(connection, TICKET.kind)
    states = {state: counts.get(state, 0) for state in schemas.STATES}
    tickets = {"total": sum(states.values()), **states}
    return answer({"service": SERVICE, "version": VERSION, "status": "operational", "tickets": tickets})


@blueprint.post("/ticket")
@blueprint.arguments(schemas.TicketCreateRequest())
@blueprint.response(201, schemas.TicketSchema)
@requires("write")
@creating(shared=True)
def create_ticket(connection: Any, draft: dict[str, Any]) -> Response:
    """Create a ticket. Unsafe parameters are accepted here and refused at execution."""
    draft["timeout_seconds"] = draft["timeout_seconds"] or schemas.DEFAULT_TIMEOUT_SECONDS
    row = operations.create_ticket(connection, draft, g.caller)
    g.subject = (TICKET.kind, row["id"])
    made = answer(answers.ticket(row), 201)
    made.headers["Location"] = f"/ticket/{row['id']}"
    return made


@blueprint.get("/ticket/<ticket_id>")
@blueprint.response(200, schemas.TicketSchema)
@requires("read")
def get_ticket(ticket_id: str) -> Response:
    """One ticket."""
    with statement() as connection:
        return answer(answers.ticket(queries.get_ticket(connection, known_form(ticket_id))))


@blueprint.post("/execute")
@blueprint.arguments(schemas.ExecuteRequest())
@blueprint.response(200, schemas.ExecuteResponse)
@blueprint.alt_response(202, schema=schemas.ExecuteResponse, description="Accepted; the outcome is not known yet")
@blueprint.alt_response(404, success=False)
@blueprint.alt_response(409, success=False)
@blueprint.doc(parameters=[PREFER])
@requires("write")
@creating
def execute_ticket(connection: Any, wanted: dict[str, Any]) -> Response:
    """Carry a ticket out and answer with its outcome; `Prefer: respond-async` answers at once with 202."""
    ticket_id = known_form(wanted["ticket_id"])
    row = operations.accept_execution(
        connection,
        ticket_id,
        expires_in_seconds=wanted["expires_in_seconds"],
        force=wanted["force"],
        caller=g.caller,
        sends=True,
    )
    after_commit(functools.partial(sending.send_or_hint, QUEUE, row["sent"]))
    accepted = answer(answers.accepted(row), 202)
    accepted.headers["Location"] = f"/ticket/{ticket_id}"
    if prefers_async():
        accepted.headers["Preference-Applied"] = "respond-async"
        return awaiting(accepted, None)
    longest = wanted["expires_in_seconds"] + row["timeout_seconds"]
    return awaiting(accepted, (ticket_id, row["execution"], longest))


def prefers_async() -> bool:
    """Whether the caller's preferences (RFC 7240) name respond-async; tokens know no case."""
    wishes = parse_list_header(request.headers.get("Prefer", ""))
    return any(wish.partition(";")[0].strip().lower() == "respond-async" for wish in wishes)


@blueprint.get("/tickets")
@blueprint.arguments(schemas.TicketQuery(), location="query")
@blueprint.response(200, schemas.TicketPage)
@requires("read")
def list_tickets(wanted: dict[str, Any]) -> Response:
    """Tickets, newest first, by offset or by cursor."""
    question = {name: wanted[name] for name in COLUMNS if name in wanted}
    if "cursor" in wanted and wanted["offset"]:
        why = "give cursor or offset, not both"
        raise Invalid(f"/offset: {why}", errors=[{"pointer": "/offset", "detail": why}])
    after = paging.read_cursor(question, wanted["cursor"]) if "cursor" in wanted else None
    filters = {COLUMNS[name]: value for name, value in question.items()}
    limit = wanted["limit"]
    with statement() as connection:
        rows = queries.list_tickets(connection, filters, limit=limit + 1, offset=wanted["offset"], after=after)
        total, estimated = count(connection, filters)
    more = len(rows) > limit
    rows = rows[:limit]
    following = paging.write_cursor(question, (rows[-1]["created_at"], rows[-1]["id"])) if more else None
    return answer(
        {
            "total": total,
            "total_is_estimate": estimated,
            "limit": limit,
            "offset": wanted["offset"],
            "tickets": [answers.ticket(row) for row in rows],
            "next_cursor": following,
        }
    )


def count(connection: Any, filters: dict[str, str]) -> tuple[int, bool]:
    """How many tickets match: from the tallies where they know it, else counted up to the cap."""
    if set(filters) <= {"state"}:
        counts = count_states(connection, TICKET.kind)
        return (counts.get(filters["state"], 0) if filters else sum(counts.values())), False
    return queries.count_tickets(connection, filters)


@blueprint.post("/ticket/<ticket_id>/cancel")
@blueprint.response(200, schemas.TicketSchema)
@blueprint.alt_response(409, success=False)
@requires("write")
def cancel_ticket(ticket_id: str) -> Response:
    """Cancel a ticket that has not ended. A robot that is moving under it is stopped."""
    with statement() as connection:
        row = operations.cancel_ticket(connection, known_form(ticket_id), g.caller)
    hints.ended(ticket_id)
    return answer(answers.ticket(row))


@blueprint.get("/telemetry/metrics")
@blueprint.response(200, schemas.Metrics)
@requires("read")
def get_metrics() -> Response:
    """The last metrics, how many there were, and latency by command and status."""
    with statement() as connection:
        return answer(telemetry.list_metrics(connection))


@blueprint.get("/telemetry/events")
@blueprint.response(200, schemas.Events)
@requires("read")
def get_events() -> Response:
    """The last events, and how many there were."""
    with statement() as connection:
        return answer(telemetry.list_events(connection))
