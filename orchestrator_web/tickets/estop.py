"""The e-stop over HTTP. It asks Redis nothing, waits for no other request, and may be sent any number of times.

Its requests run in threads and on connections kept for them (`bridge`, `models/kernel/session.py`). Engaging is
not an act that an Idempotency-Key guards: it is safe to repeat, and must commit before anything else is done.
"""

from __future__ import annotations

import logging
from typing import Any

from flask import Response, g
from flask_smorest import Blueprint
from marshmallow import RAISE, Schema, fields, validate

from models.kernel.errors import Conflict
from models.kernel.latch import KIND, LONGEST_REASON, list_latches
from models.kernel.session import statement
from models.tickets import estop
from models.tickets.estop import Swept
from models.tickets.tables import EVERYTHING
from orchestrator_web.auth import requires
from orchestrator_web.fields import BoundedList
from orchestrator_web.parsing import StrictParser
from orchestrator_web.tickets.answers import moment
from orchestrator_web.tickets.routes import answer
from orchestrator_web.tickets.schemas import TARGET_NAME

log = logging.getLogger(__name__)

# `all`, or the name of a robot: none may be called ALL, so that nobody who means every robot stops none.
SCOPE = validate.Regexp(rf"^(?:{EVERYTHING}(?![\s\S])|{TARGET_NAME})", error="must be all, or the name of a target")
REASON = (validate.Length(1, LONGEST_REASON), validate.Regexp(r"[\s\S]*\S", error="must say something"))

blueprint = Blueprint("estop", __name__, description="Stops robots, and keeps them stopped")
blueprint.ARGUMENTS_PARSER = StrictParser()


class EngageRequest(Schema):
    """What to stop, and why."""

    class Meta:
        unknown = RAISE

    scope = fields.String(required=True, validate=SCOPE, metadata={"description": "all, or one target"})
    reason = fields.String(required=True, validate=REASON)


class ReleaseRequest(Schema):
    """What may move again, and why."""

    class Meta:
        unknown = RAISE

    scope = fields.String(load_default=EVERYTHING, validate=SCOPE, metadata={"description": "all, or one target"})
    reason = fields.String(required=True, validate=REASON)


class Latch(Schema):
    """An e-stop that is engaged."""

    scope = fields.String(required=True)
    engaged_at = fields.String(required=True, metadata={"format": "date-time"})
    engaged_by = fields.String(required=True)
    reason = fields.String(required=True)


class EstopSchema(Schema):
    """Which e-stops are engaged."""

    engaged = fields.Boolean(required=True, metadata={"description": "whether any is"})
    latches = BoundedList(fields.Nested(Latch), required=True, metadata={"description": "at most 1,000"})


class EstopActSchema(EstopSchema):
    """Which e-stops are engaged after an act, and what the act ended."""

    changed = fields.Boolean(required=True, metadata={"description": "false when it was so before"})
    stopped = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "tickets under which robots moved since it was engaged, and were stopped; the last"},
    )
    revoked = fields.Integer(required=True, metadata={"description": "how many tickets this request ended"})
    left = fields.Integer(required=True, metadata={"description": "how many are still being ended, as far as counted"})


def shown(row: Any) -> dict[str, Any]:
    keys = ("scope", "engaged_by", "reason")
    return {**{key: row[key] for key in keys}, "engaged_at": moment(row["engaged_at"])}


def state_of(connection: Any) -> dict[str, Any]:
    found = [shown(row) for row in list_latches(connection)]
    return {"engaged": bool(found), "latches": found}


def after(connection: Any, changed: bool, swept: Swept, stopped: Any = ()) -> Response:
    facts = {"changed": changed, "stopped": list(stopped), "revoked": swept.revoked, "left": swept.left}
    return answer(state_of(connection) | facts)


@blueprint.get("/estop")
@blueprint.response(200, EstopSchema)
@requires("read")
def get_estop() -> Response:
    """Which e-stops are engaged."""
    with statement() as connection:
        return answer(state_of(connection))


@blueprint.post("/estop")
@blueprint.arguments(EngageRequest())
@blueprint.response(200, EstopActSchema)
@requires("write")
def engage_estop(wanted: dict[str, Any]) -> Response:
    """Stop every robot, or one, and keep it stopped. What moved or was queued fails as `emergency_stop`."""
    scope, reason = wanted["scope"], wanted["reason"]
    g.subject = (KIND, scope)
    with statement() as connection:
        changed = estop.engage_estop(connection, scope, reason, g.caller)
    log.warning("e-stop engaged", extra={"scope": scope, "reason": reason, "changed": changed})
    swept = sweep()
    with statement() as connection:
        return after(connection, changed, swept, estop.list_stopped_tickets(connection, scope))


def sweep() -> Swept:
    """End what goes on. Where a row is held by somebody the guardian goes on: the latch is engaged already."""
    try:
        with statement() as connection:
            return estop.sweep_tickets(connection, g.caller.name, correlation_id=g.caller.correlation_id)
    except Conflict as error:
        log.warning("the guardian completes the sweep", extra={"error": error.message})
        return Swept(left=1)


@blueprint.delete("/estop")
@blueprint.arguments(ReleaseRequest())
@blueprint.response(200, EstopActSchema)
@blueprint.alt_response(409, success=False)
@requires("admin")
def release_estop(wanted: dict[str, Any]) -> Response:
    """Let motions begin again that are ordered from now on. Nothing that was stopped goes on by itself."""
    scope = wanted["scope"]
    g.subject = (KIND, scope)
    with statement() as connection:
        changed, swept = estop.release_estop(connection, scope, wanted["reason"], g.caller)
        return after(connection, changed, swept)
