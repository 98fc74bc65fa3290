"""What an operator can follow: one correlation id from end to end, Flower, and counts that agree with the rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.service.running import FLOWER_AUTH, Running, drive
from tests.service.waiting import eventually

FRESH_CONNECTIONS = 20
SHOWN = (
    "ticket_created",
    "execution_started",
    "execution_completed",
    "execution_failed",
    "ticket_cancelled",
    "estop_engaged",
    "estop_released",
)
SERVICE_EVENTS = ("service_started", "service_stopped")


def test_one_correlation_id_is_on_the_answer_the_ledger_and_the_workers_log(service: Running, robot: str) -> None:
    correlation = f"journey-of-{robot}"
    ticket_id = service.create(**drive(robot))
    answer = service.execute(ticket_id, {"X-Correlation-Id": correlation})
    assert answer.headers["X-Correlation-Id"] == correlation
    moves = {row["topic"]: row["correlation_id"] for row in service.history(ticket_id)}
    journey = ("ticket_queued", "execution_started", "execution_completed")
    assert {topic: moves[topic] for topic in journey} == dict.fromkeys(journey, correlation)
    # The worker binds the id from the message's header before it has seen the row.
    lines = [line for line in service.log_lines("io") if line.get("ticket_id") == ticket_id]
    assert {"execution started", "execution ended"} <= {line["message"] for line in lines}
    assert {(line["correlation_id"], line["action"]) for line in lines} == {(correlation, "execute")}


def flower(service: Running, path: str) -> Any:
    answer = httpx.get(service.flower + path, auth=tuple(FLOWER_AUTH.split(":")), timeout=20)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_flower_shows_the_workers_with_their_queues(service: Running) -> None:
    def queues() -> dict[str, set[str]]:
        workers = flower(service, "/api/workers?refresh=1")
        return {
            name.partition("@")[0]: {queue["name"] for queue in facts["active_queues"]}
            for name, facts in workers.items()
            if "active_queues" in facts
        }

    wanted = {"io": {"io"}, "system": {"system", "hooks"}, "cpu": {"cpu"}}
    eventually(lambda: queues() == wanted, within=30, what=f"Flower knows {wanted}")


def test_flower_shows_an_execution_by_its_tickets_id(service: Running, robot: str) -> None:
    ticket_id = service.create(**drive(robot))
    assert service.execute(ticket_id).json()["status"] == "completed"

    def seen() -> list[Any]:
        tasks = flower(service, "/api/tasks?taskname=tickets.execute&limit=50").values()
        return [task for task in tasks if ticket_id in task["kwargs"] and task["state"] == "SUCCESS"]

    (task,) = eventually(seen, what="Flower has heard of the execution")
    assert task["name"] == "tickets.execute"
    assert task["result"] == "'completed'"


def test_flower_asks_for_the_password_that_is_set(service: Running) -> None:
    assert httpx.get(f"{service.flower}/api/workers", timeout=20).status_code == 401
    assert httpx.get(f"{service.flower}/workers", timeout=20).status_code == 401


def tickets_now(service: Running) -> int:
    return int(service.row("SELECT count(*) AS n FROM tickets")["n"])


def events_now(service: Running) -> int:
    shown = (
        "(subject_kind IN ('ticket', 'latch') AND topic = ANY(%s)) OR (subject_kind = 'service' AND topic = ANY(%s))"
    )
    return int(service.row(f"SELECT count(*) AS n FROM ledger WHERE {shown}", list(SHOWN), list(SERVICE_EVENTS))["n"])


def assert_counts_agree(service: Running) -> None:
    """On fresh connections, so from any web process: never less than was there before, never more than after."""
    questions: dict[str, tuple[Callable[[Running], int], Callable[[Any], int]]] = {
        "/": (tickets_now, lambda body: body["tickets"]["total"]),
        "/telemetry/events": (events_now, lambda body: body["count"]),
    }
    for path, (truth, said) in questions.items():
        for _ in range(FRESH_CONNECTIONS):
            before = truth(service)
            answer = service.ask("GET", path)
            assert answer.status_code == 200
            assert before <= said(answer.json()) <= truth(service), path


def test_four_web_processes_count_alike_while_tickets_are_created(service: Running) -> None:
    assert len(service.rows("SELECT pid FROM processes WHERE role = 'web'")) >= 4
    enough = threading.Event()

    def create() -> int:
        made = 0
        with service.client() as client:
            while not enough.is_set():
                made += client.post("/ticket", json={"command": "scan"}).status_code == 201
        return made

    with ThreadPoolExecutor(1) as pool:
        creating = pool.submit(create)
        try:
            assert_counts_agree(service)
        finally:
            enough.set()
        assert creating.result(20) > FRESH_CONNECTIONS
