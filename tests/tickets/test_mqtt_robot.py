"""What the example robot on MQTT owes: one motion, in order, in time, and none after a stop."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest

from examples.mqtt_robot import Robot
from models.kernel.clock import utcnow
from orchestrator_cli.migrate import ROOT
from tests.cli.service import free_port
from tests.service.waiting import eventually

LONG = {"speed": 1.0, "duration_seconds": 3600}


class Orders:
    """Orders to one robot, and what it answered to each."""

    def __init__(self) -> None:
        self.robot = Robot()
        self.count = 0

    def give(self, name: str, fence: int, again: bytes | None = None, **changed: Any) -> list[str]:
        self.count += 1
        said: list[str] = []
        order = {"command": name, "fence": fence, "params": LONG, "not_after": soon(60), **changed}
        self.robot.take(order, again or str(self.count).encode(), lambda status, **_: said.append(status))
        return said

    def moves(self) -> bool:
        return self.robot.motion is not None


def soon(seconds: float) -> str:
    return (utcnow() + timedelta(seconds=seconds)).isoformat()


@pytest.fixture
def orders() -> Orders:
    return Orders()


def test_a_drive_is_accepted_and_done_when_its_time_is_up(orders: Orders) -> None:
    said = orders.give("drive", 1, params={"speed": 1, "duration_seconds": 0})
    eventually(lambda: said == ["accepted", "done"], what="the robot arrives")
    assert not orders.moves()


def test_a_fence_is_obeyed_once_and_none_below_it_afterwards(orders: Orders) -> None:
    orders.give("drive", 2)
    orders.give("stop", 2)
    assert orders.give("drive", 2) == orders.give("drive", 1) == ["refused"]
    assert orders.give("drive", 3) == ["accepted"]


def test_a_stop_that_comes_first_refuses_the_drive_that_it_was_for(orders: Orders) -> None:
    assert orders.give("stop", 7) == ["done"]
    assert orders.give("drive", 7) == ["refused"]
    assert not orders.moves()


def test_what_comes_too_late_is_refused(orders: Orders) -> None:
    assert orders.give("drive", 1, not_after=soon(-0.001)) == ["refused"]


def test_a_second_motion_is_refused_while_the_first_goes_on(orders: Orders) -> None:
    first = orders.give("drive", 1)
    assert orders.give("drive", 2) == ["refused"]
    orders.give("stop", 1)
    assert first == ["accepted", "stopped"]


def test_a_message_that_comes_twice_moves_once_and_is_answered_once(orders: Orders) -> None:
    assert orders.give("drive", 1, again=b"same") == ["accepted"]
    assert orders.give("drive", 1, again=b"same") == []
    orders.give("stop", 1)
    assert orders.give("drive", 1, again=b"same") == []
    assert not orders.moves()


def test_an_older_stop_spares_a_newer_motion_unless_it_is_unconditional(orders: Orders) -> None:
    orders.give("drive", 5)
    orders.give("stop", 4)
    assert orders.moves()
    orders.give("brake", 4, unconditional=True)
    assert not orders.moves()


def test_a_robot_that_loses_its_broker_stops_and_refuses_the_same_drive_afterwards(orders: Orders) -> None:
    said = orders.give("drive", 1)
    orders.robot.cut_off()
    assert said == ["accepted", "stopped"]
    assert not orders.moves()
    assert orders.give("drive", 1) == ["refused"]
    orders.robot.cut_off()


def test_without_a_broker_the_example_ends_with_one_plain_line() -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    done = subprocess.run(
        [sys.executable, "examples/mqtt_robot.py", "rover", url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("mqtt_robot: 127.0.0.1 cannot be reached:")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "wrong", [{"params": {}}, {"params": None}, {"fence": None}, {"not_after": "x"}, {"not_after": 5}]
)
def test_a_drive_that_is_not_understood_moves_nothing(orders: Orders, wrong: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        orders.give("drive", **{"fence": 1} | wrong)
    assert not orders.moves()
