"""The e-stop over HTTP: what it answers, whom it refuses, and that it answers while nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import redis
from flask import Flask
from redis.backoff import NoBackoff
from redis.retry import Retry

from models.kernel import session
from models.kernel.errors import Conflict
from models.kernel.hints import redis_url
from models.kernel.session import statement
from models.tickets import estop
from orchestrator_web import auth, guesses
from orchestrator_web.pools import Pool
from tests.web.server import Server, own_logs, run, until
from tests.web.service import DRIVE, Api, assert_problem, counts, each, key_with, refusals, rows, take

SMOKE = {"scope": "all", "reason": "smoke"}


@pytest.fixture
def writer_api(app: Flask) -> Api:
    return Api(app, key_with("read", "write", name="somebody"))


def patient(broker: str) -> redis.Redis:
    """A client that asks once and waits for a moment."""
    return redis.Redis.from_url(redis_url(broker), socket_timeout=0.05, retry=Retry(NoBackoff(), 0))


def release(api: Api, **body: Any) -> Any:
    return api.call("DELETE", "/estop", json={"reason": "all clear", **body})


def guardian_sweeps() -> None:
    with statement() as connection:
        estop.sweep_tickets(connection, "guardian")


def engaged(api: Api) -> list[str]:
    answer = api.get("/estop").get_json()
    assert answer["engaged"] is bool(answer["latches"])
    return [latch["scope"] for latch in answer["latches"]]


def test_nothing_is_engaged_at_first(api: Api) -> None:
    nothing = {"engaged": False, "latches": [], "stops": {"owed": 0, "taken": 0}, "owed_stops": []}
    assert api.get("/estop").get_json() == nothing


def test_it_says_what_it_ended_and_keeps_everything_else_from_starting(api: Api) -> None:
    moving, queued, pending = (api.create()["id"] for _ in range(3))
    for ticket_id in (moving, queued):
        api.accept(ticket_id)
    take(moving)
    made = api.post("/estop", json=SMOKE)
    assert made.status_code == 200
    answer = made.get_json()
    (latch,) = answer.pop("latches")
    assert [stop["ticket_id"] for stop in answer.pop("owed_stops")] == [moving]
    facts = {"stopped": [moving], "revoked": 1, "left": 1, "stops": {"owed": 1, "taken": 0}}
    assert answer == {"engaged": True, "changed": True, **facts}
    guardian_sweeps()
    assert (latch["scope"], latch["reason"], latch["engaged_by"]) == ("all", "smoke", "admin")
    problem = assert_problem(api.accept(pending), 409)
    assert problem["code"] == "emergency_stop"
    assert "smoke" in problem["detail"]
    for ticket_id, status, code in (
        (moving, "failed", "emergency_stop"),
        (queued, "failed", "emergency_stop"),
        (pending, "pending", None),
    ):
        ticket = api.get(f"/ticket/{ticket_id}").get_json()
        assert (ticket["status"], ticket["error_code"]) == (status, code)


def test_engaging_twice_keeps_the_first_ones_facts(api: Api, writer_api: Api) -> None:
    first = api.post("/estop", json=SMOKE).get_json()
    again = writer_api.post("/estop", json={"scope": "all", "reason": "fire"}).get_json()
    assert (again["latches"], again["stopped"]) == (first["latches"], first["stopped"])
    assert (first["changed"], again["changed"]) == (True, False)


def test_what_a_request_could_not_end_is_left_to_the_guardian(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(*_: Any, **__: Any) -> None:
        raise Conflict("Somebody else is changing this right now", code="locked")

    ticket_id = api.create()["id"]
    api.accept(ticket_id)
    with monkeypatch.context() as patch:
        patch.setattr(estop, "sweep_tickets", held)
        first = api.post("/estop", json=SMOKE)
    assert (first.status_code, first.get_json()["left"]) == (200, 1)
    assert engaged(api) == ["all"]
    again = api.post("/estop", json=SMOKE).get_json()
    assert (again["changed"], again["revoked"], again["left"]) == (False, 0, 1)
    guardian_sweeps()
    assert api.post("/estop", json=SMOKE).get_json()["left"] == 0


def test_after_a_release_what_is_ordered_anew_is_accepted(api: Api) -> None:
    ended, pending = (api.create()["id"] for _ in range(2))
    api.accept(ended)
    api.post("/estop", json=SMOKE)
    answer = release(api)
    assert answer.status_code == 200
    assert (answer.get_json()["changed"], answer.get_json()["engaged"]) == (True, False)
    assert api.accept(pending).status_code == 202
    assert_problem(api.accept(ended), 409)
    assert api.accept(ended, force=True).status_code == 202


def test_releasing_what_is_not_engaged_is_no_error_and_changes_nothing(api: Api) -> None:
    api.post("/estop", json={"scope": "rover", "reason": "smoke"})
    for scope in ("all", "crane"):
        assert release(api, scope=scope).get_json()["changed"] is False
    assert engaged(api) == ["rover"]
    assert release(api, scope="rover").get_json()["changed"] is True


def test_a_stop_over_one_robot_is_a_stop_over_that_one_alone(api: Api) -> None:
    api.post("/estop", json={"scope": "rover", "reason": "smoke"})
    assert_problem(api.accept(api.create(**DRIVE, target="rover")["id"]), 409)
    assert api.accept(api.create(**DRIVE, target="crane")["id"]).status_code == 202


@pytest.mark.parametrize("command", ["stop", "brake"])
def test_a_stop_and_a_brake_pass(api: Api, command: str) -> None:
    api.post("/estop", json=SMOKE)
    assert api.accept(api.create(command=command)["id"]).status_code == 202


def test_a_writer_may_engage_and_only_an_admin_may_release(writer_api: Api, reader: Api, anonymous: Api) -> None:
    assert_problem(anonymous.post("/estop", json=SMOKE), 401)
    assert_problem(anonymous.get("/estop"), 401)
    assert_problem(reader.post("/estop", json=SMOKE), 403)
    assert engaged(reader) == []
    assert writer_api.post("/estop", json=SMOKE).status_code == 200
    assert_problem(release(writer_api), 403)
    assert engaged(reader) == ["all"]


BAD: list[tuple[str, Any]] = [
    ("/scope", {"reason": "smoke"}),
    ("/scope", {"scope": "", "reason": "smoke"}),
    ("/scope", {"scope": None, "reason": "smoke"}),
    ("/scope", {"scope": ["all"], "reason": "smoke"}),
    ("/scope", {"scope": "ALL", "reason": "smoke"}),
    ("/scope", {"scope": "All", "reason": "smoke"}),
    ("/scope", {"scope": "all\n", "reason": "smoke"}),
    ("/scope", {"scope": " all", "reason": "smoke"}),
    ("/scope", {"scope": "two robots", "reason": "smoke"}),
    ("/scope", {"scope": "x" * 65, "reason": "smoke"}),
    ("/scope", {"scope": "r\u00f6ver", "reason": "smoke"}),
    ("/reason", {"scope": "all"}),
    ("/reason", {"scope": "all", "reason": ""}),
    ("/reason", {"scope": "all", "reason": " \n\t"}),
    ("/reason", {"scope": "all", "reason": "x" * 501}),
    ("/reason", {"scope": "all", "reason": 7}),
    ("/reason", {"scope": "all", "reason": "\x00"}),
    ("/resaon", {"scope": "all", "reason": "smoke", "resaon": "typo"}),
]


@each("pointer, body", BAD)
def test_a_request_that_is_wrong_changes_nothing(api: Api, pointer: str, body: Any) -> None:
    api.post("/estop", json={"scope": "rover", "reason": "engaged before"})
    before = rows("SELECT * FROM latches")
    asked = [("POST", body)]
    if not (pointer == "/scope" and "scope" not in body):
        asked.append(("DELETE", body))
    for method, wrong in asked:
        problem = assert_problem(api.call(method, "/estop", json=wrong), 422)
        assert pointer in [error["pointer"] for error in problem["errors"]]
    assert rows("SELECT * FROM latches") == before


@each("method", ["POST", "DELETE"])
def test_a_body_that_is_no_object_changes_nothing(api: Api, method: str) -> None:
    before = counts("ledger")
    for body, status in ((b"", 400), (b"{", 400), (b"[]", 422), (b'"all"', 422), (b"null", 422), (b'{"a": NaN}', 400)):
        assert_problem(api.call(method, "/estop", data=body, content_type="application/json"), status)
    half = b'{"scope": "all", "reason": "\\ud800"}'
    assert_problem(api.call(method, "/estop", data=half, content_type="application/json"), 400, 422)
    assert counts("ledger") == before
    assert engaged(api) == []


@each("content_type", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_a_body_is_json_whatever_its_content_type_says(api: Api, content_type: str) -> None:
    body = b'{"scope": "all", "reason": "smoke"}'
    for method in ("POST", "DELETE"):
        assert api.call(method, "/estop", data=body, content_type=content_type).get_json()["changed"] is True
    assert_problem(api.call("POST", "/estop", data=b"scope=all", content_type=content_type), 400)


@each("query", ["scope=r2", "scope=all", "x=1", "force=true"])
def test_a_query_is_refused_and_changes_nothing(api: Api, query: str) -> None:
    for scope in ("all", "r2"):
        api.post("/estop", json={"scope": scope, "reason": "smoke"})
    for method, body in (("DELETE", {"reason": "r2 ok"}), ("POST", {"scope": "r3", "reason": "x"}), ("GET", None)):
        problem = assert_problem(api.call(method, f"/estop?{query}", json=body), 422)
        assert problem["errors"][0]["pointer"] == f"/{query.partition('=')[0]}"
    assert engaged(api) == ["all", "r2"]


@each("name", ["all", "ALL", "aLl"])
def test_no_robot_may_be_called_all(api: Api, name: str) -> None:
    problem = assert_problem(api.post("/ticket", json={**DRIVE, "target": name}), 422)
    assert problem["errors"][0]["pointer"] == "/target"


def test_a_robot_whose_name_only_begins_like_that_is_one(api: Api) -> None:
    for name in ("allison", "all-terrain", "hall"):
        assert api.post("/estop", json={"scope": name, "reason": "smoke"}).status_code == 200
        assert api.create(**DRIVE, target=name)["target"] == name


def test_both_acts_are_counted_and_told(api: Api) -> None:
    api.post("/estop", json=SMOKE)
    release(api)
    events = api.get("/telemetry/events").get_json()["events"]
    told = [event for event in events if event["type"].startswith("estop_")]
    assert [event["type"] for event in told] == ["estop_engaged", "estop_released"]
    assert told[0]["data"] == {"scope": "all", "reason": "smoke", "by": "admin"}
    metrics = api.get("/metrics").get_data(as_text=True)
    assert 'orchestrator_events_total{kind="latch",label="",topic="estop_engaged"} 1.0' in metrics


def test_a_release_that_is_refused_is_told_of_too(writer_api: Api) -> None:
    writer_api.post("/estop", json=SMOKE)
    release(writer_api)
    (told,) = refusals()
    assert (told["reason"], told["body"]["path"]) == ("permission_missing", "/estop")


def in_thread_of(pool: Pool, act: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Have a thread of the pool do it, from an event loop of its own; answers once the thread has begun."""
    begun, answered = threading.Event(), Future[Any]()

    def noted() -> None:
        begun.set()
        answered.set_result(act(*arguments))

    async def wait() -> None:
        await pool.run(noted)

    threading.Thread(target=lambda: asyncio.run(wait()), daemon=True).start()
    assert begun.wait(20)
    return answered


