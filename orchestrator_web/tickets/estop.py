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
from orchestrator_web.fields import BoundedList, StrictBoolean
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
    force = StrictBoolean(
        load_default=False, metadata={"description": "also while robots have not taken their stop and may be moving"}
    )


class NoQuery(Schema):
    """No parameters: a scope in the query would be taken for nothing, and everything be released."""


class Latch(Schema):
    """An e-stop that is engaged."""

    scope = fields.String(required=True)
    engaged_at = fields.String(required=True, metadata={"format": "date-time"})
    engaged_by = fields.String(required=True)
    reason = fields.String(required=True)


class Stops(Schema):
    """How many stops robots have been ordered."""

    owed = fields.Integer(required=True, metadata={"description": "not taken: these robots may be moving"})
    taken = fields.Integer(required=True, metadata={"description": "taken since the e-stop was engaged; of the last"})


class OwedStop(Schema):
    """A stop that a robot was ordered and has not taken."""

    target = fields.String(required=True)
    ticket_id = fields.String(required=True)
    ordered_at = fields.String(required=True, metadata={"format": "date-time"})
    tries = fields.Integer(required=True)
    error = fields.String(required=True, allow_none=True, metadata={"description": "of the last try"})


class EstopSchema(Schema):
    """Which e-stops are engaged, and which robots have not taken their stop."""

    engaged = fields.Boolean(required=True, metadata={"description": "whether any is"})
    latches = BoundedList(fields.Nested(Latch), required=True, metadata={"description": "at most 1,000"})
    stops = fields.Nested(Stops, required=True, metadata={"description": "an act's: of its scope; else of every robot"})
    owed_stops = BoundedList(fields.Nested(OwedStop), required=True, metadata={"description": "the first 100"})


class EstopActSchema(EstopSchema):
    """Which e-stops are engaged after an act, and what the act ended."""

    changed = fields.Boolean(required=True, metadata={"description": "false when it was so before"})
    stopped = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "tickets under which robots moved since it was engaged, and were ordered a stop"},
    )
    revoked = fields.Integer(required=True, metadata={"description": "how many tickets this request ended"})
    left = fields.Integer(required=True, metadata={"description": "how many are still being ended, as far as counted"})


def shown(row: Any) -> dict[str, Any]:
    keys = ("scope", "engaged_by", "reason")
    return {**{key: row[key] for key in keys}, "engaged_at": moment(row["engaged_at"])}


def state_of(connection: Any, scope: str = EVERYTHING) -> dict[str, Any]:
    found = [shown(row) for row in list_latches(connection)]
    delivery = estop.get_delivery(connection, scope)
    keys = ("target", "ticket_id", "tries", "error")
    owed = [{key: row[key] for key in keys} | {"ordered_at": moment(row["ordered_at"])} for row in delivery.untaken]
    stops = {"owed": delivery.owed, "taken": delivery.taken}
    return {"engaged": bool(found), "latches": found, "stops": stops, "owed_stops": owed}


def after(connection: Any, scope: str, changed: bool, swept: Swept, stopped: Any = ()) -> Response:
    facts = {"changed": changed, "stopped": list(stopped), "revoked": swept.revoked, "left": swept.left}
    return answer(state_of(connection, scope) | facts)


@blueprint.get("/estop")
@blueprint.arguments(NoQuery(), location="query")
@blueprint.response(200, EstopSchema)
@requires("read")
def get_estop(_query: Any) -> Response:
    """Which e-stops are engaged, and which robots have not taken their stop."""
    with statement() as connection:
        return answer(state_of(connection))


@blueprint.post("/estop")
@blueprint.arguments(NoQuery(), location="query")
@blueprint.arguments(EngageRequest())
@blueprint.response(200, EstopActSchema)
@requires("write")
def engage_estop(_query: Any, wanted: dict[str, Any]) -> Response:
    """Stop every robot, or one, and keep it stopped. What moved or was queued fails as `emergency_stop`.

    `stopped` were ordered a stop; `owed_stops` names the robots that have not taken it yet.
    """
    scope, reason = wanted["scope"], wanted["reason"]
    g.subject = (KIND, scope)
    with statement() as connection:
        changed = estop.engage_estop(connection, scope, reason, g.caller)
    log.warning("e-stop engaged", extra={"scope": scope, "reason": reason, "changed": changed})
    swept = sweep(changed)
    with statement() as connection:
        return after(connection, scope, changed, swept, estop.list_stopped_tickets(connection, scope))


def sweep(first: bool) -> Swept:
    """End what moves, unless another request has. All else is the guardian's, and no reason to hold a thread."""
    states = estop.MOVING_STATES if first else ()
    try:
        with statement() as connection:
            return estop.sweep_tickets(connection, g.caller.name, correlation_id=g.caller.correlation_id, states=states)
    except Conflict as error:
        log.warning("the guardian completes the sweep", extra={"error": error.message})
        return Swept(left=1)


@blueprint.delete("/estop")
@blueprint.arguments(NoQuery(), location="query")
@blueprint.arguments(ReleaseRequest())
@blueprint.response(200, EstopActSchema)
@blueprint.alt_response(409, success=False)
@requires("admin")
def release_estop(_query: Any, wanted: dict[str, Any]) -> Response:
    """Let motions begin again that are ordered from now on. Nothing that was stopped goes on by itself.

    Refused while a robot has not taken its stop (409 `estop_stops_owed`), unless `force` is true.
    """
    scope, force = wanted["scope"], wanted["force"]
    g.subject = (KIND, scope)
    with statement() as connection:
        changed, swept = estop.release_estop(connection, scope, wanted["reason"], g.caller, force=force)
        log.warning("e-stop released", extra={"scope": scope, "changed": changed, "force": force})
        return after(connection, scope, changed, swept)
