"""How requests are read: strict JSON bodies, and errors that point at each field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import marshmallow
from flask import Request, current_app
from webargs.flaskparser import FlaskParser

from models.kernel.errors import Invalid
from models.kernel.settings import settings
from orchestrator_web.exchanges import present
from orchestrator_web.json import escape, invalid, refused
from orchestrator_web.problems import BadRequest

JSON = "application/json"
ANY_TYPE = frozenset({"/estop"})  # what curl calls a form is JSON there: an emergency is no place for a 415
ENGINE_EVENTS = "/engine/events"
ONLY_JSON = frozenset({JSON})
TYPES = {ENGINE_EVENTS: frozenset({JSON, "application/x-ndjson"})}


def larger_bodies() -> dict[str, int]:
    """The paths that take larger bodies than the others, and how large ones."""
    return {ENGINE_EVENTS: settings().engine_max_body_bytes}


def check_body() -> None:
    """Before any view: a body, where there is one, is JSON. Raises BadRequest (400 or 415) or Invalid."""
    _, asked = present()
    if asked.routing_exception is not None or asked.method not in {"POST", "PUT", "PATCH", "DELETE"}:
        return
    largest = larger_bodies().get(asked.path)
    if largest is not None:
        asked.max_content_length = largest
    taken = TYPES.get(asked.path, ONLY_JSON)
    if asked.get_data(cache=True) and asked.mimetype not in taken and asked.path not in ANY_TYPE:
        why = f"Send the body as {' or '.join(sorted(taken))}"
        raise BadRequest(why, status=415, code="unsupported_media_type")


def check_query() -> None:
    """Before a view that knows no query: whoever sent one meant something by it. Raises Invalid, as the others do."""
    _, asked = present()
    if asked.query_string and not takes_query(current_app.view_functions[asked.endpoint or ""]):
        StrictParser().parse(NoQuery(), asked, location="query")


def takes_query(view: Any) -> bool:
    described = getattr(view, "_apidoc", {}).get("arguments", {"parameters": []})
    return any(each["in"] == "query" for each in described["parameters"])


class NoQuery(marshmallow.Schema):
    """No name is known."""


class StrictParser(FlaskParser):
    """webargs with this service's errors."""

    DEFAULT_VALIDATION_STATUS = 422
    DEFAULT_UNKNOWN_BY_LOCATION = {"json": None, "query": marshmallow.RAISE, "path": marshmallow.RAISE}  # noqa: RUF012

    def load_json(self, req: Request, schema: Any) -> Any:
        try:
            document = current_app.json.loads(req.get_data(cache=True))
        except ValueError as error:
            raise BadRequest(f"The body is not JSON: {error}", code="not_json") from None
        if not isinstance(document, dict) and not getattr(schema, "many", False):
            raise Invalid("The body must be a JSON object", errors=[{"pointer": "", "detail": "must be an object"}])
        return document

    def load_querystring(self, req: Request, schema: Any) -> Any:
        """Each parameter once, and no NUL in any. Raises Invalid."""
        for name, values in req.args.lists():
            if len(values) > 1:
                raise refused(f"/{escape(name)}", "must be given once")
            if "\x00" in name + values[0]:
                raise refused(f"/{escape(name)}", "must not contain the NUL character")
        return super().load_querystring(req, schema)

    def handle_error(
        self, error: marshmallow.ValidationError, req: Any, schema: Any, *, error_status_code: Any, error_headers: Any
    ) -> NoReturn:
        messages = error.messages if isinstance(error.messages, Mapping) else {"": error.messages}
        found = [{"pointer": pointer, "detail": text} for pointer, text in flatten(messages)]
        raise invalid(found)


def flatten(messages: Any, pointer: str = "") -> Iterator[tuple[str, str]]:
    """marshmallow's nested messages as (pointer, text); the outermost level names the location."""
    if isinstance(messages, Mapping):
        for key, inner in messages.items():
            location = not pointer and key in {"json", "query", "path"}
            below = pointer if location or key == "_schema" else f"{pointer}/{escape(str(key))}"
            yield from flatten(inner, below)
    elif isinstance(messages, list):
        for text in messages:
            yield pointer, str(text)
    else:
        yield pointer, str(messages)
