"""Who goes first when a thousand wait, and how many go at once."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from orchestrator_tasks.tempo import MOST_WINDOWS
from tests.service.running import ASYNC, CONCURRENCY, WINDOW, Running, drive, frozen
from tests.service.waiting import eventually

BACKLOG = 1000
QUICK = "wave"  # no robot knows it: it is started and refused, so that a thousand of them take seconds
CALLERS = 8
IN_HAND = WINDOW + CONCURRENCY  # what has left Postgres cannot be overtaken any more
IN_HAND_WHEN_FAST = MOST_WINDOWS * WINDOW + CONCURRENCY


def accept_many(service: Running, count: int, **ticket: Any) -> list[str]:
    """Tickets created and accepted by several callers at once, each on one connection."""

    def some(share: int) -> list[str]:
        with service.client() as client:
            return [accept_one(client, ticket) for _ in range(share)]

    with ThreadPoolExecutor(CALLERS) as pool:
        return [ticket_id for ids in pool.map(some, [count // CALLERS] * CALLERS) for ticket_id in ids]


def accept_one(client: httpx.Client, ticket: dict[str, Any]) -> str:
    ticket_id = client.post("/ticket", json=ticket).json()["id"]
    assert client.post("/execute", json={"ticket_id": ticket_id}, headers=ASYNC).status_code == 202
    return str(ticket_id)


def test_a_critical_and_a_high_ticket_pass_a_thousand_normal_ones_and_a_low_one_comes_last(service: Running) -> None:
    with frozen(service.pid_of("io")):
        normal = accept_many(service, BACKLOG, command=QUICK)
        low, high, critical = (service.go(command=QUICK, priority=name) for name in ("low", "high", "critical"))
    mine = [*normal, low, high, critical]
    question = "SELECT subject_id FROM ledger WHERE topic = 'execution_started' AND subject_id = ANY(%s) ORDER BY seq"
    eventually(lambda: len(service.rows(question, mine)) == len(mine), within=60, what="all were started")
    started = [row["subject_id"] for row in service.rows(question, mine)]
    assert started.index(critical) <= IN_HAND
    assert started.index(high) <= IN_HAND + 1
    assert started.index(low) >= len(mine) - 1 - IN_HAND_WHEN_FAST


def test_thirty_robots_are_driven_at_once(service: Running, robot: str) -> None:
    tickets = [service.create(**drive(f"{robot}-{n}", seconds=80)) for n in range(30)]
    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(service.accept, tickets))
    moving = "SELECT count(*) AS n FROM sim_motions WHERE ticket_id = ANY(%s) AND ended_at IS NULL"
    eventually(lambda: service.row(moving, tickets)["n"] == 30, what="all thirty move at one moment")
    for ticket_id in tickets:
        assert service.wait_until(ticket_id, "completed", "failed")["status"] == "completed"


def test_one_robot_carries_its_drives_out_one_after_the_other(service: Running, robot: str) -> None:
    tickets = [service.go(**drive(robot, seconds=2)) for _ in range(5)]
    for ticket_id in tickets:
        service.wait_until(ticket_id, "completed")
    motions = service.rows("SELECT * FROM sim_motions WHERE target = %s ORDER BY began_at", robot)
    assert [motion["ticket_id"] for motion in motions] == tickets
    for before, after in itertools.pairwise(motions):
        assert before["ended_at"] <= after["began_at"]
