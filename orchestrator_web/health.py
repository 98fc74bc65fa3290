"""Whether the service lives, whether it is ready, and its metrics."""

from __future__ import annotations

from typing import Any

import redis
from flask import Blueprint, Response, jsonify
from flask.typing import ResponseReturnValue

from models.kernel.errors import OrchestratorError, Unavailable
from models.kernel.ledger import count_partitions_ahead
from models.kernel.processes import list_fresh_roles
from models.kernel.session import statement
from models.kernel.settings import settings
from orchestrator_web import hints, metrics
from orchestrator_web.auth import public, requires
from orchestrator_web.engine.answers import read_health

blueprint = Blueprint("health", __name__)

FEWEST_PARTITIONS_AHEAD = 2
DATABASE = "database"


@blueprint.get("/healthz")
@public
def healthz() -> ResponseReturnValue:
    """This process answers."""
    return jsonify(status="healthy")


@blueprint.get("/readyz")
@public
def readyz() -> ResponseReturnValue:
    """200 once the database, the broker and a process of every role answer; else 503 and what is missing.

    How the engine does is told beside it: one that plans nothing keeps no ticket from being carried out.
    """
    missing = missing_parts()
    engine = None if DATABASE in missing else engine_health()
    if not missing:
        return jsonify(status="ready", missing=[], engine=engine)
    response = jsonify(status="not ready", missing=missing, engine=engine)
    response.headers["Retry-After"] = "1"
    return response, 503


def missing_parts() -> list[str]:
    try:
        with statement() as connection:
            missing = sorted(settings().process_roles - list_fresh_roles(connection))
            if count_partitions_ahead(connection) < FEWEST_PARTITIONS_AHEAD:
                missing.append("ledger partitions")
    except Unavailable:
        missing = [DATABASE]
    try:
        hints.client().ping()
    except redis.RedisError:
        missing.append("broker")
    return missing


def engine_health() -> dict[str, Any] | None:
    """How the engine does, and why something is paused; None while the database cannot tell."""
    try:
        with statement() as connection:
            return read_health(connection)
    except Unavailable:
        return None


def exposition() -> ResponseReturnValue:
    """Prometheus metrics."""
    try:
        return Response(metrics.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8")
    except OrchestratorError:
        raise Unavailable("The metrics cannot be read right now") from None


def open_metrics() -> None:
    """Route /metrics, open or not as the settings say."""
    guard = public if settings().metrics_public else requires("read")
    blueprint.add_url_rule("/metrics", view_func=guard(exposition))


open_metrics()
