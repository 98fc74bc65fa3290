"""Every answer tells browsers what they may do with it, and no page of another origin reads any unless it is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from models.kernel.errors import InvalidSettings
from models.kernel.settings import load, settings
from orchestrator_web.bridge import Bridge
from orchestrator_web.headers import Guarded
from tests.conftest import forget
from tests.web.server import Heard, Server, own_logs, run
from tests.web.service import DRIVE

OURS = "https://panel.example.org"
OTHERS = [
    "https://evil.example.org", "http://panel.example.org", "https://panel.example.org:8443", "null", "*", "",
    "https://panel.example.org.evil.org", "https://PANEL.example.org", "https://panel.example.org/",
]  # fmt: skip
EVERYWHERE = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

Serving = Callable[..., Server]


@pytest.fixture
def serving(database: str, broker: str, admin_key: str, environment: pytest.MonkeyPatch) -> Any:
    """The application as it is served, under these settings."""
    with own_logs():
        from orchestrator_web import asgi

        def serve(**variables: str) -> Server:
            for name, value in variables.items():
                environment.setenv(name, value)
            forget()
            return Server(asgi.create_asgi(), admin_key)

        yield serve


def heard(server: Server, *asked: tuple[Any, ...], **options: Any) -> list[Heard]:
    """What each request is answered."""
    found: list[Heard] = []

    async def scenario() -> None:
        for method, path, body in asked:
            answer = await server.call(method, path, body, **options)
            assert answer is not None
            found.append(answer)

    run(scenario)
    return found


def test_every_answer_carries_the_headers_whoever_made_it(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serving()
    asked = [
        ("GET", "/", None), ("POST", "/ticket", DRIVE), ("POST", "/ticket", {}), ("GET", "/nowhere", None),
        ("PUT", "/ticket", None), ("GET", "/healthz", None), ("GET", "/metrics", None), ("GET", "/openapi.json", None),
        ("GET", "/static/docs.js", None), ("OPTIONS", "/ticket", None),
        ("POST", "/ticket", {"command": "x" * settings().max_body_bytes}),
    ]  # fmt: skip
    answers = heard(server, *asked)

    async def broken(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(Bridge, "__call__", broken)
    answers += heard(server, ("GET", "/", None))
    assert {answer.status for answer in answers} == {200, 201, 404, 405, 413, 422, 500}
    for answer in answers:
        assert answer.headers.items() >= EVERYWHERE.items(), answer.status
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; base-uri 'none'")
        assert "frame-ancestors 'none'" in policy
        assert "strict-transport-security" not in answer.headers
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert "vary" not in answer.headers


def test_no_header_is_sent_twice(serving: Serving) -> None:
    names: list[bytes] = []

    async def note(message: Any) -> None:
        names.extend(name for name, _ in message.get("headers", ()))

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"x-content-type-options", b"nosniff"), (b"content-security-policy", b"sandbox")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def scenario() -> None:
        scope = {"type": "http", "method": "GET", "path": "/docs", "headers": []}
        await Guarded(application, settings())(scope, None, note)  # type: ignore[arg-type]

    run(scenario)
    assert len(names) == len(set(names)) >= 6


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_a_page_may_load_what_is_served_here_and_nothing_else(serving: Serving, page: str) -> None:
    (answer,) = heard(serving(), ("GET", page, None))
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert set(" ".join(rules.values()).split()) <= {"'none'", "'self'", "'unsafe-inline'", "data:", "blob:"}
    assert "'unsafe-inline'" not in rules["script-src"]


def test_strict_transport_is_sent_only_where_it_is_set(serving: Serving) -> None:
    (answer,) = heard(serving(ORCHESTRATOR_HSTS_SECONDS="31536000"), ("GET", "/", None))
    assert answer.headers["strict-transport-security"] == "max-age=31536000"


PREFLIGHT = [("access-control-request-method", "POST"), ("access-control-request-headers", "authorization")]


@pytest.mark.parametrize("origin", OTHERS)
def test_an_origin_that_is_not_named_is_allowed_nothing(serving: Serving, origin: str) -> None:
    server = serving(ORCHESTRATOR_CORS_ORIGINS=OURS)
    server.credential = ""
    answers = heard(server, ("OPTIONS", "/ticket", None), headers=[("origin", origin), *PREFLIGHT])
    answers += heard(server, ("GET", "/", None), headers=[("origin", origin)])
    assert [answer.status for answer in answers] == [401, 200]
    for answer in answers:
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert answer.headers["vary"] == "Origin"


def test_a_named_origin_s_preflight_needs_no_credential(serving: Serving) -> None:
    server = serving(ORCHESTRATOR_CORS_ORIGINS=f"https://other.example.org, {OURS}")
    server.credential = ""
    (answer,) = heard(server, ("OPTIONS", "/ticket", None), headers=[("origin", OURS), *PREFLIGHT])
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == OURS
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"]
    assert {"Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"} <= set(allowed.split(", "))
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["vary"] == "Origin"


def test_a_named_origin_may_read_every_answer_refusals_too(serving: Serving) -> None:
    server = serving(ORCHESTRATOR_CORS_ORIGINS=OURS)
    made, wrong, absent = ("POST", "/ticket", DRIVE), ("POST", "/ticket", {}), ("GET", "/nowhere", None)
    for answer in heard(server, made, wrong, absent, headers=[("origin", OURS)]):
        assert answer.headers["access-control-allow-origin"] == OURS
        assert "X-RateLimit-Remaining" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
    server.credential = ""
    (refused,) = heard(server, ("GET", "/tickets", None), headers=[("origin", OURS)])
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, OURS)


def test_answers_without_an_origin_say_that_they_depend_on_it(serving: Serving) -> None:
    (answer,) = heard(serving(ORCHESTRATOR_CORS_ORIGINS=OURS), ("GET", "/", None))
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origins",
    [
        "*", "null", "panel.example.org", "https://", "https://panel.example.org/", "https://panel.example.org/x",
        "https://PANEL.example.org", "ftp://panel.example.org", "https://*.example.org", "https://a.org:443",
        "http://a.org:80", "https://a.org:0", "https://a.org:70000", "https://u:p@a.org", "https://a.org b.org",
        "https://ä.org", "https://ok.org,*",
    ],
)  # fmt: skip
def test_an_origin_that_no_browser_sends_is_refused_at_start(origins: str) -> None:
    with pytest.raises(InvalidSettings, match="ORCHESTRATOR_CORS_ORIGINS"):
        load({"ORCHESTRATOR_CORS_ORIGINS": origins})


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://a.org:80", "http://[::1]:8080"])
def test_an_origin_that_browsers_send_is_taken_as_it_is(origin: str) -> None:
    assert load({"ORCHESTRATOR_CORS_ORIGINS": origin}).cors_origins == {origin}
