"""Idempotency-Key over HTTP: a repeated creating request creates nothing more and is answered as the first was."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, g

from models.kernel.clients import Caller
from models.tickets import operations
from orchestrator_web import idempotency, sending
from orchestrator_web.tickets import answers
from tests.web.server import Server, own_logs, run
from tests.web.service import DRIVE, Api, assert_problem, carry_out, counts, each, key_with, rows

KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
CALLER = Caller("ada", "default", frozenset({"write"}), "correlation-1")
DRAFT = {**DRIVE, "priority": "normal", "timeout_seconds": 30, "metadata": {}, "target": "default"}
ASYNC = {"Prefer": "respond-async"}


def test_a_repeated_create_makes_one_ticket_and_answers_the_same(api: Api) -> None:
    first = api.post("/ticket", json=DRIVE, headers=KEY)
    again = api.post("/ticket", json=DRIVE, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.data == first.data
    assert again.headers["Location"] == first.headers["Location"]
    assert again.content_type == first.content_type
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["X-Correlation-Id"] != first.headers["X-Correlation-Id"]
    assert counts()["tickets"] == 1


def test_without_a_key_nothing_is_remembered(api: Api) -> None:
    api.create()
    api.create()
    assert counts()["tickets"] == 2
    assert rows("SELECT * FROM idempotency_keys") == []


def test_another_body_under_the_same_key_is_422_and_makes_nothing(api: Api) -> None:
    api.post("/ticket", json=DRIVE, headers=KEY)
    refused = api.post("/ticket", json={**DRIVE, "priority": "high"}, headers=KEY)
    assert assert_problem(refused, 422)["code"] == "idempotency_key_reused"
    assert counts()["tickets"] == 1


def test_a_key_repeated_by_another_client_is_another_key(app: Flask, api: Api) -> None:
    other = Api(app, key_with("write", name="other"))
    assert (
        api.post("/ticket", json=DRIVE, headers=KEY).get_json()["id"]
        != (other.post("/ticket", json=DRIVE, headers=KEY).get_json()["id"])
    )


def test_a_refused_request_keeps_nothing_so_that_the_key_can_be_tried_again(api: Api) -> None:
    ticket_id = api.create()["id"]
    body = {"ticket_id": ticket_id, "force": False}
    api.accept(ticket_id)
    carry_out(ticket_id)
    assert_problem(api.post("/execute", json=body, headers=KEY), 409)
    assert rows("SELECT * FROM idempotency_keys") == []
    forced = api.post("/execute", json={**body, "force": True}, headers={**KEY, **ASYNC})
    assert forced.status_code == 202


@each("key", ["", " ", "a b", "x" * 256, "é", "a\tb", "\x7f", "a\x01"])
def test_a_key_that_is_none_is_422_and_points_at_the_header(api: Api, key: str) -> None:
    problem = assert_problem(api.post("/ticket", json=DRIVE, headers={"Idempotency-Key": key}), 422)
    assert [error["pointer"] for error in problem["errors"]] == ["/Idempotency-Key"]
    assert counts()["tickets"] == 0


@each("key", ["x", "x" * 255, '"quoted"', "!~", "'; DROP TABLE tickets --".replace(" ", "_")])
def test_a_key_of_any_visible_characters_works(api: Api, key: str) -> None:
    first, again = (api.post("/ticket", json=DRIVE, headers={"Idempotency-Key": key}) for _ in range(2))
    assert first.get_json() == again.get_json()


def test_the_body_is_checked_before_the_key_is_taken(api: Api) -> None:
    assert_problem(api.post("/ticket", json={"priority": 1}, headers=KEY), 422)
    assert api.post("/ticket", json=DRIVE, headers=KEY).status_code == 201


def test_two_requests_at_once_make_one_ticket_and_are_answered_alike(app: Flask, admin_key: str) -> None:
    def create(_at: int) -> tuple[int, bytes]:
        answer = Api(app, admin_key).post("/ticket", json=DRIVE, headers=KEY)
        return answer.status_code, answer.data

    with ThreadPoolExecutor(6) as pool:
        answers = set(pool.map(create, range(6)))
    assert len(answers) == 1
    assert next(iter(answers))[0] == 201
    assert counts()["tickets"] == 1


def test_a_request_whose_twin_still_runs_is_409_and_says_when_to_come_back(
    api: Api, app: Flask, admin_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = operations.create_tickets

    def slow(connection: Any, drafts: Any, caller: Any) -> Any:
        made = create(connection, drafts, caller)
        with ThreadPoolExecutor(1) as pool:
            twin = pool.submit(lambda: Api(app, admin_key).post("/ticket", json=DRIVE, headers=KEY))
            refused.append(twin.result(20))
        return made

    refused: list[Any] = []
    monkeypatch.setattr(operations, "create_tickets", slow)
    assert api.post("/ticket", json=DRIVE, headers=KEY).status_code == 201
    problem = assert_problem(refused[0], 409)
    assert (problem["code"], problem["retriable"]) == ("idempotency_key_in_use", True)
    assert refused[0].headers["Retry-After"] == "1"
    assert counts()["tickets"] == 1


def test_a_message_goes_out_after_the_commit_and_not_for_a_repetition(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(sending, "send_or_hint", lambda _queue, _sent: seen.append(counts()["jobs"]))
    ticket_id = api.create()["id"]
    for _ in range(2):
        accepted = api.post("/execute", json={"ticket_id": ticket_id}, headers={**KEY, **ASYNC})
        assert accepted.status_code == 202
    assert seen == [1]


def test_without_a_key_a_message_goes_out_before_its_answer_is_made(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket_id = api.create()["id"]
    seen: list[Any] = []
    accepted = answers.accepted
    monkeypatch.setattr(sending, "send_or_hint", lambda _queue, _sent: seen.append(counts()["jobs"]))
    monkeypatch.setattr(answers, "accepted", lambda row: seen.append("answer") or accepted(row))
    assert api.post("/execute", json={"ticket_id": ticket_id}, headers=ASYNC).status_code == 202
    assert seen == [1, "answer"]


def test_a_view_that_answers_with_an_error_keeps_nothing(app: Flask) -> None:
    @idempotency.creating
    def half(connection: Any) -> Any:
        operations.create_tickets(connection, [DRAFT], g.caller)
        return app.response_class("no", status=409)

    with app.test_request_context("/half", method="POST", headers=KEY):
        g.caller = CALLER
        assert half().status_code == 409
    assert counts()["tickets"] == 0
    assert rows("SELECT * FROM idempotency_keys") == []


def test_every_creating_operation_documents_the_header_and_no_other_does(app: Flask, anonymous: Api) -> None:
    creating = {
        (rule.rule.replace("<", "{").replace(">", "}"), "post")
        for rule in app.url_map.iter_rules()
        if idempotency.is_creating(app, rule.endpoint)
    }
    assert {("/ticket", "post"), ("/execute", "post"), ("/clients", "post")} <= creating
    document = anonymous.get("/openapi.json").get_json()
    described = {
        (path, method)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if isinstance(operation, dict) and any(p["name"] == "Idempotency-Key" for p in operation.get("parameters", []))
    }
    assert described == creating


@pytest.fixture
def server(database: str, broker: str, admin_key: str) -> Any:
    with own_logs():
        from orchestrator_web import asgi

        yield Server(asgi.Application(), admin_key)


def test_a_repeated_execute_waits_for_the_same_execution_and_answers_its_outcome(server: Server) -> None:
    async def scenario() -> None:
        async with server.running():
            made = await server.call("POST", "/ticket", DRIVE)
            assert made is not None
            ticket_id = made.json()["id"]
            waits = server.application.outcomes.waiting
            keyed = [*KEY.items()]
            callers = []
            for number in (1, 2):
                callers.append(
                    asyncio.create_task(server.call("POST", "/execute", {"ticket_id": ticket_id}, headers=keyed))
                )
                while sum(map(len, waits.values())) < number:
                    assert not callers[-1].done(), callers[-1].result()
                    await asyncio.sleep(0)
            await asyncio.to_thread(carry_out, ticket_id)
            first, second = await asyncio.gather(*callers)
            assert first is not None
            assert second is not None
            assert (first.status, second.status) == (200, 200)
            assert first.json()["status"] == "completed"
            assert second.body == first.body
            assert second.headers["idempotency-replayed"] == "true"
            late = await server.call("POST", "/execute", {"ticket_id": ticket_id}, headers=keyed)
            assert late is not None
            assert (late.status, late.body) == (200, first.body)

    run(scenario)
    assert rows("SELECT execution FROM tickets") == [{"execution": 1}]
