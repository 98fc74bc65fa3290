"""The actuator bus: commands leave as `POST /actuate`, each held to actuator.v1.

A plain bus acknowledges a drive as soon as it has it and then carries it out for
`duration_seconds`. The driver waits that time out, so that a robot's lane is taken
for as long as the robot moves; an interrupt ends the wait and sends a stop at once,
unless the lease was revoked: whoever revoked it ordered the stop, and the guardian
sends it, while ours could come late and hit the next motion.
No stop is sent after a drive that ran its time: its end is the bus's own.

Nothing that moves a robot is ever sent twice. What is known not to have been
accepted (no connection, a refusal) fails; whatever might have been accepted and was
not acknowledged is stopped, as well as that can be done, and ends as OutcomeUnknown.
Every request opens a connection of its own: a kept one may close under a command,
and then nobody could tell whether it was read.

The headers X-Target, X-Ticket-Id, X-Fence and X-Not-After let a bus that understands
them refuse what is stale or late; a plain bus ignores them.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from models.kernel import clock
from models.kernel.clock import utcnow
from models.kernel.errors import Invalid
from models.tickets import contracts
from orchestrator_tasks.keeper import REVOKED
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

LONGEST_ANSWER = 64 * 1024  # bytes; an acknowledgement has about a hundred
LONGEST_QUOTE = 200
STOP_PAUSES = (0.1, 0.3)
"""Seconds between the three tries to deliver a stop."""

NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


class HttpDriver:
    """Robots behind an actuator bus at `url`. `timeout` bounds, in seconds, each wait for one answer."""

    obeys_fences = False  # some do: nothing in the contract says so

    def __init__(self, url: str, timeout: float) -> None:
        self.address = url.rstrip("/") + "/actuate"
        self.timeout = timeout
        self.client = httpx.Client(
            trust_env=False,
            follow_redirects=False,
            headers={"Accept-Encoding": "identity"},
            # unbounded, so that a stop never waits behind a drive; none kept, see above
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    def carry_out(self, command: Command, interrupt: Interrupt) -> dict[str, Any]:
        refuse_unsafe(command)
        if command.name == "scan":
            raise DriverFailed("Actuator bus cannot carry out scan", code="unsupported")
        if command.name == "drive":
            return self.drive(command, interrupt)
        marks = {"X-Target": command.target, "X-Ticket-Id": command.ticket_id, "X-Fence": str(command.fence)}
        return halted(command.name) | self.deliver(command.name, command.params, marks)

    def stop(self, target: str, fence: int, reason: str) -> None:
        self.deliver("stop", {"reason": reason}, {"X-Target": target, "X-Fence": str(fence)})

    def drive(self, command: Command, interrupt: Interrupt) -> dict[str, Any]:
        refuse_interrupted(interrupt)
        left = seconds_left(command)
        marks = {
            "X-Target": command.target,
            "X-Ticket-Id": command.ticket_id,
            "X-Fence": str(command.fence),
            "X-Not-After": command.not_after.isoformat(),
        }
        try:
            acknowledged = self.send("drive", command.params, marks, begin_within=left)
        except OutcomeUnknown as unknown:
            raise self.after_stopping(command, unknown) from unknown
        reason = interrupt.wait(command.params["duration_seconds"])
        if reason is not None:
            if reason != REVOKED:
                self.end_early(command, reason)
            raise Interrupted(reason)
        return driven(command.params) | acknowledged

    def end_early(self, command: Command, reason: str) -> None:
        """Stop a drive on its way. Raises OutcomeUnknown when the stop could not be delivered."""
        try:
            self.stop(command.target, command.fence, reason)
        except DriverFailed as failed:
            text = f"Robot {command.target!r} may still be moving ({reason}): {failed.message}"
            raise OutcomeUnknown(text) from failed

    def after_stopping(self, command: Command, unknown: OutcomeUnknown) -> OutcomeUnknown:
        """A drive that may have begun does not go on unwatched; whether it began stays unknown."""
        try:
            self.stop(command.target, command.fence, "outcome_unknown")
        except DriverFailed as failed:
            return OutcomeUnknown(f"{unknown.message}; the stop was not delivered: {failed.message}")
        return OutcomeUnknown(f"{unknown.message}; a stop was delivered")

    def deliver(self, name: str, params: Mapping[str, Any], marks: Mapping[str, str]) -> dict[str, Any]:
        """Send a stop or a brake, which may arrive any number of times, until one is acknowledged."""
        for pause in STOP_PAUSES:
            try:
                return self.send(name, params, marks)
            except DriverFailed:
                clock.pause(pause)
        return self.send(name, params, marks)

    def send(
        self, name: str, params: Mapping[str, Any], marks: Mapping[str, str], begin_within: float | None = None
    ) -> dict[str, Any]:
        """One request, one acknowledgement: `ack` and `received_at`.

        Raises OutcomeUnknown when the command may have been accepted, DriverFailed when it was not.
        """
        body = {"timestamp": utcnow().isoformat(), "command": name, "params": dict(params)}
        connect = self.timeout if begin_within is None else min(self.timeout, begin_within)
        waits = httpx.Timeout(self.timeout, connect=connect)
        try:
            headers = {key: quote(value, safe=":+-._") for key, value in marks.items()}
            contracts.check("actuator.v1", body)
            request = self.client.build_request("POST", self.address, json=body, headers=headers, timeout=waits)
        except (Invalid, ValueError, TypeError, httpx.InvalidURL) as error:
            raise DriverFailed(f"The command cannot be sent: {error}"[:LONGEST_QUOTE], code="refused") from error
        try:
            status, answer = self.exchange(request)
        except NOTHING_SENT as error:
            raise DriverFailed(f"Actuator bus unavailable: {cause(error)}", code="actuator_unavailable") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise OutcomeUnknown(f"Actuator bus did not acknowledge {name}: {cause(error)}") from error
        return acknowledgement(name, status, answer)

    def exchange(self, request: httpx.Request) -> tuple[int, bytes]:
        """Send and read, within bounds of bytes and of time: a bus that trickles is a bus that is silent."""
        call = Call(self.timeout)
        request.extensions["trace"] = call.follow
        with call:
            response = self.client.send(request, stream=True)
            try:
                answer = b""
                for piece in response.iter_raw():
                    answer += piece
                    if len(answer) > LONGEST_ANSWER:
                        raise httpx.ReadError("the answer is too long")
                return response.status_code, answer
            finally:
                response.close()


class Call:
    """Hangs up `seconds` after the bus picked up.

    The client's own read timeout begins anew with every byte, so by itself it never
    ends a call whose answer comes byte by byte.
    """

    def __init__(self, seconds: float) -> None:
        self.lines: list[Any] = []
        self.hung_up = False
        self.timer = threading.Timer(seconds, self.hang_up)
        self.timer.daemon = True

    def follow(self, event: str, facts: Mapping[str, Any]) -> None:
        """Told by httpcore what the call is at; keeps the line, and its encrypted form after it."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self.lines.append(facts["return_value"])
            if len(self.lines) == 1:
                self.timer.start()

    def hang_up(self) -> None:
        self.hung_up = True
        with contextlib.suppress(OSError):
            self.lines[-1].get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.timer.cancel()
        if self.hung_up and isinstance(error, httpx.HTTPError):
            raise httpx.ReadTimeout(f"no whole answer within {self.timer.interval:g} s") from error


