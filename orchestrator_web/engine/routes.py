"""The engine's endpoints: how it does, what it shall do, its configuration, its runs and their outputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from flask import Response, g
from flask_smorest import Blueprint

from models.engine import publications
from models.engine.states import ENGINE, RUN
from models.kernel.horizon import get_last_seq
from models.kernel.session import statement, transaction
from models.kernel.settings import settings
from models.kernel.tallies import count_states
from orchestrator_web.auth import requires
from orchestrator_web.cursors import read_event_cursor, refused, write_event_cursor
from orchestrator_web.engine import answers, schemas
from orchestrator_web.engine.streams import STREAM
from orchestrator_web.json import dumps
from orchestrator_web.openings import EARLIEST
from orchestrator_web.parsing import StrictParser

RUN_ID = re.compile(r"[0-9a-f]{64}")

blueprint = Blueprint("engine", __name__, description="Deterministic engine runs over an append-only log of events")
blueprint.ARGUMENTS_PARSER = StrictParser()


def answer(body: Any, status: int = 200) -> Response:
    text = body if isinstance(body, bytes) else dumps(body)
    return Response(text, status=status, content_type="application/json")


def present_status() -> dict[str, Any]:
    """How the engine does at this moment."""
    with statement() as connection:
        control = publications.get_control(connection)
        buffer = publications.get_buffer(connection)
        publish = publications.get_publishing(connection)
        runs = count_states(connection, RUN.kind)
    return answers.status(control, buffer, runs, publish, settings().engine_module)


@blueprint.get("/engine/status")
@blueprint.response(200, schemas.EngineStatus)
@requires("read")
def get_status() -> Response:
    """How the engine does: its state, what is paused and why, buffer, cadence, runs, publishing."""
    return answer(present_status())


def act(change: Callable[[Any, Any], Any]) -> Response:
    """Change the engine's state and tell the ledger of it, in one transaction; answers how it does then."""
    g.subject = (ENGINE.kind, "engine")
    with transaction() as connection:
        change(connection, g.caller)
    return answer(present_status())


@blueprint.post("/engine/start")
@blueprint.response(200, schemas.EngineStatus)
@blueprint.alt_response(409, success=False)
@requires("admin")
def start_engine() -> Response:
    """Plan runs from now on. From init or drained; else 409 with the present state."""
    from models.engine import control

    return act(control.start_engine)


@blueprint.post("/engine/drain")
@blueprint.response(200, schemas.EngineStatus)
@blueprint.alt_response(409, success=False)
@requires("admin")
def drain_engine() -> Response:
    """Plan nothing more; runs under way finish, events are still taken in. From running; else 409."""
    from models.engine import control

    return act(control.drain_engine)


@blueprint.post("/engine/stop")
@blueprint.response(200, schemas.EngineStatus)
@blueprint.alt_response(409, success=False)
@requires("admin")
def stop_engine() -> Response:
    """Plan nothing more and refuse events; planned runs finish. From any other state."""
    from models.engine import control

    return act(control.stop_engine)


@blueprint.post("/engine/reset")
@blueprint.response(200, schemas.EngineStatus)
@blueprint.alt_response(409, success=False)
@requires("admin")
def reset_engine() -> Response:
    """Make a stopped engine one that can be started again. From stopped; else 409."""
    from models.engine import control

    return act(control.reset_engine)


@blueprint.get("/engine/outputs")
@blueprint.arguments(schemas.OutputQuery(), location="query")
@blueprint.response(200, schemas.OutputPage)
@requires("read")
def list_outputs(wanted: dict[str, Any]) -> Response:
    """What came of runs, oldest first, each event byte for byte as it was recorded.

    Go on from `next`: only what can be preceded by nothing new is answered, so that no event is ever passed by. The
    event streams take the same cursors.
    """
    filters = {name: wanted[name] for name in ("symbol", "event_type", "run_id") if name in wanted}
    with statement() as connection:
        after = find_after(connection, wanted.get("after"))
        upto = publications.find_decided(connection)
        rows, reached = publications.list_outputs(connection, filters, after=after, upto=upto, limit=wanted["limit"])
    body = dumps({"next": write_event_cursor(STREAM, reached), "has_more": reached < upto})
    return answer(answers.with_events(body, "events", rows))


def find_after(connection: Any, cursor: str | None) -> int:
    """The seq behind which a page begins. Raises Invalid."""
    if cursor is None or cursor == EARLIEST:
        return 0
    after = read_event_cursor(STREAM, cursor, "/after")
    if after > get_last_seq(connection):
        raise refused("/after")  # of a ledger that was set back
    return after
