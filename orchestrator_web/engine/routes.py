"""The engine's endpoints: how it does, what it shall do, its configuration, its runs and their outputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from flask import Response, g
from flask_smorest import Blueprint

from models.engine import control, publications, queries, workers
from models.engine.config import read_config
from models.engine.states import ENGINE, RUN
from models.kernel.errors import Invalid, InvalidSettings, NotFound
from models.kernel.horizon import get_last_seq
from models.kernel.ledger import list_history
from models.kernel.session import statement, transaction
from models.kernel.tallies import count_states
from orchestrator_web import paging
from orchestrator_web.auth import requires
from orchestrator_web.cursors import read_event_cursor, refused, write_event_cursor
from orchestrator_web.engine import answers, schemas
from orchestrator_web.engine.streams import STREAM
from orchestrator_web.json import dumps
from orchestrator_web.openings import EARLIEST
from orchestrator_web.parsing import StrictParser, check_query

FILTERS = {"symbol": "symbol", "status": "state", "mode": "engine_mode", "from_": "from", "to": "to"}
VERSION = re.compile(r"[1-9][0-9]{0,8}")
RUN_ID = re.compile(r"[0-9a-f]{1,64}")

blueprint = Blueprint("engine", __name__, description="Deterministic engine runs over an append-only log of events")
blueprint.ARGUMENTS_PARSER = StrictParser()
blueprint.before_request(check_query)


def answer(body: Any, status: int = 200) -> Response:
    text = body if isinstance(body, bytes) else dumps(body)
    return Response(text, status=status, content_type="application/json")


def present_status() -> dict[str, Any]:
    """How the engine does at this moment."""
    with statement() as connection:
        return answers.read_status(connection)


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
    return act(control.start_engine)


@blueprint.post("/engine/drain")
@blueprint.response(200, schemas.EngineStatus)
@blueprint.alt_response(409, success=False)
@requires("admin")
def drain_engine() -> Response:
    """Plan nothing more; runs under way finish, events are still taken in. From running; else 409."""
    return act(control.drain_engine)


@blueprint.post("/engine/stop")
@blueprint.response(200, schemas.EngineStatus)
@blueprint.alt_response(409, success=False)
@requires("admin")
def stop_engine() -> Response:
    """Plan nothing more and refuse events; planned runs finish. From any other state."""
    return act(control.stop_engine)


@blueprint.post("/engine/reset")
@blueprint.response(200, schemas.EngineStatus)
@blueprint.alt_response(409, success=False)
@requires("admin")
def reset_engine() -> Response:
    """Make a stopped engine one that can be started again. From stopped; else 409."""
    return act(control.reset_engine)


@blueprint.get("/engine/config")
@blueprint.response(200, schemas.EngineConfig)
@blueprint.alt_response(404, success=False)
@requires("read")
def get_config() -> Response:
    """The configuration under which runs are planned now."""
    with statement() as connection:
        return answer(answers.config(queries.get_config_row(connection)))


@blueprint.get("/engine/config/<version>")
@blueprint.response(200, schemas.EngineConfig)
@requires("read")
def get_config_version(version: str) -> Response:
    """A configuration that was accepted once."""
    if not VERSION.fullmatch(version):
        raise NotFound("There is no such configuration", code="config_not_found")
    with statement() as connection:
        return answer(answers.config(queries.get_config_row(connection, int(version))))


@blueprint.post("/engine/config")
@blueprint.arguments(schemas.ConfigDraft())
@blueprint.response(200, schemas.EngineConfig)
@requires("admin")
def accept_config(body: dict[str, Any]) -> Response:
    """Plan by another configuration from now on; one that means the same as an accepted one keeps its version.

    Options in `engine.hysteresis` that no worker's engine takes are refused.
    """
    g.subject = (ENGINE.kind, control.ENGINE_ID)
    with transaction() as connection:
        try:
            workers.check_options(connection, read_config(body).engine.hysteresis)
            version = control.accept_config(connection, body, g.caller.name)
        except InvalidSettings as error:
            raise of_lines(error.message) from None
        return answer(answers.config(queries.get_config_row(connection, version)))


def of_lines(message: str) -> Invalid:
    """What is wrong with a configuration: each line names a key by its path."""
    found = [line.partition(": ") for line in message.splitlines()]
    errors = [{"pointer": "/" + re.sub(r"[.\[]", "/", path).replace("]", ""), "detail": why} for path, _, why in found]
    return Invalid(message.replace("\n", "; "), errors=errors, code="config_invalid")


@blueprint.get("/engine/runs")
@blueprint.arguments(schemas.RunQuery(), location="query")
@blueprint.response(200, schemas.RunPage)
@requires("read")
def list_runs(wanted: dict[str, Any]) -> Response:
    """Engine runs, the one planned last first."""
    question = {name: wanted[name] for name in FILTERS if name in wanted}
    before = int(paging.read_cursor(question, wanted["cursor"])[1]) if "cursor" in wanted else None
    filters = {FILTERS[name]: value for name, value in question.items()}
    limit = wanted["limit"]
    with statement() as connection:
        rows = queries.list_runs(connection, filters, limit=limit + 1, before=before)
        total, estimated = count(connection, filters)
    last = rows[limit - 1] if len(rows) > limit else None
    following = last and paging.write_cursor(question, (last["created_at"], str(last["number"])))
    page = {"total": total, "total_is_estimate": estimated, "limit": limit, "next_cursor": following}
    return answer({**page, "runs": [answers.run(row) for row in rows[:limit]]})


def count(connection: Any, filters: dict[str, Any]) -> tuple[int, bool]:
    """How many runs match: from the tallies where they know it, else counted up to the cap."""
    if set(filters) <= {"state"}:
        counts = count_states(connection, RUN.kind)
        return (counts.get(filters["state"], 0) if filters else sum(counts.values())), False
    return queries.count_runs(connection, filters)


@blueprint.get("/engine/runs/<run_id>")
@blueprint.response(200, schemas.RunWhole)
@blueprint.alt_response(422, success=False)
@requires("read")
def get_run(run_id: str) -> Response:
    """One run: its cut, its attempts and timings, what happened to it, and what came of it.

    The first digits of its id will do, while no other run's begins with them.
    """
    if not RUN_ID.fullmatch(run_id):
        raise NotFound("There is no such run", code="run_not_found")
    with statement() as connection:
        row = queries.get_run(connection, run_id)
        history = list_history(connection, RUN.kind, row["id"])
        outputs = publications.list_outputs_of_run(connection, row["id"])
    return answer(answers.whole_run(row, history, outputs))


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
