"""The Flask application: blueprints, and what happens before and after every view."""

from __future__ import annotations

import functools
import logging
from typing import Any

from flask import Flask, Response, g, request
from flask_smorest import Api
from werkzeug.datastructures import Headers

from models.kernel import clock, ids
from models.kernel.errors import OrchestratorError
from models.kernel.ledger import note
from models.kernel.logs import bind, unbind
from models.kernel.session import statement
from models.kernel.settings import settings
from orchestrator_web import auth, docs, health, parsing, problems
from orchestrator_web.engine import ingest, marks
from orchestrator_web.engine import routes as engine
from orchestrator_web.engine import streams as outputs
from orchestrator_web.exchanges import Service, present
from orchestrator_web.json import StrictJson
from orchestrator_web.kernel import clients, dead_letters, operations, scheduler, webhooks
from orchestrator_web.metrics import REQUESTS
from orchestrator_web.tickets import batches, estop, streams
from orchestrator_web.tickets import routes as tickets

log = logging.getLogger(__name__)

OPENAPI: dict[str, Any] = {
    "API_TITLE": "Orchestrator",
    "API_VERSION": "0.1.0",
    "OPENAPI_VERSION": "3.1.0",
    "API_SPEC_OPTIONS": {
        "info": {"description": "Robot command tickets and engine runs over a durable kernel."},
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or a JWT"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
        },
        "security": [{"bearer": []}, {"key": []}],
    },
}

REFUSALS = {400, 403, 404, 409, 415, 422}
ACTS = {"POST", "PUT", "PATCH", "DELETE"}
FORBIDDEN = 403
METHODS = ACTS | {"GET", "HEAD", "OPTIONS"}
LONGEST_NOTED_PATH = 200


def create_app() -> Flask:
    """Build the application. Raises ValueError when a view does not say who may call it."""
    app = Service("orchestrator_web", static_folder=None)
    app.json = StrictJson(app)
    app.config.update(OPENAPI, MAX_CONTENT_LENGTH=settings().max_body_bytes, PROPAGATE_EXCEPTIONS=False)
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    app.before_request(begin)
    auth.register(app)
    app.before_request(parsing.check_body)
    app.after_request(finish)
    app.teardown_request(forget)
    api = Api(app)
    problems.register(app)  # after Api, which brings error handlers of its own
    api.register_blueprint(tickets.blueprint)
    api.register_blueprint(streams.blueprint)
    api.register_blueprint(batches.blueprint)
    api.register_blueprint(operations.blueprint)
    api.register_blueprint(dead_letters.blueprint)
    api.register_blueprint(estop.blueprint)
    api.register_blueprint(scheduler.blueprint)
    api.register_blueprint(clients.blueprint)
    api.register_blueprint(webhooks.blueprint)
    api.register_blueprint(ingest.blueprint)
    api.register_blueprint(marks.blueprint)
    api.register_blueprint(engine.blueprint)
    api.register_blueprint(outputs.blueprint)
    app.register_blueprint(health.blueprint)
    docs.register(app, api)
    auth.check_every_view(app)
    return app


def begin() -> None:
    here, asked = present()
    here.began = clock.monotonic()
    here.correlation_id = ids.correlation_id(asked.environ.get("HTTP_X_CORRELATION_ID"))
    here.binding = bind(correlation_id=here.correlation_id, action=f"{asked.method} {asked.path}")


def finish(response: Response) -> Response:
    here, asked = present()
    status = response.status_code
    set_headers(response.headers, here.correlation_id)
    took = clock.monotonic() - here.began
    path = asked.url_rule.rule if asked.url_rule else "none"
    method = asked.method if asked.method in METHODS else "other"
    timed(method, path, str(status)).observe(took)
    caller = here.get("caller")
    facts = {"status": status, "ms": round(took * 1000, 2), "caller": caller.name if caller else None}
    subject = here.get("subject")
    if subject:
        facts[f"{subject[0]}_id"] = subject[1]
    log.info("answered", extra=facts)
    if status in REFUSALS:
        keep_refusal(response)
    return response


def set_headers(headers: Headers, correlation_id: str) -> None:
    """What every answer says. One pass: replacing a header that is not there costs more than adding it."""
    there = {name.lower() for name, _ in headers}
    for name, value in (("X-Correlation-Id", correlation_id), ("X-Content-Type-Options", "nosniff")):
        (headers.set if name.lower() in there else headers.add)(name, value)
    if "cache-control" not in there:
        headers.add("Cache-Control", "no-store")


@functools.cache
def timed(method: str, path: str, status: str) -> Any:
    """The histogram of these: as many as there are routes and statuses."""
    return REQUESTS.labels(method, path, status)


def forget(_error: BaseException | None) -> None:
    binding = g.get("binding")
    if binding is not None:
        unbind(binding)


def keep_refusal(response: Response) -> None:
    """An authenticated caller was refused: the ledger says who asked for what, and why not.

    Every act, and of readings those that were forbidden.
    """
    status = response.status_code
    if "caller" not in g or status not in REFUSALS or (request.method not in ACTS and status != FORBIDDEN):
        return
    path = request.path[:LONGEST_NOTED_PATH].replace("\x00", "\ufffd")
    subject = g.get("subject") or ("request", path)
    body = {"method": request.method, "path": path, "status": status}
    try:
        with statement() as connection:
            note(
                connection,
                "refused",
                subject=subject,
                actor=g.caller.name,
                correlation_id=g.correlation_id,
                reason=g.get("problem_code"),
                body=body,
            )
    except OrchestratorError:
        log.exception("a refusal could not be recorded")
