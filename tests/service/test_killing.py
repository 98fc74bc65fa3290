"""SIGKILL, role by role, while robots move and callers call: no promise is lost, nothing happens twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psycopg2
import pytest
import redis

from models.kernel.hints import redis_url
from orchestrator_cli.embedded.valkey import Valkey
from tests.service.load import Load
from tests.service.running import ENDED, LEASE_SECONDS, Running, drive, frozen
from tests.service.waiting import eventually

LONG = 280  # simulated seconds: it would move for 28 real ones
BYSTANDERS = ("web", "dispatcher", "guardian", "relay", "system", "cpu", "beat", "flower")
UNCERTAIN = frozenset({"outcome_unknown", "database_unavailable", "lease_lost"})


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def kill(service: Running, name: str) -> None:
    """Kill the program of that name and wait until another does its work."""
    victim = service.pid_of(name)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: service.pid_of(name) != victim, what=f"{name} was started again")
    if name not in ("valkey", "postgres"):
        eventually(lambda: service.has_fresh(name, besides=victim), within=40, what=f"another {name} works")
    eventually(service.is_ready, within=40, what="the service is ready again")


def valkey_of(service: Running) -> redis.Redis:
    return redis.Redis.from_url(redis_url(Valkey(service.home / "valkey").url()))


def goes_on(service: Running, load: Load) -> None:
    """Callers get their work done again."""
    moment = len(load.accepted)
    eventually(lambda: load.told_after(moment), within=40, what="work is accepted again")


@pytest.mark.parametrize("name", BYSTANDERS)
def test_killing_one_that_carries_nothing_out_fails_no_execution(service: Running, robot: str, name: str) -> None:
    with Load(service, robot) as load:
        kill(service, name)
        goes_on(service, load)
    load.assert_nothing_was_lost()


def test_killing_a_child_of_the_cpu_worker_costs_no_execution(service: Running, robot: str) -> None:
    parent = service.pid_of("cpu")
    with Load(service, robot) as load:
        victim = children(parent)[-1]
        before = set(children(parent))
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: set(children(parent)) - before, what="another child was made")
        goes_on(service, load)
    load.assert_nothing_was_lost()
    assert service.pid_of("cpu") == parent


@pytest.mark.parametrize("name", ["beat", "system"])
def test_schedules_go_on_after_whoever_ticks_or_listens_was_killed(service: Running, name: str) -> None:
    def run_again() -> bool:
        return service.row("SELECT runs FROM schedules WHERE name = 'tallies'")["runs"] > seen + 1

    kill(service, name)
    # a run that was killed with its worker is given up after a minute; nobody here waits for that
    service.rows("UPDATE schedules SET running_until = NULL WHERE running_until IS NOT NULL RETURNING name")
    seen = service.row("SELECT runs FROM schedules WHERE name = 'tallies'")["runs"]
    eventually(run_again, within=30, what="schedules fire")


def test_killing_the_io_worker_in_mid_drive_stops_the_robot_and_calls_the_outcome_unknown(
    service: Running, robot: str
) -> None:
    moving = service.go(**drive(f"{robot}-moving", LONG))
    service.wait_until_moving(moving)
    with Load(service, robot) as load:
        kill(service, "io")
        goes_on(service, load)
    load.assert_nothing_was_lost(excused=frozenset({"outcome_unknown"}))
    ticket = service.wait_until(moving, *ENDED)
    assert (ticket["status"], ticket["error_code"]) == ("failed", "outcome_unknown")
    assert service.topics(moving).count("execution_started") == 1
    (motion,) = eventually(lambda: [m for m in service.motions(moving) if m["ended_at"]], what="the robot stopped")
    assert motion["end_reason"] == "outcome_unknown"
    assert motion["ended_at"] < motion["until"]
    letters = service.rows("SELECT code FROM dead_letters WHERE subject_id = %s", moving)
    assert [letter["code"] for letter in letters] == ["outcome_unknown"]


def test_killing_valkey_delays_work_and_fails_none(service: Running, robot: str) -> None:
    with Load(service, robot) as load:
        kill(service, "valkey")
        goes_on(service, load)
    load.assert_nothing_was_lost()


def test_flushing_valkey_delays_work_and_fails_none(service: Running, robot: str) -> None:
    with Load(service, robot) as load:
        with valkey_of(service) as client:
            client.flushall()
        goes_on(service, load)
    load.assert_nothing_was_lost()


def test_what_was_accepted_is_carried_out_although_every_message_about_it_is_lost(service: Running) -> None:
    with valkey_of(service) as client, frozen(service.pid_of("io")):
        tickets = [service.go(command="scan") for _ in range(4)]
        eventually(lambda: client.llen("io:2") >= 3, what="messages wait for the worker, who stands still")
        client.flushall()
    for ticket_id in tickets:
        assert service.wait_until(ticket_id, *ENDED)["status"] == "completed"


def test_killing_postgres_loses_nothing_that_was_acknowledged(service: Running, robot: str) -> None:
    def started_at() -> object:
        try:
            return service.row("SELECT pg_postmaster_start_time() AS at")["at"]
        except psycopg2.OperationalError:
            return None

    before = started_at()
    with Load(service, robot) as load:
        kill(service, "postgres")
        eventually(lambda: started_at() not in (None, before), what="Postgres answers again")
        goes_on(service, load)
    load.assert_nothing_was_lost(excused=UNCERTAIN)


def test_a_drive_outlives_a_restart_of_postgres_that_is_shorter_than_its_lease(service: Running, robot: str) -> None:
    ticket_id = service.go(**drive(robot, seconds=10 * 2 * LEASE_SECONDS))
    service.wait_until_moving(ticket_id)
    kill(service, "postgres")
    assert service.wait_until(ticket_id, *ENDED)["status"] == "completed"
    (motion,) = service.motions(ticket_id)
    assert motion["end_reason"] == "elapsed"
