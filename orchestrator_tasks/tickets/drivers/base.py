"""The interface that everything which moves a robot keeps, and how a command can fail.

    OrchestratorError
    └── DriverFailed        the command is known not to have succeeded
        ├── OutcomeUnknown  it may have been carried out: an operator decides
        └── Interrupted     it was ended early, and the robot stopped, for a reason

The message of a failure is what the ticket's error says.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from models.kernel.errors import OrchestratorError
from models.tickets import safety


@dataclass(frozen=True)
class Command:
    """One command to one robot, and the fence and the moments that bound it.

    `begin_by`: this machine's monotonic clock at the end of the lease under which the command was cleared. Whoever
    revokes the attempt counts on nothing being begun later, unless the robot obeys fences.
    """

    ticket_id: str
    name: str
    params: Mapping[str, Any]
    target: str
    fence: int
    not_after: datetime  # aware; no motion may begin later
    begin_by: float = math.inf


class Interrupt:
    """A reason to end early, set by one thread and waited for by another. The first reason stays."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._happened = threading.Event()
        self._reason: str | None = None
        self._listeners: list[Callable[[str], None]] = []

    def set(self, reason: str) -> None:
        """Say why: `timeout`, `cancelled`, `lease_lost`, `shutdown`."""
        with self._lock:
            if self._reason is None:
                self._reason = reason
            listeners, self._listeners = self._listeners, []
        self._happened.set()
        for listener in listeners:
            listener(reason)

    def then(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the reason: now when there is one, else in the thread that sets it. It must not wait."""
        with self._lock:
            reason = self._reason
            if reason is None:
                self._listeners.append(listener)
        if reason is not None:
            listener(reason)

    def wait(self, seconds: float) -> str | None:
        """The reason as soon as there is one, or None after `seconds`."""
        self._happened.wait(max(0.0, seconds))
        return self._reason


class DriverFailed(OrchestratorError):
    """The command is known not to have succeeded."""

    code = "driver_failed"


class OutcomeUnknown(DriverFailed):
    """The command may have been carried out."""

    code = "outcome_unknown"


class Interrupted(DriverFailed):
    """The command was ended before its time, and the robot has stopped."""

    code = "interrupted"

    def __init__(self, reason: str, message: str | None = None, **facts: Any) -> None:
        super().__init__(message or f"Interrupted: {reason}", **facts)
        self.reason = reason


class Driver(Protocol):
    """What moves robots. One instance serves every thread of a process.

    `obeys_fences`: once a robot has taken a stop, it refuses every command with an older fence for good. Where it is
    false, a stop is repeated for as long as a revoked command may still arrive.
    """

    obeys_fences: bool

    def carry_out(self, command: Command, interrupt: Interrupt) -> dict[str, Any]:
        """Carry a command out to its end and give the ticket's result.

        Raises Interrupted once the robot has stopped; OutcomeUnknown when nobody can
        tell; DriverFailed for every other failure.
        """
        ...

    def stop(self, target: str, fence: int, reason: str) -> None:
        """Stop a robot on behalf of a fence. Raises DriverFailed when the stop could not be delivered."""
        ...


def refuse_unsafe(command: Command) -> None:
    """The last look at the limits before anything moves. Raises DriverFailed with the documented text."""
    reason = safety.refusal(command.name, command.params)
    if reason is not None:
        raise DriverFailed(reason, code="refused")


def refuse_interrupted(interrupt: Interrupt) -> None:
    """What was interrupted before it began does not begin. Raises Interrupted."""
    reason = interrupt.wait(0.0)
    if reason is not None:
        raise Interrupted(reason)


def driven(params: Mapping[str, Any]) -> dict[str, Any]:
    """The documented result of a drive. The distance is the one ordered: speed x duration."""
    speed, seconds = params["speed"], params["duration_seconds"]
    return {
        "command": "drive",
        "executed": True,
        "speed": speed,
        "direction": params.get("direction", 0),
        "duration_seconds": seconds,
        "distance_traveled": speed * seconds,
    }


HALTS = {"stop": "stopped", "brake": "braked"}


def halted(name: str) -> dict[str, Any]:
    """The documented result of a stop or a brake."""
    return {"command": name, "executed": True, "status": HALTS[name]}
