"""The engine's event streams beside those of the tickets: one feed, each event byte for byte, resumed anywhere."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from models.engine.states import RUN
from models.kernel.session import statement
from models.kernel.webhooks.feeding import SOURCES, feed_webhooks
from models.kernel.webhooks.subscriptions import create_webhook
from orchestrator_tasks.engine import tasks
from tests.engine import desk
from tests.web.server import Server, run, until
from tests.web.service import Api, assert_problem, each
from tests.web.streaming import Blocks, Client, Messages, listening, opened, scan

PATHS = {Blocks: "/engine/outputs/events", Messages: "/ws/engine"}
BOTH = pytest.mark.parametrize("kind", [Blocks, Messages])
LIFE = ["EngineRunStarted", "EngineRunCompleted"]


def outputs_of(server: Server, kind: type[Client], query: str = "") -> Any:
    return listening(server, kind, query, path=PATHS[kind])


def planned() -> list[dict[str, Any]]:
    """A run of each symbol."""
    desk.running()
    at = desk.START_MS + desk.INTERVAL_MS
    desk.append(desk.inputs(at), desk.inputs(at, "ETH-USD"), now_ms=at)
    assert desk.plan(at + desk.DELAY_MS + 1).runs == 2
    return desk.runs()


def told(client: Client) -> list[str]:
    """Each event's text, byte for byte."""
    if isinstance(client, Blocks):
        return [block["data"] for block in client.blocks() if block.get("event", "").startswith(("Engine", "Hyst"))]
    texts = [message["text"] for message in client.sent if message["type"] == "websocket.send"]
    return [text.partition(',"data":')[2][:-1] for text in texts if '"data":' in text]


async def first(client: Client, count: int) -> list[str]:
    await until(lambda: len(told(client)) >= count)
    return told(client)


@BOTH
def test_a_stream_tells_each_output_byte_for_byte(server: Server, api: Api, kind: type[Client]) -> None:
    async def scenario() -> None:
        planned()
        async with server.running(), outputs_of(server, kind) as client:
            await opened(client)
            desk.finish_all()
            assert await first(client, 4) == [row["event"] for row in desk.outputs()]

    run(scenario)


@BOTH
def test_a_stream_resumes_behind_any_output_and_a_page_s_cursor(server: Server, api: Api, kind: type[Client]) -> None:
    async def scenario() -> None:
        planned()
        desk.finish_all()
        texts = [row["event"] for row in desk.outputs()]
        cursor = "earliest"
        async with server.running():
            for place in range(4):
                async with outputs_of(server, kind, f"after={cursor}") as client:
                    assert await first(client, 4 - place) == texts[place:]
                cursor = api.get(f"/engine/outputs?limit=1&after={cursor}").get_json()["next"]

    run(scenario)


def test_a_websocket_s_message_has_a_type_and_the_cursor_beside_the_event(server: Server, api: Api) -> None:
    async def scenario() -> None:
        planned()
        async with server.running(), outputs_of(server, Messages) as client:
            await opened(client)
            desk.finish_all()
            await first(client, 4)
            messages = client.events()
            assert [set(message) for message in messages] == [{"type", "id", "seq", "data"}] * 4
            assert [message["type"] for message in messages[:2]] == LIFE
            assert [message["seq"] for message in messages] == [row["seq"] for row in desk.outputs()]
            async with outputs_of(server, Messages, f"after={messages[2]['id']}") as other:
                assert await first(other, 1) == told(client)[3:]

    run(scenario)


@BOTH
def test_filters_choose_by_symbol_type_and_run(server: Server, api: Api, kind: type[Client]) -> None:
    async def scenario() -> None:
        runs = planned()
        desk.finish_all()
        texts = [row["event"] for row in desk.outputs()]
        asked = {
            "symbol=ETH-USD": texts[2:],
            "event_type=EngineRunStarted": texts[::2],
            f"run_id={runs[0]['id']}": texts[:2],
            "symbol=BTC-USD&event_type=EngineRunCompleted": texts[1:2],
        }
        async with server.running():
            for query, expected in asked.items():
                async with outputs_of(server, kind, f"after=earliest&{query}") as client:
                    assert await first(client, len(expected)) == expected

    run(scenario)


def test_one_feed_tells_tickets_and_runs_each_to_their_own_readers(server: Server, api: Api) -> None:
    async def scenario() -> None:
        planned()
        async with server.running(), listening(server) as tickets, outputs_of(server, Blocks) as outputs:
            desk.finish_all()
            ticket_id = scan(api)
            assert len(await first(outputs, 4)) == 4
            assert [event["ticket_id"] for event in await tickets.first(1)] == [ticket_id]
            assert all("ticket_id" not in orjson.loads(text) for text in told(outputs))

    run(scenario)


@each("query", ["after=nonsense", "event_type=Other", "run_id=1", "symbol=", "colour=red"])
def test_a_wrong_question_is_refused_before_a_stream_begins(api: Api, query: str) -> None:
    problem = assert_problem(api.get(f"/engine/outputs/events?{query}"), 422)
    assert problem["errors"][0]["pointer"] == "/" + query.partition("=")[0]


def test_a_cursor_of_the_tickets_is_none_of_the_outputs(server: Server, api: Api) -> None:
    async def scenario() -> None:
        async with server.running(), listening(server) as tickets:
            cursor = await opened(tickets)
        problem = assert_problem(api.get(f"/engine/outputs/events?after={cursor}"), 422)
        assert problem["code"] == "cursor_invalid"

    run(scenario)


def test_a_subscription_is_sent_the_outputs_of_its_tenant(database: str) -> None:
    assert SOURCES[RUN.kind].subject is tasks.transitions.SUBJECT
    draft = {"url": "https://example.com/hook", "topics": ["engine_run_*", "hysteresis_*"], "description": ""}
    with statement() as connection:
        create_webhook(connection, draft, desk.CALLER)
    planned()
    desk.finish_all()
    feed_webhooks()
    payloads = [row["payload"] for row in desk.rows("SELECT payload FROM webhook_deliveries ORDER BY seq")]
    assert [payload["type"] for payload in payloads] == ["engine_run_started", "engine_run_completed"] * 2
    assert [payload["data"]["data"] for payload in payloads] == [orjson.loads(row["event"]) for row in desk.outputs()]
    assert payloads[0]["data"]["symbol"] == "BTC-USD"
