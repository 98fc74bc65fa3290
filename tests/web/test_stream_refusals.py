"""Who may listen, to what, from where on: every other question is refused before a stream begins."""

from __future__ import annotations

import json
import re

import pytest
from flask import Flask
from sqlalchemy import text

from models.kernel.session import statement
from orchestrator_web.cursors import write_event_cursor
from tests.conftest import forget
from tests.web.server import Server, run, until
from tests.web.service import Api, assert_problem, each, key_with
from tests.web.streaming import PATHS, Blocks, Client, Messages, listening, opened, scan

BOTH = pytest.mark.parametrize("kind", [Blocks, Messages])


def path_of(form: str) -> str:
    return PATHS[Blocks] + form


BAD = [
    ("ticket_id=tick-1", 422, "invalid"),
    ("ticket_id=tick-20260101-0000000g", 422, "invalid"),
    ("ticket_id=tick-20260101-00000000", 404, "ticket_not_found"),
    ("topic=refused", 422, "invalid"),
    ("topic=*", 422, "invalid"),
    ("topic=", 422, "invalid"),
    ("target=a%20b", 422, "invalid"),
    ("target=%00", 422, "invalid"),
    ("command=" + "x" * 257, 422, "invalid"),
    ("command=", 422, "invalid"),
    ("target=", 422, "invalid"),
    ("ticket_id=", 422, "invalid"),
    ("unknown=1", 422, "invalid"),
    ("topic=ticket_created&topic=ticket_queued", 422, "invalid"),
    ("after=", 422, "invalid"),
    ("after=0", 422, "cursor_invalid"),
    ("after=latest", 422, "cursor_invalid"),
    ("after=-1.aaaaaaaaaaaaaaaa", 422, "cursor_invalid"),
    ("after=1.aaaaaaaaaaaaaaaa", 422, "cursor_invalid"),
    ("after=99999999999999999999.aaaaaaaaaaaaaaaa", 422, "invalid"),
    ("after=%D9%A1.aaaaaaaaaaaaaaaa", 422, "cursor_invalid"),
    ("after=%ED%A0%80", 422, "cursor_invalid"),
    ("after=" + "1" * 65, 422, "invalid"),
]


@each("query, status, code", BAD)
def test_a_bad_question_is_refused_with_what_is_wrong(api: Api, query: str, status: int, code: str) -> None:
    problem = assert_problem(api.get(f"/tickets/events?{query}"), status)
    assert problem["code"] in {code, "cursor_invalid"} if "9999" in query else problem["code"] == code
    if status == 422:
        assert problem["errors"][0]["pointer"].strip("/") == re.split("[=&]", query)[0]


@BOTH
def test_a_websocket_is_refused_as_any_request_is(server: Server, kind: type[Client]) -> None:
    async def scenario() -> None:
        async with server.running():
            for query, status, _ in BAD:
                async with listening(server, kind, query) as client:
                    assert client.status == status, query
                    assert json.loads(client.body)["status"] == status
            server.credential = ""
            async with listening(server, kind) as client:
                assert (client.status, json.loads(client.body)["code"]) == (401, "credential_missing")

    run(scenario)


def test_only_callers_who_may_read_may_listen(app: Flask, anonymous: Api) -> None:
    writer = Api(app, key_with("write", name="writer"))
    for path in PATHS.values():
        assert_problem(anonymous.get(path), 401)
        assert_problem(writer.get(path), 403)


def test_a_plain_request_for_the_websocket_is_told_to_upgrade(api: Api) -> None:
    answer = api.get("/ws/tickets")
    assert assert_problem(answer, 426)["code"] == "upgrade_required"
    assert answer.headers["Upgrade"] == "websocket"


