"""Before a stream begins: from where on, for whom, and over what.

A view checks all of it, so that a stream is refused as any request is: with a problem
and a status. What it allows it leaves in the request's environ, for the event loop.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from urllib.parse import urlsplit

from flask import Response, g, request
from marshmallow import EXCLUDE, Schema, fields

from models.kernel.errors import Forbidden, NotFound
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


class Resumption(Schema):
    """How a client that reconnects says how far it has come."""

    class Meta:
        unknown = EXCLUDE

    last_event_id = fields.String(
        data_key="Last-Event-ID",
        metadata={"description": "`id` of the last event that was read; it goes before `after`"},
    )


def open_stream(stream: str, selection: Selection, place: int | None) -> Response:
    """Allow a stream of server-sent events from a place on. Raises NotFound for a WebSocket's handshake."""
    if request.environ.get(HANDSHAKE):  # which would pass by the look at its origin
        raise NotFound("There is no WebSocket here")
    hand_over(stream, selection, place)
    allowed = Response(status=200, content_type="text/event-stream")
    allowed.headers["X-Accel-Buffering"] = "no"  # else nginx would hold events back
    return allowed


def open_websocket(stream: str, selection: Selection, place: int | None) -> Response:
    """Allow a WebSocket. Raises Forbidden for a page of another origin."""
    if not request.environ.get(HANDSHAKE):
        plain = problems.problem(426, "upgrade_required", "This is a WebSocket: connect with a handshake (RFC 6455)")
        plain.headers["Upgrade"] = "websocket"
        return plain
    origin = request.headers.get("Origin")
    # A page can borrow no credential, but where ANONYMOUS_PERMISSIONS are set it needs none, and no CORS holds it back.
    if origin and urlsplit(origin).netloc != request.host and origin not in settings().cors_origins:
        raise Forbidden("Pages of this origin may not connect", code="origin_not_allowed")
    hand_over(stream, selection, place)
    allowed = Response(status=200)
    # a browser gives up unless one of its protocols is chosen
    if auth.credential_of_handshake(request.environ) is not None:
        allowed.headers["Sec-WebSocket-Protocol"] = auth.SUBPROTOCOL
    return allowed


def hand_over(stream: str, selection: Selection, place: int | None) -> None:
    if request.method != "GET":  # HEAD asks for the headers alone
        return
    credential = auth.offered_credential()
    request.environ[HANDOVER] = Opening(
        stream=stream,
        selection=selection,
        after=place,
        client=g.caller.name,
        credential=credential,
        check=functools.partial(check_credential, credential),
        correlation_id=g.correlation_id,
        path=request.path,
    )


def find_place(stream: str, query: Mapping[str, str], headers: Mapping[str, str]) -> int | None:
    """The seq behind which a stream begins; None means now. Raises Invalid, CursorExpired."""
    pointer = "/Last-Event-ID" if headers.get("last_event_id") else "/after"
    cursor = headers.get("last_event_id") or query.get("after")
    if cursor is None:
        return None
    with statement() as connection:
        if pointer == "/after" and cursor == EARLIEST:
            return get_earliest_seq(connection) - 1
        place = read_event_cursor(stream, cursor, pointer)
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
