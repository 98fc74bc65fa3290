"""The engine's outputs as they come: server-sent events and WebSocket messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response
from flask_smorest import Blueprint

from models.engine.canonical import canonical
from models.engine.events import PUBLIC_TOPICS
from models.engine.states import RUN
from models.kernel.feed import Selection
from orchestrator_web.auth import requires
from orchestrator_web.cursors import write_event_cursor
from orchestrator_web.engine import schemas
from orchestrator_web.feed import Event
from orchestrator_web.openings import Resumption, find_place, open_stream, open_websocket
from orchestrator_web.parsing import StrictParser

STREAM = "engine"
FACTS = ("symbol", "event_type")
TOPICS = frozenset({"engine_run_started", "engine_run_completed", "engine_run_failed", "hysteresis_decision_published"})

blueprint = Blueprint("engine events", __name__, description="What comes of engine runs, as it comes")
blueprint.ARGUMENTS_PARSER = StrictParser()


@blueprint.get("/engine/outputs/events")
@blueprint.arguments(schemas.StreamQuery(), location="query")
@blueprint.arguments(Resumption(), location="headers")
@blueprint.response(200, schemas.OrchestratorEvent, content_type="text/event-stream")
@blueprint.alt_response(410, success=False)
@requires("read")
def stream_outputs(wanted: dict[str, Any], resumed: dict[str, str]) -> Response:
    """Outputs as server-sent events; each `data` is one OrchestratorEvent, byte for byte as it was recorded.

    Reconnect with the last `id` and nothing is lost or doubled; `GET /engine/outputs` takes the same cursors. What
    the ledger keeps no longer (410) is still there.
    """
    return open_stream(STREAM, selection(wanted), find_place(STREAM, wanted, resumed))


@blueprint.get("/ws/engine")
@blueprint.arguments(schemas.StreamQuery(), location="query")
@blueprint.arguments(Resumption(), location="headers")
@blueprint.alt_response(101, schema=schemas.OutputMessage, description="The same events, each a WebSocket message")
@blueprint.alt_response(404, success=False)
@blueprint.alt_response(410, success=False)
@blueprint.alt_response(426, success=False)
@requires("read")
def connect_outputs(wanted: dict[str, Any], resumed: dict[str, str]) -> Response:
    """The same events over a WebSocket: each message has a `type`, the `id` to resume from, and the event as `data`."""
    return open_websocket(STREAM, selection(wanted), find_place(STREAM, wanted, resumed))


def selection(wanted: Mapping[str, Any]) -> Selection:
    """The outputs that a query asks for."""
    facts = tuple((name, wanted[name]) for name in FACTS if name in wanted)
    return Selection(RUN.kind, frozenset(PUBLIC_TOPICS), wanted.get("run_id"), facts)


def render_output(row: Mapping[str, Any]) -> Event | None:
    """A row of the ledger as the public sees it: the canonical event; None when it is not for the public."""
    if row["subject_kind"] != RUN.kind or row["topic"] not in PUBLIC_TOPICS:
        return None
    cursor = write_event_cursor(STREAM, row["seq"])
    event, kind = canonical(row["body"]), row["body"]["event_type"]
    sse = f"id: {cursor}\nevent: {kind}\ndata: {event}\n\n".encode()
    text = f'{{"type":"{kind}","id":"{cursor}","seq":{row["seq"]},"data":{event}}}'
    return Event(row["seq"], row, sse, text)
