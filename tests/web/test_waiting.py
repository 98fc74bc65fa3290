"""POST /execute waits for its own outcome, holds nothing meanwhile, and is never left hanging."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from models.kernel.errors import Unavailable
from models.kernel.hints import OUTCOMES, redis_url
from models.tickets.operations import Outcome
from orchestrator_web import outcomes
from orchestrator_web.outcomes import Outcomes
from tests.conftest import forget
from tests.web.server import Server, own_logs, run, until
from tests.web.service import DRIVE, REFUSED, carry_out, rows, settle, take

NEVER = 1e6
AT_ONCE = 0.0


@pytest.fixture
def asgi() -> Any:
    with own_logs():
        from orchestrator_web import asgi

        yield asgi


@pytest.fixture
def server(database: str, broker: str, admin_key: str, asgi: Any) -> Server:
    return Server(asgi.Application(), admin_key)


@pytest.fixture
def only_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sweep ever comes to help."""
    monkeypatch.setattr(outcomes, "SWEEP_SECONDS", NEVER)


@pytest.fixture
def no_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hint is lost; the sweep alone looks, without a pause."""
    monkeypatch.setattr(outcomes, "SWEEP_SECONDS", AT_ONCE)


@pytest.fixture
def bell(broker: str) -> Any:
    with redis.Redis.from_url(redis_url(broker)) as client:
        yield client


async def hint(bell: Any, ticket_id: str | bytes) -> None:
    """What a worker publishes, once the process listens."""
    await until(lambda: bell.pubsub_numsub(OUTCOMES)[0][1])
    bell.publish(OUTCOMES, ticket_id)


async def created(server: Server) -> str:
    made = await server.call("POST", "/ticket", DRIVE)
    assert made is not None
    return str(made.json()["id"])


async def waiting_for(server: Server, ticket_id: str, **members: Any) -> asyncio.Task[Any]:
    """A client that waits for an execution's outcome, seen to wait."""
    waits = server.application.outcomes.waiting
    before = sum(map(len, waits.values()))
    client = asyncio.create_task(server.call("POST", "/execute", {"ticket_id": ticket_id, **members}))
    await until(lambda: client.done() or sum(map(len, waits.values())) > before)
    assert not client.done(), client.result()
    return client


def test_a_completed_execution_is_200_with_its_result(server: Server, bell: Any, only_hints: None) -> None:
    async def scenario() -> None:
        async with server.running():
            ticket_id = await created(server)
            client = await waiting_for(server, ticket_id)
            carry_out(ticket_id, Outcome("completed", result={"distance_traveled": 7.5}))
            await hint(bell, ticket_id)
            heard = await client
            body = heard.json()
            assert heard.status == 200
            assert heard.headers["content-type"] == "application/json"
            assert not heard.headers.keys() & {"location", "orchestrator-awaits"}
            assert int(heard.headers["content-length"]) == len(heard.body)
            assert body.pop("execution_time_ms") >= 0
            assert body == {
                "ticket_id": ticket_id, "status": "completed", "result": {"distance_traveled": 7.5}, "error": None,
                "error_code": None, "message": "Execution completed successfully",
            }  # fmt: skip

    run(scenario)


def test_one_hint_names_all_that_ended_together(server: Server, bell: Any, only_hints: None) -> None:
    async def scenario() -> None:
        async with server.running():
            tickets = [await created(server) for _ in range(3)]
            clients = [await waiting_for(server, ticket_id) for ticket_id in tickets]
            for ticket_id in tickets:
                carry_out(ticket_id, Outcome("completed", result={}))
            await hint(bell, " ".join(tickets))
            assert [(await client).json()["ticket_id"] for client in clients] == tickets

    run(scenario)


def test_a_failed_execution_is_200_too_and_its_status_says_so(server: Server, bell: Any, only_hints: None) -> None:
    async def scenario() -> None:
        async with server.running():
            ticket_id = await created(server)
            client = await waiting_for(server, ticket_id)
            carry_out(ticket_id, REFUSED)
            await hint(bell, ticket_id)
            heard = await client
            body = heard.json()
            assert (heard.status, body["status"], body["error"]) == (200, "failed", REFUSED.error)
            assert body["message"] == f"Execution failed: {REFUSED.error}"

    run(scenario)


