"""Who is asking, and whether they may. Every route is closed unless it says otherwise.

A view says `@requires("write")` or `@public`; an application with a view that says
neither does not start. A credential is looked up at most once in CACHE_SECONDS, so a
revocation holds everywhere within that time. Whoever guesses is stopped by `guesses`.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flask import Flask, g, request

from models.kernel import clock
from models.kernel.clients import Caller, Client, find_client_by_key
from models.kernel.errors import Forbidden, Unauthenticated
from models.kernel.session import statement
from models.kernel.settings import settings
from models.kernel.tokens import client_of_token
from orchestrator_web import guesses, ratelimit
from orchestrator_web.bridge import HANDSHAKE
from orchestrator_web.exchanges import present
from orchestrator_web.metrics import UNAUTHENTICATED

log = logging.getLogger(__name__)

CACHE_SECONDS = 3.0
CACHE_SIZE = 10_000
LONGEST_CREDENTIAL = 8192
SUBPROTOCOL = "bearer"

View = TypeVar("View", bound=Callable[..., Any])

cache: dict[bytes, tuple[float, Client]] = {}


def requires(permission: str) -> Callable[[View], View]:
    """Open a view to callers who hold this permission."""

    def mark(view: View) -> View:
        view.permission = permission  # type: ignore[attr-defined]
        return view

    return mark


def public(view: View) -> View:
    """Open a view to everybody."""
    view.permission = ""  # type: ignore[attr-defined]
    return view


def permission_of(app: Flask, endpoint: str) -> str | None:
    view = app.view_functions[endpoint]
    return getattr(view, "permission", None)


def check_every_view(app: Flask) -> None:
    """Raise ValueError when a view does not say who may call it."""
    for rule in app.url_map.iter_rules():
        if rule.endpoint != "static" and permission_of(app, rule.endpoint) is None:
            raise ValueError(f"{rule.rule}: say @requires(...) or @public")


def authorize(app: Flask) -> None:
    """Before any view. Raises Unauthenticated or Forbidden."""
    here, asked = present()
    if asked.endpoint is None:
        return
    permission = permission_of(app, asked.endpoint)
    if permission == "":
        return
    here.caller = caller = caller_of_request()
    ratelimit.count_request(caller)
    if permission is None or not caller.may(permission):
        raise Forbidden(f"This needs the permission {permission}", code="permission_missing")


def caller_of_request() -> Caller:
    credential = offered_credential()
    if credential is None:
        allowed = settings().anonymous_permissions
        if allowed:
            return Caller("anonymous", "default", allowed, g.correlation_id)
        raise refused("Send Authorization: Bearer <API key or JWT>", "credential_missing")
    if guesses.guessers and name_of(credential) not in cache:
        guesses.refuse_guessers(request.remote_addr or "")
    try:
        client = client_of(credential)
    except Unauthenticated as error:
        guesses.count_guess(request.remote_addr or "")
        raise refused(error.message, error.code) from None
    return Caller(client.name, client.tenant, client.permissions, g.correlation_id, client.rate_limit)


def refused(message: str, code: str) -> Unauthenticated:
    """An anonymous refusal goes to the log and a counter: the ledger is not for whoever knocks."""
    UNAUTHENTICATED.labels(code).inc()
    log.warning("not authenticated", extra={"code": code, "path": request.path})
    return Unauthenticated(message, code=code)


def offered_credential() -> str | None:
    environ = request.environ
    scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme:
        if scheme.lower() != "bearer" or not value.strip():
            raise refused("Only Authorization: Bearer is understood", "scheme_unknown")
        return value.strip()
    return environ.get("HTTP_X_API_KEY") or credential_of_handshake(environ)


def credential_of_handshake(environ: Mapping[str, Any]) -> str | None:
    """What a page's script offers: of a WebSocket's handshake it can choose nothing but the protocols it names.

    `new WebSocket(url, ["bearer", credential])` sends them as `Sec-WebSocket-Protocol` (RFC 6455, section 4.1).
    """
    if not environ.get(HANDSHAKE):
        return None
    scheme, _, value = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "").partition(",")
    return (value.strip() or None) if scheme.strip() == SUBPROTOCOL else None


def client_of(credential: str) -> Client:
    """The client that a credential proves, from the cache if it was proved a moment ago."""
    if len(credential) > LONGEST_CREDENTIAL:
        raise Unauthenticated("Could not validate credentials", code="credential_invalid")
    name = name_of(credential)
    known = cache.get(name)
    if known is not None and known[0] > clock.monotonic():
        return known[1]
    try:
        client = prove(credential)
    except Unauthenticated:
        cache.pop(name, None)
        raise
    if len(cache) >= CACHE_SIZE:
        cache.clear()
    cache[name] = (clock.monotonic() + CACHE_SECONDS, client)
    return client


def name_of(credential: str) -> bytes:
    """What a credential is called in the cache, which holds no secret."""
    return hashlib.sha256(credential.encode("utf-8", "surrogateescape")).digest()


def prove(credential: str) -> Client:
    with statement() as connection:
        if not credential.startswith("orc_"):
            try:
                return client_of_token(connection, credential)
            except UnicodeEncodeError:  # JSON can spell half a character, no database can look it up
                raise Unauthenticated("The token's sub claim must be a text", code="token_invalid") from None
        client = find_client_by_key(connection, credential)
    if client is None:
        raise Unauthenticated("The API key is unknown, revoked or expired", code="key_invalid")
    return client


def register(app: Flask) -> None:
    app.before_request(functools.partial(authorize, app))
    app.after_request(ratelimit.tell)
