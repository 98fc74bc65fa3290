"""What every baseline accepts: a ticket, validated as the service validates it."""

from __future__ import annotations

from typing import Any

from flask import Flask, jsonify, request
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

PRIORITIES = ("critical", "high", "normal", "low")


class Draft(Schema):
    """A ticket to create; unknown members are ignored."""

    class Meta:
        unknown = EXCLUDE

    command = fields.String(required=True, validate=validate.Length(max=256))
    params = fields.Dict(load_default=dict)
    priority = fields.String(load_default="normal", validate=validate.OneOf(PRIORITIES))
    timeout_seconds = fields.Integer(load_default=300, strict=True, validate=validate.Range(1, 3600))
    metadata = fields.Dict(load_default=dict)
    target = fields.String(load_default="default", validate=validate.Length(1, 64))


DRAFT = Draft()


def draft() -> dict[str, Any]:
    """The request's body. Raises ValidationError."""
    return dict(DRAFT.load(request.get_json()))


def make_app(name: str) -> Flask:
    """A Flask application that refuses a wrong body with 422 and says that it is alive."""
    app = Flask(name)

    @app.errorhandler(ValidationError)
    def refuse(error: ValidationError) -> Any:
        return jsonify(errors=error.messages), 422

    @app.get("/healthz")
    def alive() -> Any:
        return jsonify(status="ok")

    return app
