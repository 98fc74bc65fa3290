"""Clients and their keys, for administrators. A key's secret is shown once, when it is made."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from flask import Response, g
from flask_smorest import Blueprint
from marshmallow import RAISE, Schema, fields, validate

from models.kernel import administration, clients
from models.kernel.errors import NotFound
from models.kernel.parsers import PERMISSIONS
from models.kernel.session import statement, transaction
from orchestrator_web import auth, paging
from orchestrator_web.auth import requires
from orchestrator_web.fields import QueryInteger, StrictBoolean, StrictInteger
from orchestrator_web.idempotency import after_commit, creating, keep_instead
from orchestrator_web.json import dumps
from orchestrator_web.parsing import StrictParser

NAME = validate.Regexp(r"^[A-Za-z0-9._:@-]{1,64}(?![\s\S])", error="must be 1 to 64 letters, digits or . _ : @ -")
KEY_ID = re.compile(r"[0-9a-f]{12}")
LARGEST_PAGE, DEFAULT_PAGE = 1000, 100
LARGEST_RATE = 10**6
LONGEST_LIFE_SECONDS = 10 * 365 * 86_400
LONGEST_OVERLAP_SECONDS = 30 * 86_400
NAMED_BY = {"clients": "name", "keys": "id"}
DATE_TIME = {"format": "date-time"}
RATE = {"description": "requests a second; null means the service's own limit, 0 none"}

blueprint = Blueprint("clients", __name__, description="Who may call, with which keys")
blueprint.ARGUMENTS_PARSER = StrictParser()


class Permissions(fields.List):
    """Which of read, write and admin; admin implies the others."""

    def __init__(self, **kwargs: Any) -> None:
        one = fields.String(validate=validate.OneOf(sorted(PERMISSIONS)))
        super().__init__(one, validate=validate.Length(max=len(PERMISSIONS)), **kwargs)


class Strict(Schema):
    class Meta:
        unknown = RAISE


class ClientDraft(Strict):
    """A client to be made."""

    name = fields.String(required=True, validate=NAME)
    permissions = Permissions(required=True)
    tenant = fields.String(load_default="default", validate=NAME)
    rate_limit = StrictInteger(
        load_default=None, allow_none=True, validate=validate.Range(0, LARGEST_RATE), metadata=RATE
    )


class ClientChanges(Strict):
    """What is to change; what is left out stays."""

    permissions = Permissions()
    tenant = fields.String(validate=NAME)
    rate_limit = StrictInteger(allow_none=True, validate=validate.Range(0, LARGEST_RATE), metadata=RATE)
    disabled = StrictBoolean(metadata={"description": "true: none of its keys and tokens is accepted"})


class ClientRecord(Schema):
    """Who may call."""

    name = fields.String(required=True)
    tenant = fields.String(required=True)
    permissions = Permissions(required=True)
    rate_limit = fields.Integer(required=True, allow_none=True, metadata=RATE)
    disabled = fields.Boolean(required=True)
    created_at = fields.String(required=True, metadata=DATE_TIME)
    disabled_at = fields.String(required=True, allow_none=True, metadata=DATE_TIME)


class KeyRecord(Schema):
    """A key without its secret."""

    id = fields.String(required=True)
    client = fields.String(required=True)
    created_at = fields.String(required=True, metadata=DATE_TIME)
    expires_at = fields.String(required=True, allow_none=True, metadata=DATE_TIME)
    revoked_at = fields.String(required=True, allow_none=True, metadata=DATE_TIME)


class NewKey(KeyRecord):
    """A key that was just made."""

    key = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "shown this once; null in the answer to a repeated Idempotency-Key"},
    )


class KeyLife(Strict):
    expires_in_seconds = StrictInteger(
        load_default=None,
        allow_none=True,
        validate=validate.Range(1, LONGEST_LIFE_SECONDS),
        metadata={"description": "null: until it is revoked"},
    )


class KeyRotation(KeyLife):
    overlap_seconds = StrictInteger(
        load_default=0,
        validate=validate.Range(0, LONGEST_OVERLAP_SECONDS),
        metadata={"description": "how long the old key still opens what the new one does"},
    )


class ClientQuery(Strict):
    limit = QueryInteger(load_default=DEFAULT_PAGE, validate=validate.Range(1, LARGEST_PAGE))
    cursor = fields.String(validate=validate.Length(1, 512), metadata={"description": "next_cursor of the page before"})


class ClientPage(Schema):
    clients = fields.List(fields.Nested(ClientRecord), required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class KeyPage(Schema):
    keys = fields.List(fields.Nested(KeyRecord), required=True)
    next_cursor = fields.String(required=True, allow_none=True)


def answer(body: Any, status: int = 200) -> Response:
    return Response(dumps(body), status=status, content_type="application/json")


def moment(value: Any) -> str | None:
    return None if value is None else str(value.isoformat())


def shown_client(row: Any) -> dict[str, Any]:
    times = {name: moment(row[name]) for name in ("created_at", "disabled_at")}
    kept = {name: row[name] for name in ("name", "tenant", "permissions", "rate_limit")}
    return {**kept, "disabled": row["disabled_at"] is not None, **times}


def shown_key(row: Any) -> dict[str, Any]:
    times = {name: moment(row[name]) for name in ("created_at", "expires_at", "revoked_at")}
    return {"id": row["id"], "client": row["client"], **times}


def about(name: str) -> str:
    """A client's name in a path, noted as what this request is about. Raises NotFound for what cannot be one."""
    if not clients.NAME.fullmatch(name):
        raise NotFound("There is no such client", code="client_not_found")
    g.subject = (clients.KIND, name)
    return name


