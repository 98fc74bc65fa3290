"""Event streams: what they tell, from where on, to whom, and why they end."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from sqlalchemy import text

from models.kernel import clients
from models.kernel.errors import Unavailable
from models.kernel.session import transaction
from models.tickets.events import PUBLIC_TOPICS
from orchestrator_web import feed, streams, transports
from tests.conftest import forget
from tests.web.server import Server, run, until
from tests.web.service import DONE, DRIVE, Api, finished, key_with, rows
from tests.web.streaming import Blocks, Client, Messages, ended, listening, opened, scan

PEER = ("192.0.2.1", 50_000)
BOTH = pytest.mark.parametrize("kind", [Blocks, Messages])
LIFE = ["ticket_created", "ticket_queued", "execution_started", "execution_completed"]
MEMBERS = ["id", "seq", "type", "ticket_id", "command", "target", "revision", "from", "to", "at"]


@BOTH
def test_a_stream_tells_a_ticket_s_life_in_order(server: Server, api: Api, kind: type[Client]) -> None:
    async def scenario() -> None:
        async with server.running(), listening(server, kind) as client:
            ticket_id = finished(api, DONE, **DRIVE, target="robot-1")
            events = await client.heard(LIFE[-1])
            assert [event["type"] for event in events] == LIFE
            assert [event["revision"] for event in events] == [1, 2, 3, 4]
            assert all(list(event) == [*MEMBERS, "correlation_id", "data"] for event in events)
            last = events[-1]
            assert (last["ticket_id"], last["command"], last["target"]) == (ticket_id, "drive", "robot-1")
            assert (last["from"], last["to"]) == ("executing", "completed")
            assert last["data"]["result"] == DONE.result
            told = rows("SELECT seq, correlation_id FROM ledger WHERE subject_id = :id ORDER BY seq", id=ticket_id)
            assert [(e["seq"], e["correlation_id"]) for e in events] == [tuple(row.values()) for row in told]

    run(scenario)


def test_server_sent_events_have_an_id_a_type_and_one_line_of_data(server: Server, api: Api) -> None:
    async def scenario() -> None:
        async with server.running(), listening(server) as client:
            assert (client.status, client.headers["content-type"]) == (200, "text/event-stream")
            assert client.headers["cache-control"] == "no-store"
            assert "content-length" not in client.headers
            assert client.headers["x-correlation-id"]
            scan(api, metadata={"text": "two\nlines\r\u2028"})
            (event,) = await client.first(1)
            opened, told = client.blocks()
            assert opened == {"retry": "1000", "id": opened["id"]}
            assert set(told) == {"id", "event", "data"}
            assert (told["id"], told["event"]) == (event["id"], event["type"])

    run(scenario)


@BOTH
def test_without_a_cursor_a_stream_begins_now(server: Server, api: Api, kind: type[Client]) -> None:
    async def scenario() -> None:
        scan(api)
        async with server.running(), listening(server, kind) as client:
            mine = scan(api)
            assert [event["ticket_id"] for event in await client.first(1)] == [mine]

    run(scenario)


@BOTH
def test_a_stream_resumes_behind_any_event_with_nothing_lost_or_doubled(
    server: Server, api: Api, kind: type[Client]
) -> None:
    async def scenario() -> None:
        for _ in range(3):
            finished(api)
        async with server.running():
            async with listening(server, kind, "after=earliest") as whole:
                events = await whole.first(12)
            seqs = [event["seq"] for event in events]
            assert seqs == sorted(set(seqs))
            for place, event in enumerate(events[:-1]):
                async with listening(server, kind, f"after={event['id']}") as client:
                    assert await client.first(11 - place) == events[place + 1 :]
            async with listening(server, kind, f"after={events[-1]['id']}") as client:
                mine = scan(api)
                assert [event["ticket_id"] for event in await client.first(1)] == [mine]

    run(scenario)


@BOTH
def test_what_is_told_at_the_opening_can_be_resumed_from(server: Server, api: Api, kind: type[Client]) -> None:
    """A client that is cut off before its first event misses none."""

    async def scenario() -> None:
        async with server.running():
            scan(api)
            async with listening(server, kind) as client:
                await until(lambda: client.body or client.problem() or len(client.sent) > 1)
                cursor = client.last_id()
            mine = scan(api)
            async with listening(server, kind, f"after={cursor}") as client:
                assert [event["ticket_id"] for event in await client.first(1)] == [mine]

    run(scenario)


def test_last_event_id_goes_before_after(server: Server, api: Api) -> None:
    """A browser reconnects to the address it was given, and says in the header how far it has come."""

    async def scenario() -> None:
        for _ in range(3):
            scan(api)
        async with server.running():
            async with listening(server, query="after=earliest") as client:
                events = await client.first(3)
            headers = [("last-event-id", events[1]["id"])]
            async with listening(server, query="after=earliest", headers=headers) as client:
                assert await client.first(1) == events[2:]

    run(scenario)


@BOTH
@pytest.mark.parametrize("past", [False, True])
def test_filters_select_by_ticket_command_target_and_topic(
    server: Server, api: Api, kind: type[Client], past: bool
) -> None:
    tickets = [scan(api), *(str(api.create(**DRIVE, target=robot)["id"]) for robot in ("r1", "r2"))]

    def happen() -> None:
        for ticket_id in tickets:
            assert api.accept(ticket_id).status_code == 202

    wanted: dict[str, set[tuple[str, str]]] = {
        f"ticket_id={tickets[1]}": {(tickets[1], "ticket_queued")},
        "command=scan": {(tickets[0], "ticket_queued")},
        "target=r2&topic=ticket_queued": {(tickets[2], "ticket_queued")},
        "command=drive&topic=ticket_queued": {(t, "ticket_queued") for t in tickets[1:]},
    }

    async def scenario() -> None:
        async with server.running(), contextlib.AsyncExitStack() as open_streams:
            async with listening(server) as client:
                cursor = await opened(client)
            if past:
                happen()
            for query, expected in wanted.items():
                client = await open_streams.enter_async_context(listening(server, kind, f"{query}&after={cursor}"))
                asked.append((client, expected))
            if not past:
                happen()
            for client, expected in asked:
                found = await client.first(len(expected))
                assert {(event["ticket_id"], event["type"]) for event in found} == expected

    asked: list[tuple[Client, set[tuple[str, str]]]] = []
    run(scenario)


def test_refusals_are_no_events_of_a_ticket(server: Server, api: Api) -> None:
    async def scenario() -> None:
        ticket_id = finished(api)
        assert api.accept(ticket_id).status_code == 409
        scan(api)
        async with server.running(), listening(server, query="after=earliest") as client:
            events = await client.first(5)
            assert {event["type"] for event in events} <= set(PUBLIC_TOPICS)
            assert [event["type"] for event in events] == [*LIFE, "ticket_created"]

    run(scenario)


def test_what_commits_late_is_told_in_its_place(server: Server, api: Api) -> None:
    """A transaction draws its number, another commits behind it; the stream waits, and loses neither."""
    insert = """INSERT INTO ledger (subject_kind, subject_id, revision, topic, actor, correlation_id, body)
                VALUES ('ticket', 'late', 1, 'ticket_created', 'test', 'c', '{}')"""

    async def scenario() -> None:
        async with server.running(), listening(server) as client:
            with transaction() as late:
                late.execute(text(insert))
                early = scan(api)
                looked = "SELECT count(*) AS n FROM pg_stat_activity WHERE query LIKE '%virtualtransaction = ANY%'"
                await until(lambda: rows(looked)[0]["n"] > 0)
                assert client.events() == []
            assert [event["ticket_id"] for event in await client.first(2)] == ["late", early]

    run(scenario)


def test_events_go_on_after_the_database_was_away(server: Server, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    read, failures = feed.Follower.read, iter([Unavailable("away"), RuntimeError("a bug"), Unavailable("away")])

    def sometimes(self: Any, connection: Any, limit: int) -> Any:
        if failure := next(failures, None):
            raise failure
        return read(self, connection, limit)

    async def scenario() -> None:
        monkeypatch.setattr(feed, "LONGEST_BACKOFF", 0.01)
        async with server.running(), listening(server) as client:
            monkeypatch.setattr(feed.Follower, "read", sometimes)
            mine = scan(api)
            assert [event["ticket_id"] for event in await client.first(1)] == [mine]

    run(scenario)


def test_an_event_that_could_not_be_rendered_is_not_skipped(
    server: Server, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with server.running(), listening(server) as client:
            monkeypatch.setattr(feed, "LONGEST_BACKOFF", 0.01)
            followed = server.application.streams.feed
            render, failed = followed.render, list[int]()

            def once(row: Any) -> Any:
                if not failed:
                    failed.append(row["seq"])
                    raise RuntimeError("a bug")
                return render(row)

            followed.render = once
            mine = scan(api)
            assert [event["ticket_id"] for event in await client.first(1)] == [mine]
            assert failed

    run(scenario)


@BOTH
def test_a_quiet_stream_says_that_it_lives_and_how_far_it_has_come(
    server: Server, api: Api, kind: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.01)

    async def scenario() -> None:
        ticket_id = scan(api)
        async with server.running():
            async with listening(server, kind, f"ticket_id={ticket_id}") as client:
                begun = client.last_id()
                for _ in range(3):
                    scan(api)
                await until(lambda: int(client.last_id().split(".")[0]) >= int(begun.split(".")[0]) + 3)
                assert client.events() == []
                cursor = client.last_id()
            assert api.accept(ticket_id).status_code == 202
            async with listening(server, kind, f"ticket_id={ticket_id}&after={cursor}") as client:
                assert [event["type"] for event in await client.first(1)] == ["ticket_queued"]

    run(scenario)


@BOTH
def test_a_reader_that_is_too_far_behind_is_cut_off_with_a_reason(
    server: Server, api: Api, kind: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STREAM_BUFFER", "10")
    forget()

    async def scenario() -> None:
        async with server.running(), listening(server, kind) as slow, listening(server, kind) as other:
            first = await opened(slow)
            slow.taking.clear()
            made = [scan(api) for _ in range(30)]
            assert [event["ticket_id"] for event in await other.first(30)] == made
            (stream,) = (s for s in server.application.streams.open if s.problem is not None)
            assert len(stream.waiting) == 0
            slow.taking.set()
            problem = await ended(slow)
            assert (problem["status"], problem["code"]) == (408, "reader_too_slow")
            if kind is Messages:
                await until(lambda: [m for m in slow.sent if m["type"] == "websocket.close"])
                assert slow.closed == (4408, "reader_too_slow")
            had = slow.events()
            async with listening(server, kind, f"after={slow.last_id() if had else first}") as again:
                events = had + await again.first(30 - len(had))
            assert [event["ticket_id"] for event in events] == made

    run(scenario)


def test_a_reader_that_takes_no_data_at_all_is_cut_off(
    server: Server, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "SEND_SECONDS", 0.05)
    monkeypatch.setattr(streams, "LAST_WORD_SECONDS", 0.05)
    dropped: list[Any] = []
    monkeypatch.setattr(streams, "drop_connection", dropped.append)

    async def scenario() -> None:
        async with server.running(), listening(server) as client:
            await opened(client)
            client.taking.clear()
            scan(api)
            await until(lambda: not server.application.streams.open)
            assert client.events() == []
            assert dropped == [PEER], "a body that ends as if it were whole would be a lie"

    run(scenario)


@BOTH
@pytest.mark.parametrize("how", ["revoked", "disabled", "demoted"])
def test_a_stream_ends_soon_after_its_credential_no_longer_holds(
    server: Server, api: Api, kind: type[Client], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "RECHECK_SECONDS", 0.01)
    monkeypatch.setattr("orchestrator_web.auth.CACHE_SECONDS", 0.05)
    server.credential = key = key_with("read", name="guest")

    def end() -> None:
        with transaction() as connection:
            if how == "revoked":
                clients.revoke_key(connection, key.split("_")[1])
            elif how == "disabled":
                clients.set_enabled(connection, "guest", False)
            else:
                clients.create_client(connection, "guest", ["write"])

    async def scenario() -> None:
        async with server.running(), listening(server, kind) as client:
            scan(api)
            await client.first(1)
            end()
            problem = await ended(client)
            assert problem["status"] == (403 if how == "demoted" else 401)
            if kind is Messages:
                await until(lambda: [m for m in client.sent if m["type"] == "websocket.close"])
                assert client.closed[0] == 4000 + problem["status"]
            await until(lambda: not server.application.streams.open)

    run(scenario)


def test_a_revocation_holds_within_five_seconds() -> None:
    from orchestrator_web import auth

    assert auth.CACHE_SECONDS + streams.RECHECK_SECONDS <= 4.5


def test_streams_outlive_a_check_that_cannot_be_made(server: Server, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RECHECK_SECONDS", 0.01)
    asked: list[str] = []

    def away(_credential: str) -> None:
        asked.append("again")
        raise Unavailable("The database cannot answer right now")

    async def scenario() -> None:
        async with server.running(), listening(server) as client:
            monkeypatch.setattr("orchestrator_web.auth.client_of", away)
            await until(lambda: len(asked) > 3)
            monkeypatch.undo()
            mine = scan(api)
            assert [event["ticket_id"] for event in await client.first(1)] == [mine]

    run(scenario)


@BOTH
def test_a_process_that_stops_ends_its_streams_at_once_with_a_reason(
    server: Server, api: Api, kind: type[Client]
) -> None:
    async def scenario() -> None:
        async with server.running(), listening(server, kind) as client:
            await opened(client)
            server.application.let_go()
            problem = await ended(client)
            assert (problem["status"], problem["code"], problem["retriable"]) == (503, "going_away", True)
            async with listening(server, kind) as late:
                assert late.status == 503

    run(scenario)


def test_the_ledger_is_followed_only_while_somebody_listens(server: Server, api: Api) -> None:
    async def scenario() -> None:
        async with server.running():
            followed = server.application.streams.feed
            assert followed.position is None
            async with listening(server):
                assert followed.position is not None
            await until(lambda: followed.position is None)
            async with listening(server) as client:
                mine = scan(api)
                assert [event["ticket_id"] for event in await client.first(1)] == [mine]

    run(scenario)


def test_each_event_is_encoded_once_for_all_readers(server: Server, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with server.running():
            followed, encoded = server.application.streams.feed, list[int]()
            render = followed.render
            followed.render = lambda row: encoded.append(row["seq"]) or render(row)  # type: ignore[func-returns-value]
            async with listening(server) as one, listening(server) as two, listening(server, Messages) as three:
                scan(api)
                for client in (one, two, three):
                    await client.first(1)
            assert len(encoded) == 1

    run(scenario)