def test_a_cancelled_execution_releases_who_waits_for_it(server: Server, bell: Any, only_hints: None) -> None:
    async def scenario() -> None:
        async with server.running():
            ticket_id = await created(server)
            client = await waiting_for(server, ticket_id)
            cancelled = await server.call("POST", f"/ticket/{ticket_id}/cancel")
            assert cancelled is not None
            assert cancelled.status == 200
            await hint(bell, ticket_id)
            body = (await client).json()
            assert (body["status"], body["message"]) == ("cancelled", "Execution cancelled: Cancelled by admin")

    run(scenario)


def test_the_answer_keeps_the_caller_s_correlation_id(server: Server, no_hints: None) -> None:
    async def scenario() -> None:
        async with server.running():
            ticket_id = await created(server)
            own = [("x-correlation-id", "waited-1")]
            body = {"ticket_id": ticket_id}
            client = asyncio.create_task(server.call("POST", "/execute", body, headers=own))
            await until(lambda: server.application.outcomes.waiting)
            carry_out(ticket_id)
            heard = await client
            assert heard is not None
            assert heard.headers["x-correlation-id"] == "waited-1"

    run(scenario)


def test_a_lost_hint_costs_a_sweep_and_no_caller(server: Server, no_hints: None) -> None:
    async def scenario() -> None:
        async with server.running():
            ticket_id = await created(server)
            client = await waiting_for(server, ticket_id)
            carry_out(ticket_id)
            assert (await client).json()["status"] == "completed"

    run(scenario)


def test_a_hint_that_comes_before_its_caller_waits_is_remembered(only_hints: None) -> None:
    async def scenario() -> None:
        found = {("tick-1", 1): {"status": "completed"}}
        waits = Outcomes(lambda asked: {pair: found[pair] for pair in asked if pair in found})
        answering = asyncio.create_task(waits.answer())
        waits.hear("tick-1")
        assert await waits.wait(("tick-1", 1), 10.0) == {"status": "completed"}
        answering.cancel()

    run(scenario)


def test_a_forced_re_run_does_not_change_what_an_earlier_waiter_is_told(
    server: Server, bell: Any, only_hints: None
) -> None:
    async def scenario() -> None:
        async with server.running():
            ticket_id = await created(server)
            first = await waiting_for(server, ticket_id)
            carry_out(ticket_id, Outcome("completed", result={"run": 1}))
            second = await waiting_for(server, ticket_id, force=True)
            carry_out(ticket_id, REFUSED)
            await hint(bell, ticket_id)
            assert (await first).json()["result"] == {"run": 1}
            assert (await second).json()["error"] == REFUSED.error

    run(scenario)


def test_a_client_that_leaves_is_forgotten_and_its_execution_goes_on(server: Server, no_hints: None) -> None:
    async def scenario() -> None:
        async with server.running():
            ticket_id = await created(server)
            left = asyncio.Event()
            body = {"ticket_id": ticket_id}
            client = asyncio.create_task(server.call("POST", "/execute", body, left=left))
            await until(lambda: server.application.outcomes.waiting)
            left.set()
            assert await client is None
            assert server.application.outcomes.waiting == {}
            carry_out(ticket_id)
            read = await server.call("GET", f"/ticket/{ticket_id}")
            assert read is not None
            assert read.json()["status"] == "completed"

    run(scenario)


def test_when_the_time_is_up_the_caller_is_told_202_and_where_to_look(
    server: Server, asgi: Any, monkeypatch: pytest.MonkeyPatch, only_hints: None
) -> None:
    monkeypatch.setattr(asgi, "WAIT_MARGIN_SECONDS", -600.0)  # all that 300 + 300 seconds allow

    async def scenario() -> None:
        async with server.running():
            ticket_id = await created(server)
            heard = await server.call("POST", "/execute", {"ticket_id": ticket_id})
            assert heard is not None
            assert (heard.status, heard.headers["location"]) == (202, f"/ticket/{ticket_id}")
            assert heard.json()["status"] == "queued"
            assert server.application.outcomes.waiting == {}

    run(scenario)