def seconds_left(command: Command) -> float:
    """How long a drive may still begin: until its deadline and the end of its lease. Raises DriverFailed."""
    left = (command.not_after - utcnow()).total_seconds()
    if left <= 0:
        raise DriverFailed(f"Too late to begin: it is after {command.not_after.isoformat()}", code="too_late")
    leased = command.begin_by - clock.monotonic()
    if leased <= 0:
        raise DriverFailed("Too late to begin: the lease under which it was cleared is over", code="too_late")
    return min(left, leased)


def acknowledgement(name: str, status: int, answer: bytes) -> dict[str, Any]:
    """What an answer means. Only an acknowledgement in full is one."""
    if httpx.codes.is_client_error(status) or httpx.codes.is_redirect(status):
        raise DriverFailed(f"Actuator bus refused the command: HTTP {status}{quoted(answer)}", code="actuator_refused")
    if not httpx.codes.is_success(status):
        raise OutcomeUnknown(f"Actuator bus failed at {name}: HTTP {status}{quoted(answer)}")
    try:
        said = orjson.loads(answer)
    except orjson.JSONDecodeError as error:
        raise OutcomeUnknown(f"Actuator bus did not acknowledge {name}: not JSON{quoted(answer)}") from error
    if isinstance(said, dict) and said.get("ack") is False:
        raise DriverFailed(f"Actuator bus refused the command: ack is false{quoted(answer)}", code="actuator_refused")
    if not (isinstance(said, dict) and said.get("ack") is True and is_moment(said.get("received_at"))):
        raise OutcomeUnknown(f"Actuator bus did not acknowledge {name}: no ack with received_at{quoted(answer)}")
    return {"ack": True, "received_at": said["received_at"]}


def is_moment(value: Any) -> bool:
    return isinstance(value, str) and contracts.is_date_time(value)


def quoted(answer: bytes) -> str:
    text = answer[:LONGEST_QUOTE].decode(errors="replace").strip()
    return f" ({text})" if text else ""


def cause(error: Exception) -> str:
    return str(error) or type(error).__name__
