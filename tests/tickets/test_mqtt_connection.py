"""The mqtt driver and its connection: refused, encrypted, lost in mid-drive, never there."""

from __future__ import annotations

import logging
import os
import signal
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from examples.mqtt_robot import Radio
from models.kernel.clock import monotonic
from models.kernel.errors import InvalidSettings
from models.kernel.settings import load
from orchestrator_tasks.tickets.drivers import registry
from orchestrator_tasks.tickets.drivers.base import DriverFailed, Interrupt, OutcomeUnknown
from orchestrator_tasks.tickets.drivers.mqtt import MqttDriver
from orchestrator_tasks.tickets.drivers.mqtt_broker import broker_of
from tests.mosquitto import PASSWORD, USER, Mosquitto, mosquitto_in
from tests.service.waiting import eventually
from tests.tickets.mqtt_fleet import SHORT, Fleet, command, driver_on, fleet_on, new_prefix, under_way


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that the test may hurt."""
    with mosquitto_in(tmp_path) as running:
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


class TestWhoMayConnect:
    def test_the_right_password_is_let_in_and_never_logged(
        self, broker: Mosquitto, prefix: str, fleet: Fleet, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        facts = {"port": broker.guarded, "username": USER}
        with driver_on(broker, prefix, **facts, password=PASSWORD) as driver:
            driver.stop("rover", 1, "a try")
            assert PASSWORD not in repr(driver.link.broker)
        with (
            driver_on(broker, prefix, SHORT, **facts, password=PASSWORD + "!") as driver,
            pytest.raises(DriverFailed, match=r"MQTT broker unavailable: .*ot authorized") as caught,
        ):
            driver.carry_out(command(), Interrupt())
        assert caught.value.code == "mqtt_unavailable"
        assert "CONNECT" in caplog.text
        assert PASSWORD not in caplog.text

    def test_the_example_robot_says_that_it_is_refused_and_never_that_it_listens(
        self, broker: Mosquitto, prefix: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        radio = Radio("rover", prefix)
        radio.connect(f"mqtt://{USER}@127.0.0.1:{broker.guarded}", password="wrong")
        radio.client.loop_start()
        try:
            eventually(lambda: "refuses the connection: Not authorized" in caplog.text, what="the refusal is said")
        finally:
            radio.client.disconnect()
            radio.client.loop_stop()
        assert "listening" not in caplog.text

    @pytest.mark.filterwarnings("ignore:.*ssl.SSLSocket")  # paho drops a failed one unclosed
    def test_tls_is_spoken_with_a_broker_whose_certificate_is_known(
        self, broker: Mosquitto, prefix: str, fleet: Fleet
    ) -> None:
        facts = {"ORCHESTRATOR_MQTT_URL": f"mqtts://127.0.0.1:{broker.tls}", "ORCHESTRATOR_MQTT_PREFIX": prefix}
        chosen = broker_of(load(facts | {"ORCHESTRATOR_MQTT_CA_FILE": str(broker.ca)}))
        with driver_on(broker, prefix, port=chosen.port, tls=chosen.tls) as driver:
            driver.stop("rover", 1, "a try")
        assert fleet.commands() == ["stop"]
        for facts in ({"tls": ssl.create_default_context()}, {"tls": chosen.tls, "host": "localhost"}):
            with (
                driver_on(broker, prefix, 1, **{"port": broker.tls} | facts) as driver,
                pytest.raises(DriverFailed, match="certificate verify failed"),
            ):
                driver.carry_out(command(), Interrupt())

    def test_a_certificate_that_cannot_be_read_is_a_wrong_setting(self, tmp_path: Path) -> None:
        (tmp_path / "broken.pem").write_text("no certificate")
        for name in ("missing.pem", "broken.pem"):
            for setting in ("CA", "CERT"):
                facts = {f"ORCHESTRATOR_MQTT_{setting}_FILE": str(tmp_path / name)}
                with pytest.raises(InvalidSettings, match="cannot be used"):
                    broker_of(load(facts | {"ORCHESTRATOR_MQTT_URL": "mqtts://127.0.0.1"}))


class TestTheBrokerAway:
    def test_everybody_hears_so_in_time_and_nothing_is_sent_later(
        self, broker: Mosquitto, prefix: str, fleet: Fleet
    ) -> None:
        broker.stop()
        before = threading.active_count()
        with driver_on(broker, prefix, SHORT) as driver:

            def fail(n: int) -> str:
                with pytest.raises(DriverFailed, match="MQTT broker unavailable") as caught:
                    driver.carry_out(command(target=f"r{n}"), Interrupt())
                return caught.value.code

            with ThreadPoolExecutor(50) as pool:
                began = monotonic()
                assert set(pool.map(fail, range(50))) == {"mqtt_unavailable"}
                assert monotonic() - began < 5
                assert threading.active_count() - before <= 52
            broker.start()
            eventually(lambda: stops(driver), what="the link is up again by itself")
        assert {target for target, robot in fleet.robots.items() if robot.taken} == {"rover"}

    def test_a_drive_is_stopped_and_fails_when_its_connection_was_lost(
        self, broker: Mosquitto, driver: MqttDriver, fleet: Fleet
    ) -> None:
        with under_way(driver, fleet) as (result, _):
            broker.stop()
            broker.start()
            error = result.exception(30)
        assert isinstance(error, DriverFailed)
        assert error.code == "connection_lost"
        assert "the robot was stopped" in error.message
        assert fleet.robot("rover").motion is None
        assert [name for name in fleet.commands() if name == "drive"] == ["drive"]

    def test_a_drive_whose_broker_stays_away_is_unknown(self, broker: Mosquitto, prefix: str, fleet: Fleet) -> None:
        with driver_on(broker, prefix, 1) as driver, under_way(driver, fleet) as (result, _):
            broker.stop()
            eventually(lambda: fleet.robot("rover").motion is None, what="the robot stops by itself")
            error = result.exception(30)
        assert isinstance(error, OutcomeUnknown)
        assert "the stop was not delivered: MQTT broker unavailable" in error.message

    def test_a_broker_that_stands_still_holds_nobody_for_long(
        self, broker: Mosquitto, prefix: str, fleet: Fleet
    ) -> None:
        assert broker.process is not None
        with driver_on(broker, prefix, SHORT) as driver:
            driver.stop("rover", 1, "so that the connection is there")
            os.kill(broker.process.pid, signal.SIGSTOP)
            try:
                began = monotonic()
                with pytest.raises(OutcomeUnknown, match="the stop was not delivered"):
                    driver.carry_out(command(fence=2), Interrupt())
                assert monotonic() - began < 4
            finally:
                os.kill(broker.process.pid, signal.SIGCONT)
            eventually(lambda: stops(driver), what="it answers again")
        assert fleet.robot("rover").motion is None

    def test_a_listener_that_is_no_broker_is_unavailable(self, broker: Mosquitto, prefix: str) -> None:
        with (
            driver_on(broker, prefix, SHORT, port=broker.tls) as driver,
            pytest.raises(DriverFailed, match="MQTT broker unavailable"),
        ):
            driver.carry_out(command(), Interrupt())


def stops(driver: MqttDriver) -> bool:
    try:
        driver.stop("rover", 9, "a try")
    except DriverFailed:
        return False
    return True


def test_the_settings_choose_the_mqtt_driver(monkeypatch: Any) -> None:
    monkeypatch.setattr(registry, "settings", lambda: load({"ORCHESTRATOR_DRIVER": "mqtt"}))
    registry.driver.cache_clear()
    try:
        assert isinstance(registry.driver(), MqttDriver)
    finally:
        registry.driver.cache_clear()
