"""Robots, drivers and commands on a test broker, and robots that do not what they should."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from paho.mqtt.client import MQTTMessage

from examples.mqtt_robot import Answer, Radio, Robot
from models.kernel.clock import utcnow
from orchestrator_tasks.tickets.drivers.base import Command, Interrupt
from orchestrator_tasks.tickets.drivers.mqtt import MqttDriver
from orchestrator_tasks.tickets.drivers.mqtt_broker import Broker
from tests.mosquitto import Mosquitto
from tests.service.waiting import eventually

TIMEOUT = 5.0
SHORT = 0.3
numbers = itertools.count(1)


class Fleet(Radio):
    """Every robot of one prefix, and each message as it came."""

    def __init__(self, prefix: str, time_scale: float = 1.0) -> None:
        super().__init__("+", prefix, time_scale)
        self.client.reconnect_delay_set(1, 1)
        self.messages: list[MQTTMessage] = []

    def receive(self, client: Any, data: Any, message: MQTTMessage) -> None:
        self.messages.append(message)
        super().receive(client, data, message)

    def commands(self, target: str = "rover") -> list[str]:
        return [command for _, command, _, _ in self.robot(target).taken]


class Scripted(Robot):
    """A robot that obeys stops and does with anything else what the test says."""

    def __init__(self, act: Callable[[dict[str, Any], Answer], object]) -> None:
        super().__init__()
        self.act = act

    def take(self, order: dict[str, Any], correlation: bytes, answer: Answer) -> None:
        if order["command"] == "stop":
            super().take(order, correlation, answer)
            return
        self.taken.append((utcnow(), order["command"], order["fence"], "scripted"))
        self.act(order, answer)


@contextlib.contextmanager
def fleet_on(broker: Mosquitto, prefix: str, time_scale: float = 1.0) -> Iterator[Fleet]:
    fleet = Fleet(prefix, time_scale)
    fleet.connect(broker.url)
    fleet.client.loop_start()
    try:
        assert fleet.ready.wait(10)
        yield fleet
    finally:
        fleet.client.disconnect()
        fleet.client.loop_stop()


@contextlib.contextmanager
def driver_on(broker: Mosquitto, prefix: str, timeout: float = TIMEOUT, **facts: Any) -> Iterator[MqttDriver]:
    driver = MqttDriver(Broker(**{"host": "127.0.0.1", "port": broker.plain, "prefix": prefix} | facts), timeout)
    try:
        yield driver
    finally:
        driver.link.close()


def new_prefix() -> str:
    """Topics that no other test uses."""
    return f"test-{next(numbers)}"


def command(name: str = "drive", fence: int = 1, seconds: float = 0, **changed: Any) -> Command:
    params = {"speed": 1.5, "duration_seconds": seconds} if name == "drive" else {}
    facts: dict[str, Any] = {"target": "rover", "not_after": utcnow() + timedelta(seconds=60), "params": params}
    return Command(**{"ticket_id": f"ticket-{fence}", "name": name, "fence": fence} | facts | changed)


@contextlib.contextmanager
def under_way(driver: MqttDriver, fleet: Fleet, fence: int = 1) -> Iterator[tuple[Future[Any], Interrupt]]:
    """A long drive that the robot has begun."""
    interrupt = Interrupt()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(driver.carry_out, command(fence=fence, seconds=120), interrupt)
        eventually(lambda: fleet.robot("rover").motion, what="the robot moves")
        yield result, interrupt
