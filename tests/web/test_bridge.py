"""The bridge: bodies are read under limits before Flask sees them, and what it refuses itself is a whole problem."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from orchestrator_web import bridge
from orchestrator_web.bridge import Bridge, environ_of
from tests.web.server import Heard, Message, Server, own_logs, run, until
from tests.web.service import PROBLEM_MEMBERS, counts

MEGABYTE = 2**20


@pytest.fixture
def server(database: str, broker: str, admin_key: str) -> Server:
    with own_logs():
        from orchestrator_web import asgi

        return Server(asgi.Application(), admin_key)


def pieces(count: int, size: int, *, more: bool = False) -> list[Message]:
    """A chunked body: its length is said nowhere."""
    sent = [{"type": "http.request", "body": b"x" * size, "more_body": True} for _ in range(count)]
    return sent if more else [*sent, {"type": "http.request", "body": b"", "more_body": False}]


def assert_whole_problem(heard: Heard | None, status: int, code: str) -> None:
    assert heard is not None
    assert heard.status == status
    assert heard.headers["content-type"] == "application/problem+json"
    assert int(heard.headers["content-length"]) == len(heard.body)
    said = heard.json()
    assert said.keys() >= PROBLEM_MEMBERS
    assert (said["status"], said["code"]) == (status, code)
    assert said["correlation_id"] == heard.headers["x-correlation-id"] != ""
    assert said["instance"].startswith("/")


def test_a_chunked_body_of_another_type_is_415(server: Server) -> None:
    async def scenario() -> None:
        before = counts()
        parts = [{"type": "http.request", "body": b'{"command": "drive"}', "more_body": False}]
        headers = [("content-type", "text/plain"), ("transfer-encoding", "chunked")]
        heard = await server.call("POST", "/ticket", parts=parts, headers=headers)
        assert_whole_problem(heard, 415, "unsupported_media_type")
        assert counts() == {**before, "ledger": before["ledger"] + 1}

    run(scenario)


@pytest.mark.parametrize("path", ["/ticket", "/execute", "/nowhere", "/healthz"])
def test_a_body_of_two_megabytes_without_a_length_is_413(server: Server, path: str) -> None:
    async def scenario() -> None:
        before = counts()
        heard = await server.call(
            "POST", path, parts=pieces(32, MEGABYTE // 16), headers=[("x-correlation-id", "big-1")]
        )
        assert_whole_problem(heard, 413, "body_too_large")
        assert heard is not None
        assert (heard.headers["connection"], heard.headers["x-correlation-id"]) == ("close", "big-1")
        assert counts() == before

    run(scenario)


def test_a_length_that_is_too_large_is_refused_before_any_of_the_body_is_read(server: Server) -> None:
    async def scenario() -> None:
        heard = await server.call("POST", "/ticket", parts=[], headers=[("content-length", str(2 * MEGABYTE))])
        assert_whole_problem(heard, 413, "body_too_large")

    run(scenario)


def test_a_body_of_exactly_the_limit_is_read(server: Server) -> None:
    async def scenario() -> None:
        body = json.dumps({"command": "scan", "metadata": {"x": ""}}).encode()
        filled = body.replace(b'""', b'"' + b"x" * (MEGABYTE - len(body)) + b'"')
        parts: list[Message] = [{"type": "http.request", "body": filled}]
        heard = await server.call("POST", "/ticket", parts=parts, headers=[("content-type", "application/json")])
        assert heard is not None
        assert (len(filled), heard.status) == (MEGABYTE, 201)

    run(scenario)


def test_a_body_that_does_not_arrive_in_time_is_408(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "BODY_SECONDS", 0.01)

    async def scenario() -> None:
        assert_whole_problem(await server.call("POST", "/ticket", parts=pieces(1, 10, more=True)), 408, "body_too_slow")

    run(scenario)


def test_a_client_that_leaves_within_its_body_is_sent_nothing(server: Server) -> None:
    async def scenario() -> None:
        before = counts()
        left = asyncio.Event()
        left.set()
        assert await server.call("POST", "/ticket", parts=pieces(3, 10, more=True), left=left) is None
        assert counts() == before

    run(scenario)


def test_more_requests_than_may_wait_are_refused_and_the_reserved_paths_still_answer(database: str) -> None:
    entered, go_on = threading.Semaphore(0), threading.Event()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            entered.release()
            go_on.wait()
        start_response("200 OK", [])
        return [b"done"]

    bridged = Bridge(application, threads=2, largest_body=100)
    bridged.most_waiting = 3
    server = Server(None)

    async def ask(path: str) -> Any:
        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        return await bridged(server.scope("GET", path, b"", []), receive)

    async def scenario() -> None:
        slow = [asyncio.create_task(ask("/slow")) for _ in range(3)]
        await until(lambda: bridged.present == 3)
        refused = await ask("/slow")
        assert refused.status == 503
        assert ("retry-after", "1") in refused.headers
        assert (await ask("/healthz")).status == 200
        go_on.set()
        assert [(await answer).status for answer in slow] == [200, 200, 200]
        assert (await ask("/other")).status == 200

    run(scenario)


def test_a_header_that_wsgi_would_confuse_with_another_is_dropped(server: Server, admin_key: str) -> None:
    async def scenario() -> None:
        server.credential = ""
        for name in ("x_api_key", "X_API-Key", "http_x_api_key"):
            heard = await server.call("GET", "/tickets", headers=[(name, admin_key)])
            assert heard is not None
            assert heard.status == 401

    run(scenario)


def test_two_credentials_in_one_request_are_none(server: Server, admin_key: str) -> None:
    async def scenario() -> None:
        heard = await server.call("GET", "/tickets", headers=[("authorization", "Bearer x")])
        assert heard is not None
        assert heard.status == 401

    run(scenario)


def test_head_has_no_body_through_the_bridge(server: Server) -> None:
    async def scenario() -> None:
        heard = await server.call("HEAD", "/tickets")
        assert heard is not None
        assert (heard.status, heard.body) == (200, b"")

    run(scenario)


def test_a_websocket_where_there_is_none_is_refused_with_a_problem(server: Server) -> None:
    async def scenario() -> None:
        for path, status in {"/": 404, "/tickets": 404, "/nowhere": 404, "/execute": 405}.items():
            sent: list[Message] = []

            async def receive() -> Message:
                return {"type": "websocket.connect"}

            async def send(message: Message, sent: list[Message] = sent) -> None:
                sent.append(message)

            await server.application({**server.scope("GET", path, b"", []), "type": "websocket"}, receive, send)
            start, end = sent
            assert (start["type"], start["status"]) == ("websocket.http.response.start", status)
            assert end["type"] == "websocket.http.response.body"
            assert json.loads(end["body"])["status"] == status

    run(scenario)


def test_a_bug_outside_flask_is_a_500_that_tells_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret insides")

    monkeypatch.setattr(bridge, "environ_of", broken)

    async def scenario() -> None:
        heard = await server.call("GET", "/healthz")
        assert_whole_problem(heard, 500, "internal")
        assert heard is not None
        assert b"insides" not in heard.body

    run(scenario)


def test_the_environ_carries_the_path_and_the_query_as_wsgi_wants_them() -> None:
    scope = Server(None).scope("GET", "/ticket/é?x=%FF&y=1", b"", [("x-a", "1"), ("x-a", "2"), ("content-type", "t")])
    environ = environ_of(scope, b"body")
    assert environ["PATH_INFO"] == "/ticket/é".encode().decode("latin-1")
    assert environ["QUERY_STRING"] == "x=%FF&y=1"
    assert (environ["HTTP_X_A"], environ["CONTENT_TYPE"], environ["CONTENT_LENGTH"]) == ("1,2", "t", "4")
    assert environ["wsgi.input"].read() == b"body"
