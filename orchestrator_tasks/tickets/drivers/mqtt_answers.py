"""What an MQTT robot may answer, and what of it is believed."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.kernel.errors import Invalid
from models.tickets import contracts
from orchestrator_tasks.tickets.drivers.base import DriverFailed

log = logging.getLogger(__name__)

STATUSES = ("refused", "accepted", "done", "stopped")
LONGEST_REASON = 200
LONGEST_SHOWN = 500


@dataclass(frozen=True)
class Answer:
    """One answer of a robot, checked. `distance` is in metres, `timestamp` the robot's own."""

    status: str
    timestamp: str
    reason: str = ""
    distance: float | None = None
    body: Mapping[str, Any] = field(default_factory=dict)

    def measured(self) -> dict[str, Any]:
        """What the robot says that it really did."""
        return {} if self.distance is None else {"distance": self.distance}


def find_answer(body: Mapping[str, Any]) -> Answer | None:
    """The answer that a document is; one that is none is logged and means nothing, as if it had not come."""
    status, timestamp, distance = body.get("status"), body.get("timestamp"), body.get("distance")
    sound = (
        status in STATUSES
        and isinstance(timestamp, str)
        and contracts.is_date_time(timestamp)
        and (distance is None or is_length(distance))
    )
    if not sound:
        log.warning("a robot's answer cannot be used", extra={"answer": repr(body)[:LONGEST_SHOWN]})
        return None
    return Answer(str(status), str(timestamp), printable(body.get("reason", "")), distance, body)


def is_length(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def printable(reason: Any) -> str:
    """A robot's reason as it may stand in a ticket: one line of visible characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(reason)[:LONGEST_REASON])


def scanned(answer: Answer) -> dict[str, Any]:
    """The documented result of a scan. Raises DriverFailed when the readings break their contracts."""
    readings = answer.body.get("sensors")
    try:
        if not isinstance(readings, Mapping):
            raise Invalid("no sensors")
        sensors = {name: reading(readings.get(name), f"{name}.v1") for name in ("imu", "ultrasonic")}
        counts = {name: counted(answer.body, name) for name in ("scan_points", "obstacles_detected")}
    except Invalid as error:
        raise DriverFailed(f"The robot's readings cannot be used: {error.message}", code="contract_violated") from error
    return {"command": "scan", "executed": True, **counts, "sensors": sensors}


def reading(document: Any, contract: str) -> dict[str, Any]:
    """What the contract names of a reading. Whatever else the robot says is not kept. Raises ContractViolated."""
    contracts.check(contract, document)
    return {name: document[name] for name in contracts.schema(contract)["properties"] if name in document}


def counted(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Invalid(f"{name} must be a count")
    return value
