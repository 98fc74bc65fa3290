"""What every answer says to browsers: nothing may be guessed, framed or loaded, and who may read it from elsewhere.

It sits around the whole ASGI application, so that answers made without Flask (refusals
of the bridge, streams) carry the same headers. Without `cors_origins` no page of another
origin may read anything. Credentials are headers, never cookies, so that no answer
allows credentials to be added by the browser.
"""

from __future__ import annotations

from typing import Any

from models.kernel.settings import Settings
from orchestrator_web.bridge import Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]

NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
A_PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the vendored pages need: they style themselves inline, and one searches in a worker of its own making."""
PAGES = frozenset({"/docs", "/redoc"})

ALWAYS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
ALLOWED = {
    "access-control-allow-methods": "GET, POST, PUT, PATCH, DELETE",
    "access-control-allow-headers": "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, X-API-Key, "
    "X-Correlation-Id",
    "access-control-max-age": "600",
}
EXPOSED = (
    "Idempotency-Replayed, Location, Preference-Applied, Retry-After, X-Correlation-Id, X-RateLimit-Limit, "
    "X-RateLimit-Remaining, X-RateLimit-Reset"
)


def encoded(headers: dict[str, str]) -> Headers:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


class Guarded:
    """Gives the answers of an ASGI application their headers, and answers the browsers' preflights."""

    def __init__(self, application: Any, chosen: Settings) -> None:
        self.application = application
        self.origins = {origin.encode() for origin in chosen.cors_origins}
        transport = {"strict-transport-security": f"max-age={chosen.hsts_seconds}"} if chosen.hsts_seconds else {}
        self.usual = encoded({**ALWAYS, **transport, "content-security-policy": NOTHING})
        self.of_pages = encoded({**ALWAYS, **transport, "content-security-policy": A_PAGE})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        own = self.of_pages if scope["path"] in PAGES else self.usual
        if self.origins:
            own = own + self.sharing(scope)
            if self.is_preflight(scope):
                await send({"type": "http.response.start", "status": 204, "headers": own + encoded(ALLOWED)})
                await send({"type": "http.response.body", "body": b""})
                return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(header for header in own if header[0] not in present)]
            await send(message)

        await self.application(scope, receive, guarded)

    def sharing(self, scope: Scope) -> Headers:
        """Who may read the answer (https://fetch.spec.whatwg.org/#http-cors-protocol): a named origin, exactly."""
        origin = header(scope, b"origin")
        varies = (b"vary", b"Origin")
        if origin not in self.origins:
            return [varies]
        return [
            varies,
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED.encode()),
        ]

    def is_preflight(self, scope: Scope) -> bool:
        asks = scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") != b""
        return asks and header(scope, b"origin") in self.origins


def header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")
