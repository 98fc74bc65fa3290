"""Robots behind an MQTT 5 broker: commands by request and response, each held to actuator.v1.

A command goes once, at QoS 1, to `<prefix>/robots/<target>/commands`. Its message
expires when the command must no longer begin, and beside the contract's members it
carries `ticket_id`, `fence` and `not_after`, by which the robot refuses what is stale
or late. The robot answers to the response topic, under the same correlation data, with
JSON objects of a `status` and a `timestamp`:

    refused     it does not and will not begin; `reason` says why
    accepted    it has begun
    done        it has ended as ordered; `distance` in metres after a drive
    stopped     a stop ended the drive; `reason` and `distance` say why and where

Nothing that moves a robot is sent twice. What is known not to have begun fails
(no connection, no robot that listens, a refusal). Whatever may have begun is stopped
when it is interrupted, when its connection is lost or when its robot falls silent: once the
robot has taken the stop it refuses that fence for good, and when it never did, the
outcome is unknown. Stops and brakes may arrive any number of times, and are sent again
until one is answered. A stop of ours spares what the robot does under a newer fence;
that of a ticket, which is marked `unconditional`, spares nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from models.kernel import clock
from models.kernel.clock import monotonic, utcnow
from models.kernel.errors import Invalid
from models.tickets import contracts
from orchestrator_tasks.tickets.drivers.base import (
    Command,
    DriverFailed,
    Interrupt,
    Interrupted,
    OutcomeUnknown,
    driven,
    halted,
    refuse_interrupted,
    refuse_unsafe,
)
from orchestrator_tasks.tickets.drivers.mqtt_answers import Answer, find_answer, scanned
from orchestrator_tasks.tickets.drivers.mqtt_broker import Broker
from orchestrator_tasks.tickets.drivers.mqtt_link import Exchange, Link, Lost, Undelivered

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0  # seconds between the tries to deliver a stop
HURRY_SECONDS = 0.5
"""How long the stop of a guardian is tried, who repeats it anyway and has other robots to stop."""

LONGEST_QUOTE = 200
ROBOT_STOPPED, NO_REASON = "robot_stopped", "no reason given"
TARGET = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)
"""Targets that are one level of a topic: a `/`, `+` or `#` would reach other robots."""


@dataclass(frozen=True)
class Interruption:
    """Somebody wants the command to end, for this reason."""

    reason: str


class MqttDriver:
    """Robots behind `broker`. `timeout` bounds, in seconds, the wait for a connection and for each answer."""

    obeys_fences = True

    def __init__(self, broker: Broker, timeout: float) -> None:
        self.link = Link(broker)
        self.prefix = broker.prefix
        self.timeout = timeout
        self.patience = 2 * timeout  # for a stop; with the last try's own wait it is less than the keeper's grace

    def carry_out(self, command: Command, interrupt: Interrupt) -> dict[str, Any]:
        refuse_unsafe(command)
        if not TARGET.fullmatch(command.target):
            raise DriverFailed(f"Robot {command.target!r} cannot be a level of an MQTT topic", code="refused")
        if command.name == "drive":
            return self.drive(command, interrupt)
        if command.name == "scan":
            return self.scan(command, interrupt)
        marks = {"ticket_id": command.ticket_id, "fence": command.fence, "unconditional": True}
        answer = self.deliver(command.name, command.target, command.params, marks, self.patience)
        return halted(command.name) | {"ack": True, "received_at": answer.timestamp}

    def stop(self, target: str, fence: int, reason: str) -> None:
        if TARGET.fullmatch(target):  # another one was never sent anything that it could have begun
            self.stop_motion(target, fence, reason, HURRY_SECONDS)

    def stop_motion(self, target: str, fence: int, reason: str, patience: float) -> None:
        self.deliver("stop", target, {"reason": reason}, {"fence": fence, "unconditional": False}, patience)

    # drives

    def drive(self, command: Command, interrupt: Interrupt) -> dict[str, Any]:
        refuse_interrupted(interrupt)
        with self.link.exchange(f"{command.ticket_id}/{command.fence}") as exchange:
            self.send_bounded(exchange, command)
            interrupt.then(lambda reason: exchange.put(Interruption(reason)))
            accepted = self.until_accepted(exchange, command)
            ended = accepted if accepted.status != "accepted" else self.until_ended(exchange, command)
        if ended.status == "stopped":
            text = f"The robot was stopped on the way: {ended.reason or NO_REASON}"
            raise Interrupted(ROBOT_STOPPED, text, **ended.measured())  # its own words are no code to act on
        return driven(command.params) | {"ack": True, "received_at": accepted.timestamp, "measured": ended.measured()}

    def until_accepted(self, exchange: Exchange, command: Command) -> Answer:
        event = self.hear(exchange, monotonic() + self.timeout)
        if isinstance(event, Answer):
            if event.status == "refused":
                raise refusal(event)
            return event
        if isinstance(event, Undelivered):
            raise unreached(command.target, event)
        if isinstance(event, Interruption):
            raise self.end_early(command, event.reason)
        silent = f"Robot {command.target!r} did not acknowledge drive within {self.timeout:g} s"
        raise self.after_stopping(command, OutcomeUnknown(f"{silent}{because(event, exchange)}"))

    def until_ended(self, exchange: Exchange, command: Command) -> Answer:
        until = monotonic() + command.params["duration_seconds"] + self.timeout
        while True:
            event = self.hear(exchange, until)
            if isinstance(event, Answer) and event.status in ("done", "stopped"):
                return event
            if isinstance(event, Interruption):
                raise self.end_early(command, event.reason)
            if isinstance(event, Lost):
                raise self.end_lost(command, event)
            if event is None:
                silent = f"Robot {command.target!r} did not say how it ended"
                raise self.after_stopping(command, OutcomeUnknown(f"{silent}{because(event, exchange)}"))

    def hear(self, exchange: Exchange, until: float) -> Any:
        """The next event that means something; None when there is none by `until`. Malformed answers are none."""
        while (event := exchange.hear(until)) is not None:
            if not isinstance(event, Mapping):
                return event
            if (answer := find_answer(event)) is not None:
                return answer
            exchange.misheard = True
        return None

    def end_early(self, command: Command, reason: str) -> DriverFailed:
        """Stop a drive on its way: Interrupted once the robot has taken the stop."""
        try:
            self.stop_motion(command.target, command.fence, reason, self.patience)
        except DriverFailed as failed:
            return OutcomeUnknown(f"Robot {command.target!r} may still be moving ({reason}): {failed.message}")
        return Interrupted(reason)

    def end_lost(self, command: Command, lost: Lost) -> DriverFailed:
        """Nobody hears how this drive ends: it ends now, if the broker can be reached again."""
        gone = f"The connection to the MQTT broker was lost in mid-drive{because(lost)}"
        try:
            self.stop_motion(command.target, command.fence, "connection_lost", self.patience)
        except DriverFailed as failed:
            return OutcomeUnknown(f"{gone}; the stop was not delivered: {failed.message}")
        return DriverFailed(f"{gone}; the robot was stopped", code="connection_lost")

    def after_stopping(self, command: Command, unknown: OutcomeUnknown) -> OutcomeUnknown:
        """A drive that may have begun does not go on unwatched; whether it began stays unknown."""
        try:
            self.stop_motion(command.target, command.fence, "outcome_unknown", self.patience)
        except DriverFailed as failed:
            return OutcomeUnknown(f"{unknown.message}; the stop was not delivered: {failed.message}")
        return OutcomeUnknown(f"{unknown.message}; a stop was delivered")

    # scans

    def scan(self, command: Command, interrupt: Interrupt) -> dict[str, Any]:
        """Ask the robot what it sees. Nothing moves, so that no answer is a plain failure."""
        refuse_interrupted(interrupt)
        with self.link.exchange(f"{command.ticket_id}/{command.fence}") as exchange:
            self.send_bounded(exchange, command)
            interrupt.then(lambda reason: exchange.put(Interruption(reason)))
            until = monotonic() + self.timeout
            event = self.hear(exchange, until)
            while isinstance(event, Answer) and event.status == "accepted":
                event = self.hear(exchange, until)
        if isinstance(event, Interruption):
            raise Interrupted(event.reason)
        if isinstance(event, Undelivered):
            raise unreached(command.target, event)
        if not isinstance(event, Answer):
            raise DriverFailed(
                f"Robot {command.target!r} did not answer scan{because(event, exchange)}", code="robot_silent"
            )
        if event.status != "done":
            raise refusal(event)
        return scanned(event)

    # sending

    def deliver(
        self, name: str, target: str, params: Mapping[str, Any], marks: Mapping[str, Any], patience: float
    ) -> Answer:
        """Send a stop or a brake until the robot has answered one. Raises DriverFailed when it has not by then."""
        until, pause = monotonic() + patience, FIRST_PAUSE
        while True:
            try:
                return self.halt(name, target, params, marks)
            except DriverFailed:
                if monotonic() + pause > until:
                    raise
            clock.pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def halt(self, name: str, target: str, params: Mapping[str, Any], marks: Mapping[str, Any]) -> Answer:
        until = monotonic() + self.timeout
        with self.link.exchange(f"{name}/{marks['fence']}") as exchange:
            self.link.wait_until_up(until)
            self.send(exchange, name, target, params, marks, expires_in=math.ceil(self.timeout))
            event = self.hear(exchange, until)
            while isinstance(event, Answer) and event.status == "accepted":
                event = self.hear(exchange, until)
        if isinstance(event, Answer) and event.status == "done":
            return event
        if isinstance(event, Answer):
            raise refusal(event)
        if isinstance(event, Undelivered):
            raise unreached(target, event)
        raise OutcomeUnknown(f"Robot {target!r} did not acknowledge {name}{because(event, exchange)}")

    def send_bounded(self, exchange: Exchange, command: Command) -> None:
        """Send what must not begin after its `not_after`, counted when the connection is there."""
        self.link.wait_until_up(monotonic() + min(self.timeout, max(0.0, seconds_left(command))))
        left = math.floor(seconds_left(command))  # whole seconds, as MQTT counts, and never one too many
        if left < 1:
            raise DriverFailed(f"Too late to begin: it must be before {command.not_after.isoformat()}", code="too_late")
        marks = {
            "ticket_id": command.ticket_id,
            "fence": command.fence,
            "not_after": command.not_after.isoformat(),
        }
        self.send(exchange, command.name, command.target, command.params, marks, expires_in=left)

    def send(
        self,
        exchange: Exchange,
        name: str,
        target: str,
        params: Mapping[str, Any],
        marks: Mapping[str, Any],
        *,
        expires_in: int,
    ) -> None:
        body = {"timestamp": utcnow().isoformat(), "command": name, "params": dict(params), **marks}
        try:
            if name != "scan":  # which is no actuator's command: it asks for sensors
                contracts.check("actuator.v1", body)
            document = json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
        except (Invalid, ValueError, TypeError) as error:
            raise DriverFailed(f"The command cannot be sent: {error}"[:LONGEST_QUOTE], code="refused") from error
        self.link.request(exchange, f"{self.prefix}/robots/{target}/commands", document, expires_in)


LONGEST_EXPIRY: Final = 0xFFFFFFFF  # seconds; four bytes (MQTT 5, 3.3.2.3.3)


def seconds_left(command: Command) -> float:
    return min((command.not_after - utcnow()).total_seconds(), LONGEST_EXPIRY)


def refusal(answer: Answer) -> DriverFailed:
    return DriverFailed(f"The robot refused the command: {answer.reason or NO_REASON}", code="robot_refused")


def unreached(target: str, event: Undelivered) -> DriverFailed:
    return DriverFailed(f"Robot {target!r} was not reached: {event.reason}", code="robot_unreachable")


def because(event: Any, exchange: Exchange | None = None) -> str:
    if isinstance(event, Lost):
        return f": {event.reason}"
    return "; what it answered could not be used" if exchange and exchange.misheard else ""
