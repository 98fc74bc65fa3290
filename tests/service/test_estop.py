"""The e-stop of the running service: with the broker frozen, every request thread busy, and across restarts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from tests.service.running import ASYNC, ENDED, Running, drive, frozen
from tests.service.test_killing import valkey_of
from tests.service.waiting import eventually

LONG = 280  # simulated seconds
CALLERS = 48  # more than all request threads of all web processes


@pytest.fixture
def service(service: Running) -> Iterator[Running]:
    """The service; whatever a test engages is released after it."""
    yield service
    if service.process is None or service.process.poll() is not None:
        service.start()
    for latch in service.ask("GET", "/estop").json()["latches"]:
        eventually(lambda scope=latch["scope"]: release(service, scope).status_code == 200)  # type: ignore[misc]


def engage(service: Running, scope: str = "all") -> dict[str, Any]:
    answer = service.ask("POST", "/estop", json={"scope": scope, "reason": "smoke"})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def release(service: Running, scope: str = "all") -> Any:
    return service.ask("DELETE", "/estop", json={"scope": scope, "reason": "all clear"})


def is_at_rest(service: Running, *ticket_ids: str) -> bool:
    moving = "SELECT FROM sim_motions WHERE ticket_id = ANY(%s) AND ended_at IS NULL"
    return not service.rows(moving, list(ticket_ids))


def moving(service: Running, robot: str, number: int) -> list[str]:
    """Long drives of so many robots, on their way."""
    ids = [service.go(**drive(f"{robot}-{n}", LONG)) for n in range(number)]
    for ticket_id in ids:
        service.wait_until_moving(ticket_id)
    return ids


def test_every_robot_stops_and_whoever_waits_is_told(service: Running, robot: str) -> None:
    waited_for = service.create(**drive(robot, LONG))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.execute, waited_for)
        service.wait_until_moving(waited_for)
        others = moving(service, robot, 5)
        queued = service.go(**drive(robot))
        answer = engage(service)
        told = waiting.result(20).json()
    assert set(answer["stopped"]) == {waited_for, *others}
    assert (told["status"], told["error_code"]) == ("failed", "emergency_stop")
    eventually(lambda: is_at_rest(service, waited_for, *others), what="every robot is at rest")
    for ticket_id in (waited_for, *others):
        (motion,) = service.motions(ticket_id)
        assert motion["end_reason"] == "emergency_stop"
    assert service.wait_until(queued, *ENDED)["error_code"] == "emergency_stop"
    assert service.execute(service.create(**drive(robot))).json()["code"] == "emergency_stop"
    assert service.execute(service.create(command="stop", target=robot)).json()["status"] == "completed"
    eventually(
        lambda: service.ask("GET", "/estop").json()["stops"] == {"owed": 0, "taken": 6}, what="all have taken it"
    )
    assert release(service).status_code == 200
    again = service.execute(queued, force=True).json()
    assert again["status"] == "completed"


@contextlib.contextmanager
def held(service: Running, ticket_ids: list[str]) -> Iterator[None]:
    """Somebody holds the rows of these tickets: whoever wants to change one waits."""
    url = make_url(service.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM tickets WHERE id = ANY(%s) FOR UPDATE", (ticket_ids,))
            yield
    finally:
        connection.close()


def test_it_answers_and_robots_stop_while_every_request_thread_waits_and_the_broker_hangs(
    service: Running, robot: str
) -> None:
    ids = moving(service, robot, 3)
    wanted = [service.create(**drive(f"{robot}-x{n}")) for n in range(CALLERS)]
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with ThreadPoolExecutor(CALLERS) as pool, held(service, wanted), frozen(service.pid_of("valkey")):
        asked = [pool.submit(service.execute, ticket_id, ASYNC) for ticket_id in wanted]
        eventually(lambda: len(service.rows(waiting)) >= 24, what="the request threads wait for rows")
        began = time.monotonic()
        answer = engage(service)
        took = time.monotonic() - began
        still_waiting = sum(not future.done() for future in asked)
        eventually(lambda: is_at_rest(service, *ids), within=2, what="every robot is at rest")
    assert set(answer["stopped"]) == set(ids)
    assert still_waiting > 0, "every thread was to be busy"
    assert took < 2, f"the answer took {took:.2f} s"
    for future in asked:
        assert future.result(60).status_code in (202, 409, 503)
    # Those that waited for their row carry on with a snapshot in which nothing was engaged; the guardian ends them.
    going_on = "SELECT FROM tickets WHERE id = ANY(%s) AND state NOT IN ('pending', 'failed')"
    eventually(lambda: not service.rows(going_on, wanted), what="whatever slipped through is ended")
    assert service.rows("SELECT FROM sim_motions WHERE ticket_id = ANY(%s)", wanted) == []


def test_it_survives_a_restart_of_everything_and_a_broker_that_forgets(service: Running, robot: str) -> None:
    pending = service.create(**drive(robot))
    before = engage(service)["latches"]
    valkey_of(service).flushall()
    service.stop()
    service.start()
    valkey_of(service).flushall()
    assert service.ask("GET", "/estop").json()["latches"] == before
    refused = service.execute(pending)
    assert (refused.status_code, refused.json()["code"]) == (409, "emergency_stop")
    assert service.ticket(pending)["status"] == "pending"
    assert release(service).status_code == 200
    assert service.execute(pending).json()["status"] == "completed"


def test_a_stop_over_one_robot_lets_the_others_move(service: Running, robot: str) -> None:
    mine, others = moving(service, robot, 2)
    assert engage(service, f"{robot}-0")["stopped"] == [mine]
    eventually(lambda: is_at_rest(service, mine))
    assert not is_at_rest(service, others)
    service.ask("POST", f"/ticket/{others}/cancel")
    assert service.wait_until(others, *ENDED)["status"] == "cancelled"
