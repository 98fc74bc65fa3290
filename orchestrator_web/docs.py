"""The API described: /openapi.json, and two pages over it from vendored files, so that they work with no network."""

from __future__ import annotations

import functools

from flask import Flask, Response, current_app, send_from_directory
from flask.typing import ResponseReturnValue
from flask_smorest import Api
from werkzeug.exceptions import NotFound

from orchestrator_web.auth import public
from orchestrator_web.json import dumps

STATIC = "static"
SERVED = frozenset({"docs.js", "redoc.js", "redoc.standalone.js", "swagger-ui-bundle.js", "swagger-ui.css"})


def register(app: Flask, api: Api) -> None:
    @functools.cache
    def document() -> bytes:
        return dumps(api.spec.to_dict())

    @public
    def openapi() -> ResponseReturnValue:
        return Response(document(), content_type="application/json")

    app.add_url_rule("/openapi.json", view_func=openapi)
    app.add_url_rule("/docs", "docs", page("docs.html"))
    app.add_url_rule("/redoc", "redoc", page("redoc.html"))
    app.add_url_rule("/static/<name>", view_func=static_file)


def page(name: str) -> object:
    @public
    def view() -> ResponseReturnValue:
        return send_from_directory(f"{current_app.root_path}/{STATIC}", name)

    return view


@public
def static_file(name: str) -> ResponseReturnValue:
    if name not in SERVED:
        raise NotFound
    return send_from_directory(f"{current_app.root_path}/{STATIC}", name, max_age=0)
