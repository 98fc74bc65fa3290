"""Which driver this process uses. A new driver is one line here and one choice in the settings."""

from __future__ import annotations

from collections.abc import Callable

from models.kernel.once import once
from models.kernel.settings import Settings, settings
from orchestrator_tasks.tickets.drivers.base import Driver


def sim(chosen: Settings) -> Driver:
    from orchestrator_tasks.tickets.drivers.sim import SimDriver

    return SimDriver(chosen.sim_time_scale)


def http(chosen: Settings) -> Driver:
    from orchestrator_tasks.tickets.drivers.http import HttpDriver

    return HttpDriver(chosen.actuator_url, chosen.actuator_timeout)


def mqtt(chosen: Settings) -> Driver:
    from orchestrator_tasks.tickets.drivers.mqtt import MqttDriver
    from orchestrator_tasks.tickets.drivers.mqtt_broker import broker_of

    return MqttDriver(broker_of(chosen), chosen.actuator_timeout)


DRIVERS: dict[str, Callable[[Settings], Driver]] = {"sim": sim, "http": http, "mqtt": mqtt}


@once
def driver() -> Driver:
    """This process's driver, made on first use so that a forked child makes its own."""
    chosen = settings()
    return DRIVERS[chosen.driver](chosen)
