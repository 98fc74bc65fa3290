"""One motion at a time for each robot, the most urgent first; a stop waits for none; many robots move at once."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cli.service import environment
from tests.service.running import ENDED, Running, drive
from tests.service.waiting import eventually

log = logging.getLogger(__name__)

CALLERS = 8
SIDE_BY_SIDE = 100
MANY = 200
LONGEST = 6.0
"""Seconds from acceptance to end of the slowest of `MANY` one-second drives: 20 threads would need over ten."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with no setting but its places: robots as fast as time, and the default number of threads."""
    service = Running(tmp_path_factory.mktemp("plain") / "home")
    places = {name: service.environment[name] for name in ("PORT", "FLOWER_PORT")}
    service.environment = environment(service.home) | places
    try:
        yield service.start()
    finally:
        service.stop()


def go_all(service: Running, robot: str, count: int, seconds: float) -> list[str]:
    """Drives of as many robots: all created, then all accepted."""
    with ThreadPoolExecutor(CALLERS) as pool:
        tickets = list(pool.map(lambda n: service.create(**drive(f"{robot}-{n}", seconds=seconds)), range(count)))
        return list(pool.map(service.accept, tickets))


def have_all_completed(service: Running, tickets: list[str]) -> bool:
    question = "SELECT count(*) AS n FROM tickets WHERE id = ANY(%s) AND state = 'completed'"
    return bool(service.row(question, tickets)["n"] == len(tickets))


def test_a_robot_takes_the_most_urgent_of_what_waits_for_it(service: Running, robot: str) -> None:
    first = service.go(**drive(robot, seconds=30))
    service.wait_until_moving(first)
    waiting = {name: service.go(**drive(robot, seconds=1), priority=name) for name in ("low", "normal", "high")}
    waiting["critical"] = service.go(**drive(robot, seconds=1), priority="critical")
    for ticket_id in waiting.values():
        service.wait_until(ticket_id, "completed")
    motions = service.rows("SELECT * FROM sim_motions WHERE target = %s ORDER BY began_at", robot)
    assert [motion["ticket_id"] for motion in motions] == [
        first,
        *(waiting[name] for name in ("critical", "high", "normal", "low")),
    ]
    for before, after in itertools.pairwise(motions):
        assert before["ended_at"] <= after["began_at"]


@pytest.mark.parametrize("command", ["stop", "brake"])
def test_a_stop_passes_all_that_waits_for_the_robot_and_ends_only_what_moves(
    service: Running, robot: str, command: str
) -> None:
    moving = service.go(**drive(robot, seconds=300))
    service.wait_until_moving(moving)
    other = service.go(**drive(f"{robot}-other", seconds=30))
    behind = service.go(**drive(robot, seconds=1), priority="critical")
    assert (
        service.execute(service.create(command=command, target=robot, priority="low")).json()["status"] == "completed"
    )
    assert service.wait_until(moving, *ENDED)["status"] == "failed"
    for ticket_id in (behind, other):
        assert service.wait_until(ticket_id, *ENDED)["status"] == "completed"


def test_a_hundred_robots_move_at_one_moment_on_one_worker_by_default(plain: Running, robot: str) -> None:
    tickets = go_all(plain, robot, SIDE_BY_SIDE, seconds=20)
    moving = "SELECT count(*) AS n FROM sim_motions WHERE ticket_id = ANY(%s) AND ended_at IS NULL"
    eventually(lambda: plain.row(moving, tickets)["n"] == SIDE_BY_SIDE, what="all move at one moment")
    eventually(lambda: have_all_completed(plain, tickets), within=60, what="all have ended")


def test_two_hundred_one_second_drives_end_within_seconds_of_their_acceptance(plain: Running, robot: str) -> None:
    tickets = go_all(plain, robot, MANY, seconds=1)
    eventually(lambda: have_all_completed(plain, tickets), within=60, what="all have ended")
    took = (
        "SELECT extract(epoch FROM max(at) FILTER (WHERE topic = 'execution_completed') - max(at) FILTER"
        " (WHERE topic = 'ticket_queued'))::float8 AS seconds"
        " FROM ledger WHERE subject_id = ANY(%s) GROUP BY subject_id"
    )
    slowest = max(row["seconds"] for row in plain.rows(took, tickets))
    log.info("the slowest of %d one-second drives took %.2f s", MANY, slowest)
    assert slowest < LONGEST