def test_a_process_that_ends_lets_every_waiting_caller_go_with_202(server: Server, only_hints: None) -> None:
    async def scenario() -> None:
        async with server.running():
            clients = [await waiting_for(server, await created(server)) for _ in range(3)]
            await server.shut_down()
            assert [(await client).status for client in clients] == [202, 202, 202]

    run(scenario)
    assert rows("SELECT role FROM processes") == []


def test_waiting_holds_neither_a_thread_nor_a_connection(  # noqa: PLR0917 - fixtures
    database: str, broker: str, admin_key: str, asgi: Any, environment: pytest.MonkeyPatch, no_hints: None
) -> None:
    environment.setenv("ORCHESTRATOR_WEB_THREADS", "2")
    environment.setenv("ORCHESTRATOR_DATABASE_POOL", "4")
    forget()
    server = Server(asgi.Application(), admin_key)

    async def scenario() -> None:
        async with server.running():
            tickets = [await created(server) for _ in range(40)]
            clients = [await waiting_for(server, ticket_id) for ticket_id in tickets]
            for path in ("/healthz", "/", "/tickets"):
                heard = await server.call("GET", path)
                assert heard is not None
                assert heard.status == 200
            for ticket_id in tickets:
                rows("UPDATE jobs SET lane = NULL, waits = false WHERE subject_id = :id RETURNING 1", id=ticket_id)
                carry_out(ticket_id)
            assert {(await client).json()["status"] for client in clients} == {"completed"}

    run(scenario)


def test_without_the_broker_a_waiting_caller_is_answered_by_the_sweep(
    database: str, admin_key: str, asgi: Any, environment: pytest.MonkeyPatch, no_hints: None
) -> None:
    environment.setenv("BROKER_URL", "redis://127.0.0.1:1/0")
    forget()
    server = Server(asgi.Application(), admin_key)

    async def scenario() -> None:
        async with server.running():
            ticket_id = await created(server)
            client = await waiting_for(server, ticket_id)
            carry_out(ticket_id)
            assert (await client).json()["status"] == "completed"

    run(scenario)


@pytest.mark.parametrize("trouble", [Unavailable("The database cannot answer right now"), RuntimeError("a bug")])
def test_a_look_that_fails_is_not_the_last_one(no_hints: None, trouble: Exception) -> None:
    looks: list[int] = []

    def read(asked: list[tuple[str, int]]) -> dict[tuple[str, int], dict[str, str]]:
        looks.append(len(asked))
        if len(looks) < 3:
            raise trouble
        return {pair: {"status": "completed"} for pair in asked}

    async def scenario() -> None:
        waits = Outcomes(read)
        tasks = [asyncio.create_task(waits.answer()), asyncio.create_task(waits.sweep())]
        assert await waits.wait(("tick-1", 1), 10.0) == {"status": "completed"}
        for task in tasks:
            task.cancel()

    run(scenario)


def test_a_hint_that_is_no_text_does_not_end_the_listening(server: Server, bell: Any, only_hints: None) -> None:
    async def scenario() -> None:
        async with server.running():
            ticket_id = await created(server)
            client = await waiting_for(server, ticket_id)
            await hint(bell, b"\xff\xfe")
            carry_out(ticket_id)
            await hint(bell, ticket_id)
            assert (await client).json()["status"] == "completed"

    run(scenario)


def test_the_hints_that_are_remembered_are_the_latest_and_not_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "RECENT_HINTS", 3)
    waits = Outcomes(lambda _asked: {})
    for name in ("a", "b", "c", "a", "d"):
        waits.hear(name)
    assert list(waits.recent) == ["c", "a", "d"]


def test_an_outcome_recorded_while_the_request_was_still_in_flask_is_found(server: Server, no_hints: None) -> None:
    async def scenario() -> None:
        async with server.running():
            ticket_id = await created(server)
            accepted = await server.call(
                "POST", "/execute", {"ticket_id": ticket_id}, headers=[("prefer", "respond-async")]
            )
            assert accepted is not None
            assert accepted.status == 202
            settle(take(ticket_id))
            heard = await server.application.outcomes.wait((ticket_id, 1), 10.0)
            assert heard["status"] == "completed"

    run(scenario)