class TestUnderLoad:
    """Through the bridge, as the server calls it."""

    @pytest.fixture
    def server(self, database: str, broker: str, admin_key: str, environment: pytest.MonkeyPatch) -> Server:
        environment.setenv("ORCHESTRATOR_WEB_THREADS", "2")
        environment.setenv("ORCHESTRATOR_DATABASE_POOL", "2")
        session.dispose_engines()
        from models.kernel.settings import settings

        settings.cache_clear()
        with own_logs():
            from orchestrator_web import asgi

            return Server(asgi.Application(), admin_key)

    @pytest.fixture
    def busy(self, server: Server) -> Iterator[threading.Event]:
        """Every request thread is busy, and every connection of the pools is taken."""
        let_go = threading.Event()
        bridge = server.application.bridge
        held = [in_thread_of(bridge.common, let_go.wait, 60) for _ in range(2)]
        with contextlib.ExitStack() as stack:
            for make in (session.engine, session.single_statements):
                for _ in range(2):
                    stack.enter_context(make().connect())
            yield let_go
        let_go.set()
        for future in held:
            future.result(20)

    @pytest.fixture
    def frozen_broker(self, broker: str) -> Iterator[None]:
        """The broker hangs: it neither answers nor refuses."""
        with redis.Redis.from_url(redis_url(broker)) as client:
            pid = client.info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(redis.TimeoutError), patient(broker) as client:
                client.ping()
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @pytest.mark.usefixtures("busy", "frozen_broker")
    def test_it_answers_while_every_thread_and_every_connection_is_taken_and_the_broker_hangs(
        self, server: Server
    ) -> None:
        async def scenario() -> None:
            loop = asyncio.get_running_loop()
            began = loop.time()
            heard = await server.call("POST", "/estop", SMOKE)
            took = loop.time() - began
            assert heard is not None
            assert (heard.status, heard.json()["changed"]) == (200, True)
            # the shortest patience with Redis is 50 ms, with a full pool seconds: it met with neither
            assert took < 2
            heard = await server.call("DELETE", "/estop", {"reason": "clear"})
            assert heard is not None
            assert heard.status == 200

        run(scenario)

    def test_any_other_request_waits_meanwhile(self, server: Server, busy: threading.Event) -> None:
        async def scenario() -> None:
            other = asyncio.create_task(server.call("GET", "/tickets"))
            await until(lambda: server.application.bridge.present)
            heard = await server.call("POST", "/estop", SMOKE)
            assert heard is not None
            assert heard.status == 200
            assert not other.done()
            other.cancel()

        run(scenario)

    def test_reading_it_takes_no_thread_from_whoever_engages_it(self, server: Server, busy: threading.Event) -> None:
        async def scenario() -> None:
            reading = asyncio.create_task(server.call("GET", "/estop"))
            await until(lambda: server.application.bridge.present)
            assert server.application.bridge.acts == 0
            reading.cancel()

        run(scenario)

    def test_the_queue_before_its_threads_has_a_bound(self, server: Server) -> None:
        bridge = server.application.bridge
        bridge.acts = bridge.most_acts

        async def scenario() -> None:
            heard = await server.call("POST", "/estop", SMOKE)
            assert heard is not None
            assert (heard.status, heard.json()["code"], heard.headers["retry-after"]) == (503, "overloaded", "1")
            bridge.acts -= 1
            heard = await server.call("POST", "/estop", SMOKE)
            assert heard is not None
            assert (heard.status, bridge.acts) == (200, bridge.most_acts - 1)

        run(scenario)

    def test_whoever_guesses_credentials_is_refused_before_the_database_is_asked(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looked_up: list[str] = []
        prove = auth.prove

        def noting(credential: str) -> Any:
            looked_up.append(credential)
            return prove(credential)

        monkeypatch.setattr(auth, "prove", noting)
        monkeypatch.setattr(guesses, "MOST_GUESSES", 3)
        monkeypatch.setattr(guesses, "WINDOW_SECONDS", 1e9)

        async def scenario() -> None:
            good, statuses = server.credential, []
            for number in range(6):
                server.credential = f"orc_bogus{number}"
                heard = await server.call("POST", "/estop", SMOKE)
                assert heard is not None
                statuses.append(heard.status)
            assert statuses == [401, 401, 401, 429, 429, 429]
            assert len(looked_up) == 3
            server.credential = good

        run(scenario)
        guesses.guessers.clear()

    def test_its_threads_have_connections_that_no_other_thread_takes(self, server: Server) -> None:
        own = in_thread_of(server.application.bridge.estop, session.is_reserved)
        other = in_thread_of(server.application.bridge.common, session.is_reserved)
        assert (own.result(20), other.result(20)) == (True, False)

        def number() -> int:
            with statement() as connection:
                return id(connection.engine.pool)

        assert in_thread_of(server.application.bridge.estop, number).result(20) != number()
