"""The mqtt driver against a real mosquitto and robots that behave, and one robot for each way not to."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from models.kernel.clock import monotonic, utcnow
from models.tickets import contracts
from orchestrator_tasks.tickets.drivers.base import DriverFailed, Interrupt, Interrupted, OutcomeUnknown
from orchestrator_tasks.tickets.drivers.mqtt import MqttDriver
from tests.mosquitto import Mosquitto, mosquitto_in
from tests.service.waiting import eventually
from tests.tickets.mqtt_fleet import SHORT, Fleet, Scripted, command, driver_on, fleet_on, new_prefix, under_way


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with mosquitto_in(tmp_path_factory.mktemp("mosquitto")) as running:
        yield running


@pytest.fixture
def prefix() -> str:
    return new_prefix()


@pytest.fixture
def fleet(broker: Mosquitto, prefix: str) -> Iterator[Fleet]:
    with fleet_on(broker, prefix) as robots:
        yield robots


@pytest.fixture
def driver(broker: Mosquitto, prefix: str) -> Iterator[MqttDriver]:
    with driver_on(broker, prefix) as one:
        yield one


def now() -> str:
    return utcnow().isoformat()


class TestAWellBehavedRobot:
    def test_a_drive_ends_when_the_robot_says_so(self, driver: MqttDriver, fleet: Fleet) -> None:
        began = monotonic()
        result = driver.carry_out(command(seconds=0.2), Interrupt())
        assert monotonic() - began >= 0.2
        assert contracts.is_date_time(result.pop("received_at"))
        assert result.pop("measured")["distance"] == pytest.approx(0.3, abs=0.2)
        assert result == {
            "command": "drive",
            "executed": True,
            "speed": 1.5,
            "direction": 0,
            "duration_seconds": 0.2,
            "distance_traveled": pytest.approx(0.3),
            "ack": True,
        }

    def test_a_command_is_sent_as_the_contract_says_with_all_that_bounds_it(
        self, driver: MqttDriver, fleet: Fleet
    ) -> None:
        ordered = command(fence=7, params={"speed": 1, "duration_seconds": 0, "note": "é"})
        driver.carry_out(ordered, Interrupt())
        (message,) = fleet.messages
        body = json.loads(message.payload)
        contracts.check("actuator.v1", body)
        assert body.pop("timestamp") <= ordered.not_after.isoformat()
        marks = {"ticket_id": "ticket-7", "fence": 7, "not_after": ordered.not_after.isoformat()}
        assert body == {"command": "drive", "params": ordered.params, **marks}
        assert message.qos == 1
        assert 50 < message.properties.MessageExpiryInterval <= 60
        assert message.properties.ResponseTopic == driver.link.answers
        assert message.properties.CorrelationData == b"ticket-7/7/1"

    def test_an_interrupted_drive_has_stopped_before_the_exception_leaves(
        self, driver: MqttDriver, fleet: Fleet
    ) -> None:
        with under_way(driver, fleet) as (result, interrupt):
            interrupt.set("timeout")
            assert isinstance(result.exception(20), Interrupted)
            assert fleet.robot("rover").motion is None
        assert fleet.commands() == ["drive", "stop"]

    def test_a_drive_that_somebody_else_stops_ends_at_once_and_says_by_what(
        self, driver: MqttDriver, fleet: Fleet
    ) -> None:
        with under_way(driver, fleet) as (result, _):
            driver.carry_out(command("brake", fence=2), Interrupt())
            error = result.exception(20)
        assert isinstance(error, Interrupted)
        assert (error.reason, error.message) == ("robot_stopped", "The robot was stopped on the way: brake")

    @pytest.mark.parametrize(("name", "status"), [("stop", "stopped"), ("brake", "braked")])
    def test_a_stop_and_a_brake_are_acknowledged(
        self, driver: MqttDriver, fleet: Fleet, name: str, status: str
    ) -> None:
        result = driver.carry_out(command(name), Interrupt())
        assert contracts.is_date_time(result.pop("received_at"))
        assert result == {"command": name, "executed": True, "status": status, "ack": True}

    def test_a_stop_of_an_old_fence_spares_the_newer_motion_and_a_ticket_s_spares_none(
        self, driver: MqttDriver, fleet: Fleet
    ) -> None:
        with under_way(driver, fleet, fence=5) as (result, _):
            driver.stop("rover", 4, "cancelled")
            assert fleet.robot("rover").motion is not None
            driver.carry_out(command("stop", fence=3), Interrupt())
            assert isinstance(result.exception(20), Interrupted)

    def test_a_scan_brings_what_the_contracts_name(self, driver: MqttDriver, fleet: Fleet) -> None:
        result = driver.carry_out(command("scan"), Interrupt())
        assert (result["scan_points"], result["obstacles_detected"]) == (4, 2)
        contracts.check("imu.v1", result["sensors"]["imu"])
        contracts.check("ultrasonic.v1", result["sensors"]["ultrasonic"])

    def test_a_hundred_robots_drive_at_once_over_one_connection(self, driver: MqttDriver, fleet: Fleet) -> None:
        fleet.robots.update((f"r{n}", fleet.robot(f"r{n}")) for n in range(100))

        def drive(n: int) -> Any:
            ordered = command(target=f"r{n}", fence=n + 1, params={"speed": n / 100, "duration_seconds": 1})
            return driver.carry_out(ordered, Interrupt())["speed"]

        with ThreadPoolExecutor(100) as pool:
            began = monotonic()
            speeds = pool.map(drive, range(100))
            eventually(lambda: all(robot.motion for robot in fleet.robots.values()), what="all move at one moment")
            assert list(speeds) == [n / 100 for n in range(100)]
            assert monotonic() - began < 4
        assert driver.link.exchanges == {}
        assert driver.link.receipts == {}


class TestWhatIsNeverSent:
    @pytest.mark.parametrize(
        ("changed", "code"),
        [
            ({"params": {"speed": 3.5, "duration_seconds": 1}}, "refused"),
            ({"params": {"speed": 1, "duration_seconds": 1, "note": float("nan")}}, "refused"),
            ({"params": {"speed": 1, "duration_seconds": 1, "note": "\ud800"}}, "refused"),
            ({"target": "a/b"}, "refused"),
            ({"target": "+"}, "refused"),
            ({"target": "#"}, "refused"),
            ({"target": "rover\n"}, "refused"),
            ({"name": "fly", "params": {}}, "refused"),
        ],
    )
    def test_what_cannot_be_meant_never_leaves(
        self, driver: MqttDriver, fleet: Fleet, changed: dict[str, Any], code: str
    ) -> None:
        with pytest.raises(DriverFailed) as caught:
            driver.carry_out(command(**changed), Interrupt())
        assert caught.value.code == code
        assert fleet.messages == []

    @pytest.mark.parametrize("left", [-1, 0, 0.9])
    def test_what_cannot_begin_in_time_never_leaves(self, driver: MqttDriver, fleet: Fleet, left: float) -> None:
        driver.stop("rover", 1, "so that the connection is there")
        fleet.messages.clear()
        with pytest.raises(DriverFailed) as caught:
            driver.carry_out(command(not_after=utcnow() + timedelta(seconds=left)), Interrupt())
        assert caught.value.code == "too_late"
        assert fleet.messages == []

    def test_what_was_interrupted_before_it_began_never_leaves(self, driver: MqttDriver, fleet: Fleet) -> None:
        interrupt = Interrupt()
        interrupt.set("shutdown")
        for name in ("drive", "scan"):
            with pytest.raises(Interrupted):
                driver.carry_out(command(name), interrupt)
        assert fleet.messages == []

    def test_a_stop_for_what_could_never_begin_is_no_failure(self, driver: MqttDriver, fleet: Fleet) -> None:
        driver.stop("a/b", 1, "cancelled")
        assert fleet.messages == []


Act = Callable[[dict[str, Any], Any], object]


class TestRefusals:
    def test_a_stale_fence_is_refused_and_not_sent_again(self, driver: MqttDriver, fleet: Fleet) -> None:
        driver.stop("rover", 5, "stop")
        with pytest.raises(DriverFailed, match=r"^The robot refused the command: fence 5 was already obeyed") as caught:
            driver.carry_out(command(fence=5), Interrupt())
        assert caught.value.code == "robot_refused"
        assert not isinstance(caught.value, OutcomeUnknown)
        assert fleet.commands() == ["stop", "drive"]
        driver.carry_out(command(fence=6), Interrupt())

    @pytest.mark.parametrize("name", ["drive", "stop", "scan"])
    def test_a_robot_that_does_not_listen_is_known_not_to_have_begun(self, driver: MqttDriver, name: str) -> None:
        driver.patience = SHORT
        with pytest.raises(DriverFailed, match="was not reached: No matching subscribers") as caught:
            driver.carry_out(command(name), Interrupt())
        assert caught.value.code == "robot_unreachable"
        assert not isinstance(caught.value, OutcomeUnknown)

    def test_a_scan_that_breaks_its_contract_fails(self, driver: MqttDriver, fleet: Fleet) -> None:
        sound = {"imu": {"timestamp": now(), "yaw": 0, "pitch": 0, "roll": 0}}
        for sensors in (None, {}, sound, sound | {"ultrasonic": {"timestamp": "x"}}):
            fleet.robots["rover"] = Scripted(lambda _, answer, s=sensors: answer("done", sensors=s))  # type: ignore[misc]
            with pytest.raises(DriverFailed) as caught:
                driver.carry_out(command("scan"), Interrupt())
            assert caught.value.code == "contract_violated"


class TestUnknownOutcomes:
    @pytest.mark.parametrize(
        "act",
        [
            lambda _order, _answer: None,
            lambda _order, answer: answer("accepted"),
            lambda _order, answer: answer("accepted", distance=-1),
            lambda _order, answer: answer("sideways"),
        ],
    )
    def test_a_robot_that_falls_silent_is_stopped_and_its_drive_sent_once(
        self, broker: Mosquitto, prefix: str, fleet: Fleet, act: Act
    ) -> None:
        fleet.robots["rover"] = Scripted(act)
        with driver_on(broker, prefix, SHORT) as driver, pytest.raises(OutcomeUnknown, match="a stop was delivered"):
            driver.carry_out(command(), Interrupt())
        assert fleet.commands() == ["drive", "stop"]

    def test_a_drive_that_cannot_be_stopped_is_unknown(self, broker: Mosquitto, prefix: str, fleet: Fleet) -> None:
        robot = Scripted(lambda _order, answer: answer("accepted"))
        robot.take = lambda order, _correlation, answer: robot.act(order, answer)  # type: ignore[method-assign]
        fleet.robots["rover"] = robot
        interrupt = Interrupt()
        interrupt.wait = lambda _seconds: None  # type: ignore[method-assign]
        interrupt.set("cancelled")
        with (
            driver_on(broker, prefix, SHORT) as driver,
            pytest.raises(OutcomeUnknown, match="may still be moving"),
        ):
            driver.carry_out(command(seconds=60), interrupt)

    def test_answers_that_are_late_doubled_foreign_or_malformed_change_nothing(
        self, driver: MqttDriver, fleet: Fleet
    ) -> None:
        def confuse(order: dict[str, Any], answer: Any) -> None:
            mine = fleet.messages[-1].properties.CorrelationData
            for correlation, payload in (
                (mine, b"{"),
                (mine, b"[]"),
                (mine, b"\xff"),
                (mine, b'{"status": "refused"}'),
                (mine, b'{"status": "refused", "timestamp": "yesterday"}'),
                (mine, b'{"status": ["done"], "timestamp": 7}'),
                (mine, b'{"status": "done", "timestamp": "2026-11-21T09:30:00Z", "distance": "far"}'),
                (mine, b'"' + b"x" * 70_000 + b'"'),
                (b"ticket-0/0/0", json.dumps({"status": "refused", "timestamp": now()}).encode()),
                (None, json.dumps({"status": "refused", "timestamp": now()}).encode()),
            ):
                marks = Properties(PacketTypes.PUBLISH)
                if correlation:
                    marks.CorrelationData = correlation
                fleet.client.publish(driver.link.answers, payload, qos=1, properties=marks)
            answer("accepted")
            answer("accepted")
            answer("refused", reason="late")
            answer("done", distance=1)
            answer("done", distance=2)

        fleet.robots["rover"] = Scripted(confuse)
        assert driver.carry_out(command(), Interrupt())["measured"] == {"distance": 1}
        assert driver.carry_out(command(fence=2), Interrupt())["measured"] == {"distance": 1}

    def test_a_ticket_says_that_an_answer_came_and_could_not_be_used(
        self, broker: Mosquitto, prefix: str, fleet: Fleet
    ) -> None:
        with driver_on(broker, prefix, SHORT) as driver:
            for said in ({"status": "banana"}, {"status": "done", "distance": "far"}, {"reason": "x" * 70_000}):
                fleet.robots["rover"] = Scripted(lambda _, answer, s=said: answer(**{"status": "done"} | s))  # type: ignore[misc]
                with pytest.raises(OutcomeUnknown, match="what it answered could not be used"):
                    driver.carry_out(command(), Interrupt())

    @pytest.mark.parametrize("word", ["timeout", "emergency_stop", "lease_lost", "Battery <b>low</b>", "", "x" * 1000])
    def test_a_robot_s_words_stand_in_the_text_and_never_become_the_code(
        self, driver: MqttDriver, fleet: Fleet, word: str
    ) -> None:
        fleet.robots["rover"] = Scripted(lambda _, answer: (answer("accepted"), answer("stopped", reason=word)))
        with pytest.raises(Interrupted) as caught:
            driver.carry_out(command(), Interrupt())
        assert caught.value.reason == "robot_stopped"
        assert caught.value.message == f"The robot was stopped on the way: {word[:200] or 'no reason given'}"

    def test_a_reason_of_the_robot_cannot_break_a_line_or_a_row(self, driver: MqttDriver, fleet: Fleet) -> None:
        fleet.robots["rover"] = Scripted(lambda _, answer: answer("refused", reason="a\x00b\nc" + "d" * 1000))
        with pytest.raises(DriverFailed) as caught:
            driver.carry_out(command(), Interrupt())
        assert caught.value.message.startswith("The robot refused the command: a?b?cddd")
        assert len(caught.value.message) < 300


def test_the_moment_of_a_message_is_the_robot_s_own(driver: MqttDriver, fleet: Fleet) -> None:
    before = utcnow()
    result = driver.carry_out(command("stop"), Interrupt())
    assert before <= datetime.fromisoformat(result["received_at"]) <= utcnow()


def test_no_thread_stays_when_the_link_is_closed(broker: Mosquitto, prefix: str, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    before = threading.active_count()
    with driver_on(broker, prefix) as driver:
        with pytest.raises(DriverFailed):
            driver.carry_out(command("scan"), Interrupt())
        assert threading.active_count() - before <= 2
    eventually(lambda: threading.active_count() <= before, what="the link's threads have ended")