def test_a_page_of_another_origin_may_not_connect(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CORS_ORIGINS", "https://good.example")
    forget()
    allowed = {"https://evil.example": False, "null": False, "https://good.example": True, "http://here:8000": True}

    async def scenario() -> None:
        async with server.running():
            for origin, may in allowed.items():
                headers = [("origin", origin), ("host", "here:8000")]
                async with listening(server, Messages, headers=headers) as client:
                    if may:
                        await opened(client)
                    else:
                        assert (client.status, json.loads(client.body)["code"]) == (403, "origin_not_allowed")

    run(scenario)


def test_server_sent_events_are_not_told_over_a_websocket(server: Server) -> None:
    """Else a page of another origin could read them there."""

    async def scenario() -> None:
        async with server.running(), listening(server, Messages, path=PATHS[Blocks]) as client:
            assert (client.status, json.loads(client.body)["code"]) == (404, "not_found")
            assert not server.application.streams.open

    run(scenario)


def test_a_page_offers_its_credential_as_a_protocol(server: Server) -> None:
    """A browser's script cannot set a handshake's headers; it can name protocols."""
    key, server.credential = key_with("read", name="page"), ""

    async def scenario() -> None:
        async with server.running():
            for protocols in (f"bearer, {key}", f"bearer,{key}"):
                headers = [("sec-websocket-protocol", protocols)]
                async with listening(server, Messages, headers=headers) as client:
                    await opened(client)
                    assert client.sent[0]["subprotocol"] == "bearer"
                async with listening(server, Blocks, headers=headers) as client:
                    assert client.status == 401
            for protocols in (f"basic, {key}", "bearer", "bearer,", "bearer, x", key):
                headers = [("sec-websocket-protocol", protocols)]
                async with listening(server, Messages, headers=headers) as client:
                    assert client.status == 401, protocols

    run(scenario)


def test_a_head_request_opens_no_stream(server: Server) -> None:
    async def scenario() -> None:
        async with server.running():
            heard = await server.call("HEAD", "/tickets/events")
            assert heard is not None
            assert heard.status == 200
            assert not server.application.streams.open

    run(scenario)


def test_a_cursor_of_another_installation_or_stream_is_refused(server: Server, api: Api) -> None:
    scan(api)
    mine = write_event_cursor("tickets", 1)
    assert api.get(path_of(f"?after={mine}")).status_code == 200
    seq, _, signature = mine.partition(".")
    altered = [f"2.{signature}", f"{seq}.{signature[::-1]}", f"0{mine}", mine[:-1], f"{mine}A", mine + "%0A"]
    foreign = [write_event_cursor("runs", 1), *altered]
    with statement() as connection:
        connection.execute(text("UPDATE installation SET cursor_key = 'another installation'"))
    forget()
    foreign.append(write_event_cursor("tickets", 1))
    with statement() as connection:
        connection.execute(text("UPDATE installation SET cursor_key = 'yet another'"))
    forget()
    for cursor in foreign:
        assert assert_problem(api.get(path_of(f"?after={cursor}")), 422)["code"] == "cursor_invalid", cursor
        if "%" not in cursor:
            refused = api.get(path_of(""), headers={"Last-Event-ID": cursor})
            assert assert_problem(refused, 422)["errors"][0]["pointer"] == "/Last-Event-ID"


def test_a_cursor_of_a_ledger_that_was_set_back_is_refused(api: Api) -> None:
    scan(api)
    assert_problem(api.get(path_of(f"?after={write_event_cursor('tickets', 1000)}")), 422)


def test_a_cursor_from_before_what_is_kept_is_gone_and_says_where_to_restart(server: Server, api: Api) -> None:
    scan(api)
    with statement() as connection:
        connection.execute(text("SELECT setval('ledger_seq', 5000001, false)"))
    mine = scan(api)
    with statement() as connection:
        connection.execute(text("ALTER TABLE ledger DETACH PARTITION ledger_0000000000000000001"))
    problem = assert_problem(api.get(path_of(f"?after={write_event_cursor('tickets', 1)}")), 410)
    assert problem["code"] == "cursor_expired"
    assert "after=earliest" in problem["detail"]

    async def scenario() -> None:
        async with server.running(), listening(server, query="after=earliest") as client:
            assert [event["ticket_id"] for event in await client.first(1)] == [mine]

    run(scenario)


@BOTH
def test_more_streams_than_allowed_are_refused_with_when_to_come_back(
    server: Server, kind: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STREAM_READERS", "2")
    forget()

    async def scenario() -> None:
        async with server.running(), listening(server, kind), listening(server, kind) as second:
            async with listening(server, kind) as third:
                assert third.status == 503
                assert third.headers["retry-after"] == "5"
                assert json.loads(third.body)["code"] == "too_many_streams"
            second.left.set()
            await until(lambda: len(server.application.streams.open) == 1)
            async with listening(server, kind) as fourth:
                await opened(fourth)

    run(scenario)


@BOTH
def test_one_client_cannot_take_the_streams_of_all(
    server: Server, kind: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STREAM_READERS_PER_CLIENT", "1")
    forget()
    mine = [("authorization", f"Bearer {key_with('read', name='one')}")]
    others = [("authorization", f"Bearer {key_with('read', name='other')}")]
    server.credential = ""

    async def scenario() -> None:
        async with server.running(), listening(server, kind, headers=mine) as first:
            await opened(first)
            async with listening(server, kind, headers=mine) as second:
                assert (second.status, second.headers["retry-after"]) == (429, "5")
                assert json.loads(second.body)["code"] == "too_many_streams_of_client"
            async with listening(server, kind, headers=others) as third:
                await opened(third)
            first.left.set()
            await until(lambda: not server.application.streams.open)
            async with listening(server, kind, headers=mine) as fourth:
                await opened(fourth)

    run(scenario)
