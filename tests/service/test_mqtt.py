"""The whole service with robots on MQTT: driven, cancelled, and stopped when their worker dies."""

from __future__ import annotations

import logging
import os
import signal
import statistics
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.mosquitto import mosquitto_in
from tests.service.running import Running, drive
from tests.service.waiting import eventually
from tests.tickets.mqtt_fleet import Fleet, fleet_on, new_prefix

log = logging.getLogger(__name__)

ROUNDS = 50
SLOWEST_STOP = 0.5  # seconds from the committed cancellation to the robot at rest, nineteen times in twenty


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with (
        mosquitto_in(tmp_path_factory.mktemp("mosquitto")) as broker,
        fleet_on(broker, new_prefix(), time_scale=10) as robots,
    ):
        robots.url = broker.url  # type: ignore[attr-defined]
        yield robots


@pytest.fixture(scope="module")
def robots(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service of its own, for robots on MQTT."""
    chosen = {
        "ORCHESTRATOR_DRIVER": "mqtt",
        "ORCHESTRATOR_MQTT_URL": fleet.url,  # type: ignore[attr-defined]
        "ORCHESTRATOR_MQTT_PREFIX": fleet.topic.partition("/")[0],
    }
    service = Running(tmp_path_factory.mktemp("mqtt") / "home", **chosen)
    try:
        yield service.start()
    finally:
        service.stop()


def begin(robots: Running, fleet: Fleet, target: str) -> str:
    ticket_id = robots.go(**drive(target, seconds=300))
    eventually(lambda: fleet.robot(target).motion, what="the robot moves")
    return ticket_id


def test_a_drive_is_executed_and_says_what_the_robot_measured(robots: Running, fleet: Fleet, robot: str) -> None:
    answer = robots.execute(robots.create(**drive(robot, seconds=2))).json()
    assert answer["status"] == "completed"
    assert answer["result"]["distance_traveled"] == 2
    assert answer["result"]["measured"]["distance"] == pytest.approx(2, abs=1)
    assert robots.execute(robots.create(command="scan", target=robot)).json()["result"]["scan_points"] == 4


def test_a_stop_ends_what_moves_and_its_ticket_says_so(robots: Running, fleet: Fleet, robot: str) -> None:
    moving = begin(robots, fleet, robot)
    assert robots.execute(robots.create(command="stop", target=robot)).json()["status"] == "completed"
    assert fleet.robot(robot).motion is None
    assert robots.wait_until(moving, "failed", "cancelled")["status"] in ("failed", "cancelled")


def test_a_cancelled_drive_is_at_rest_within_moments_of_the_commit(robots: Running, fleet: Fleet, robot: str) -> None:
    took = []
    for number in range(ROUNDS):
        target = f"{robot}-{number}"
        ticket_id = begin(robots, fleet, target)
        assert robots.ask("POST", f"/ticket/{ticket_id}/cancel").status_code == 200
        eventually(lambda target=target: fleet.robot(target).motion is None, what="the robot rests")  # type: ignore[misc]
        (cancelled,) = [row for row in robots.history(ticket_id) if row["topic"] == "ticket_cancelled"]
        took.append((first_stop(fleet, target) - cancelled["at"]).total_seconds())
    p50, p95 = statistics.median(took), statistics.quantiles(took, n=20)[-1]
    log.info("seconds to the stop: p50 %.4f, p95 %.4f, longest %.4f", p50, p95, max(took))
    assert p95 < SLOWEST_STOP, took


def first_stop(fleet: Fleet, target: str) -> datetime:
    return next(at for at, command, _, _ in fleet.robot(target).taken if command == "stop")


def test_a_robot_whose_worker_dies_is_stopped_by_the_guardian(robots: Running, fleet: Fleet, robot: str) -> None:
    ticket_id = begin(robots, fleet, robot)
    os.kill(robots.pid_of("io"), signal.SIGKILL)
    assert robots.wait_until(ticket_id, "failed")["error"]
    eventually(lambda: fleet.robot(robot).motion is None, what="the robot rests")
    assert fleet.commands(robot)[0] == "drive"
    assert fleet.commands(robot).count("drive") == 1
