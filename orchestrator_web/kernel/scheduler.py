"""Schedules, looked at and managed: what happens every so often, when it last did and when it will again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from flask import Response, g
from flask_smorest import Blueprint
from marshmallow import Schema, fields

from models.kernel import schedules
from models.kernel.session import statement, transaction
from orchestrator_web.auth import requires
from orchestrator_web.json import dumps
from orchestrator_web.parsing import StrictParser

DATE_TIME = {"format": "date-time"}

blueprint = Blueprint("scheduler", __name__, description="What happens every so often")
blueprint.ARGUMENTS_PARSER = StrictParser()


class ScheduledJob(Schema):
    """One schedule."""

    name = fields.String(required=True)
    every_seconds = fields.Float(required=True)
    paused = fields.Boolean(required=True)
    running = fields.Boolean(required=True)
    last_started_at = fields.String(required=True, allow_none=True, metadata=DATE_TIME)
    last_finished_at = fields.String(required=True, allow_none=True, metadata=DATE_TIME)
    last_duration_ms = fields.Float(required=True, allow_none=True)
    last_error = fields.String(
        required=True, allow_none=True, metadata={"description": "what went wrong in the last run that ended"}
    )
    next_at = fields.String(
        required=True, allow_none=True, metadata={**DATE_TIME, "description": "null while it is paused"}
    )
    runs = fields.Integer(required=True, metadata={"description": "runs that were begun"})
    misses = fields.Integer(required=True, metadata={"description": "due times that passed without a run"})


class ScheduledJobs(Schema):
    jobs = fields.List(fields.Nested(ScheduledJob), required=True)


def moment(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()


def shown(row: dict[str, Any]) -> dict[str, Any]:
    times = {name: moment(row[name]) for name in ("last_started_at", "last_finished_at", "next_at")}
    if row["paused"]:
        times["next_at"] = None
    return {name: times.get(name, row.get(name)) for name in ScheduledJob._declared_fields}


def answer(body: Any) -> Response:
    return Response(dumps(body), content_type="application/json")


def act(change: Callable[[Any], dict[str, Any]], name: str) -> Response:
    """Change a schedule and tell the ledger of it, in one transaction."""
    g.subject = (schedules.KIND, name[:64].replace("\x00", ""))
    with transaction() as connection:
        return answer(shown(change(connection)))


@blueprint.get("/scheduler/jobs")
@blueprint.response(200, ScheduledJobs)
@requires("read")
def list_jobs() -> Response:
    """All schedules, by name."""
    with statement() as connection:
        return answer({"jobs": [shown(row) for row in schedules.list_schedules(connection)]})


@blueprint.get("/scheduler/jobs/<name>")
@blueprint.response(200, ScheduledJob)
@blueprint.alt_response(404, success=False)
@requires("read")
def get_job(name: str) -> Response:
    """One schedule."""
    with statement() as connection:
        return answer(shown(schedules.get_schedule(connection, name)))


@blueprint.post("/scheduler/jobs/<name>/pause")
@blueprint.response(200, ScheduledJob)
@blueprint.alt_response(404, success=False)
@requires("admin")
def pause_job(name: str) -> Response:
    """Let a schedule rest until it is resumed. A run that is going ends by itself."""
    return act(lambda connection: schedules.set_paused(connection, name, True, g.caller), name)


@blueprint.post("/scheduler/jobs/<name>/resume")
@blueprint.response(200, ScheduledJob)
@blueprint.alt_response(404, success=False)
@requires("admin")
def resume_job(name: str) -> Response:
    """Let a paused schedule go on: it is next due one pace from now."""
    return act(lambda connection: schedules.set_paused(connection, name, False, g.caller), name)


@blueprint.post("/scheduler/jobs/<name>/run")
@blueprint.response(200, ScheduledJob)
@blueprint.alt_response(404, success=False)
@blueprint.alt_response(409, success=False)
@requires("admin")
def run_job(name: str) -> Response:
    """Run a schedule with the next tick, within about a second. 409 while it is paused or runs."""
    return act(lambda connection: schedules.run_now(connection, name, g.caller), name)
