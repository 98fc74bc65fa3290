"""Before a stream begins: from where on, for whom, and over what.

A view checks all of it, so that a stream is refused as any request is: with a problem
and a status. What it allows it leaves in the request's environ, for the event loop.
"""

from __future__ import annotations

import functools
from urllib.parse import urlsplit

from flask import Response, g, request

from models.kernel.errors import Forbidden
from models.kernel.feed import Selection, check_kept
from models.kernel.horizon import get_last_seq
from models.kernel.retention import get_earliest_seq
from models.kernel.session import statement
from models.kernel.settings import settings
from orchestrator_web import auth, problems
from orchestrator_web.bridge import HANDOVER, HANDSHAKE
from orchestrator_web.cursors import read_event_cursor, refused
from orchestrator_web.streams import Opening

EARLIEST = "earliest"
LAST_EVENT_ID = {
    "in": "header",
    "name": "Last-Event-ID",
    "schema": {"type": "string"},
    "description": "the id of the last event that was read; it goes before `after`",
}


def open_stream(stream: str, selection: Selection, after: str | None) -> Response:
    """Allow a stream of server-sent events. Raises Invalid, CursorExpired."""
    hand_over(stream, selection, after)
    opened = Response(status=200, content_type="text/event-stream")
    opened.headers["X-Accel-Buffering"] = "no"  # else nginx would hold events back
    return opened


def open_websocket(stream: str, selection: Selection, after: str | None) -> Response:
    """Allow a WebSocket. Raises as `open_stream` does, and Forbidden for a page of another origin."""
    if not request.environ.get(HANDSHAKE):
        plain = problems.problem(426, "upgrade_required", "This is a WebSocket: connect with a handshake (RFC 6455)")
        plain.headers["Upgrade"] = "websocket"
        return plain
    origin = request.headers.get("Origin")
    # the handshake carries no credential that a page could borrow, but without any the loopback may be open to all
    if origin and urlsplit(origin).netloc != request.host and origin not in settings().cors_origins:
        raise Forbidden("Pages of this origin may not connect", code="origin_not_allowed")
    hand_over(stream, selection, after)
    return Response(status=200)


def hand_over(stream: str, selection: Selection, after: str | None) -> None:
    place = find_place(stream, after)
    if request.method != "GET":  # HEAD asks for the headers alone
        return
    credential = auth.offered_credential()
    request.environ[HANDOVER] = Opening(
        stream=stream,
        selection=selection,
        after=place,
        credential=credential,
        check=functools.partial(check_credential, credential),
        correlation_id=g.correlation_id,
        path=request.path,
    )


def find_place(stream: str, after: str | None) -> int | None:
    """The seq behind which the stream begins; None means now. Raises Invalid, CursorExpired."""
    last = request.headers.get("Last-Event-ID")
    if not last and after is None:
        return None
    with statement() as connection:
        if not last and after == EARLIEST:
            return get_earliest_seq(connection) - 1
        pointer = "/Last-Event-ID" if last else "/after"
        place = read_event_cursor(stream, last or str(after), pointer)
        check_kept(connection, place)
        if place > get_last_seq(connection):
            raise refused(pointer)  # of a ledger that was set back
    return place


def check_credential(credential: str | None) -> None:
    """Raises Unauthenticated or Forbidden when a credential no longer lets its bearer read."""
    if credential is None:
        return
    if not auth.client_of(credential).permissions & {"read", "admin"}:
        raise Forbidden("This needs the permission read", code="permission_missing")
