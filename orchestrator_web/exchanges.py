"""Flask's requests and answers, without the work that the bridge has already done or that no answer of ours needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from flask import Flask, Request, Response, g, request
from werkzeug.datastructures import Headers

BODY = "orchestrator.body"
PLAIN_PATH = re.compile(r"(/[A-Za-z0-9_.-]+)*")
BODILESS = frozenset({204, 304})
READY = frozenset({"location", "content-location", "content-length"})


class WholeRequest(Request):
    """A request whose body the bridge has read whole, under its limits: nothing is left to read or to bound."""

    def get_data(self, cache: bool = True, as_text: bool = False, parse_form_data: bool = False) -> Any:
        whole = self.environ.get(BODY)
        if whole is None or as_text or parse_form_data:
            return super().get_data(cache, as_text, parse_form_data)  # type: ignore[call-overload]
        return whole


class ReadyResponse(Response):
    """A response whose headers are sent as they are, where nothing about them is left to be worked out."""

    def get_wsgi_headers(self, environ: Any) -> Headers:
        found = {key.lower(): value for key, value in self.headers if key.lower() in READY}
        is_ready = "content-length" in found and "content-location" not in found and self.status_code not in BODILESS
        if is_ready and PLAIN_PATH.fullmatch(found.get("location", "")):
            return self.headers
        return super().get_wsgi_headers(environ)


def present() -> tuple[Any, WholeRequest]:
    """Flask's `g` and `request` themselves: what stands for them looks them up anew at each attribute."""
    return g._get_current_object(), request._get_current_object()  # type: ignore[attr-defined]


class Service(Flask):
    """Flask, for views that are all plain functions."""

    request_class = WholeRequest
    response_class = ReadyResponse

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func