def key_of(connection: Any, name: str, key_id: str) -> Any:
    """A client's key. Raises NotFound, also for the key of another client."""
    about(name)
    row = clients.get_key(connection, key_id) if KEY_ID.fullmatch(key_id) else None
    if row is None or row["client"] != name:
        raise NotFound("This client has no such key", code="key_not_found")
    return row


def made_key(connection: Any, key: str) -> Response:
    row = clients.get_key(connection, key.split("_")[1])
    made = {**shown_key(row), "key": key}
    keep_instead(dumps({**made, "key": None}))
    return answer(made, 201)


def end_of(life: dict[str, Any]) -> Any:
    wanted = life["expires_in_seconds"]
    return None if wanted is None else clients.later(wanted)


def forget_proved() -> None:
    """This process looks every credential up anew at once; the others do so within seconds."""
    auth.cache.clear()


@blueprint.get("/clients")
@blueprint.arguments(ClientQuery(), location="query")
@blueprint.response(200, ClientPage)
@requires("admin")
def list_clients(wanted: dict[str, Any]) -> Response:
    """Clients, by name."""
    question = {"list": "clients"}
    after = paging.read_cursor(question, wanted["cursor"])[1] if "cursor" in wanted else ""
    with statement() as connection:
        rows = clients.list_clients(connection, wanted["limit"] + 1, after)
    return page(question, rows, wanted["limit"], shown_client)


@blueprint.post("/clients")
@blueprint.arguments(ClientDraft())
@blueprint.response(201, ClientRecord)
@blueprint.alt_response(409, success=False)
@requires("admin")
@creating(together=True)
def create_client(connection: Any, draft: dict[str, Any]) -> Response:
    """Make a client; it has no key yet."""
    about(draft["name"])
    made = answer(shown_client(administration.register_client(connection, draft, by=g.caller)), 201)
    made.headers["Location"] = f"/clients/{draft['name']}"
    return made


@blueprint.get("/clients/<name>")
@blueprint.response(200, ClientRecord)
@requires("admin")
def get_client(name: str) -> Response:
    """One client."""
    with statement() as connection:
        return answer(shown_client(administration.get_client(connection, about(name))))


@blueprint.patch("/clients/<name>")
@blueprint.arguments(ClientChanges())
@blueprint.response(200, ClientRecord)
@blueprint.alt_response(409, success=False)
@requires("admin")
def change_client(changes: dict[str, Any], name: str) -> Response:
    """Change a client. It holds for its keys and tokens everywhere within five seconds."""
    with transaction() as connection, administration.administering(connection):
        row = administration.change_client(connection, about(name), changes, by=g.caller)
    forget_proved()
    return answer(shown_client(row))


@blueprint.get("/clients/<name>/keys")
@blueprint.arguments(ClientQuery(), location="query")
@blueprint.response(200, KeyPage)
@requires("admin")
def list_keys(wanted: dict[str, Any], name: str) -> Response:
    """A client's keys, newest first, those that ended too."""
    question = {"list": "keys", "client": about(name)}
    after = paging.read_cursor(question, wanted["cursor"]) if "cursor" in wanted else None
    with statement() as connection:
        administration.get_client(connection, name)
        rows = clients.list_keys(connection, name, wanted["limit"] + 1, after)
    return page(question, rows, wanted["limit"], shown_key)


def page(question: dict[str, Any], rows: Any, limit: int, shown: Callable[[Any], dict[str, Any]]) -> Response:
    """The first `limit` rows, and the cursor of what follows where there was one more."""
    title = question["list"]
    here = rows[:limit]
    following = None
    if len(rows) > limit:
        following = paging.write_cursor(question, (here[-1]["created_at"], here[-1][NAMED_BY[title]]))
    return answer({title: [shown(row) for row in here], "next_cursor": following})


@blueprint.post("/clients/<name>/keys")
@blueprint.arguments(KeyLife())
@blueprint.response(201, NewKey)
@requires("admin")
@creating(together=True)
def create_key(connection: Any, life: dict[str, Any], name: str) -> Response:
    """Make a key. This answer is the only place where it can be read."""
    administration.get_client(connection, about(name))
    return made_key(connection, clients.issue_key(connection, name, end_of(life), by=g.caller))


@blueprint.post("/clients/<name>/keys/<key_id>/rotate")
@blueprint.arguments(KeyRotation())
@blueprint.response(201, NewKey)
@blueprint.alt_response(409, success=False)
@requires("admin")
@creating(together=True)
def rotate_key(connection: Any, wanted: dict[str, Any], name: str, key_id: str) -> Response:
    """Make a key that takes this one's place, which ends after the overlap."""
    key_of(connection, name, key_id)
    with administration.administering(connection):
        key = clients.rotate_key(connection, key_id, wanted["overlap_seconds"], end_of(wanted), by=g.caller)
    after_commit(forget_proved)
    return made_key(connection, key)


@blueprint.delete("/clients/<name>/keys/<key_id>")
@blueprint.response(200, KeyRecord)
@blueprint.alt_response(409, success=False)
@requires("admin")
def revoke_key(name: str, key_id: str) -> Response:
    """Revoke a key: it opens nothing any more within five seconds. One that was revoked stays so."""
    with transaction() as connection:
        key_of(connection, name, key_id)
        with administration.administering(connection):
            clients.revoke_key(connection, key_id, by=g.caller)
        row = clients.get_key(connection, key_id)
    forget_proved()
    return answer(shown_key(row))
