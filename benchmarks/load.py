"""The load generator: raw HTTP/1.1 over keep-alive connections, in a process of its own.

`python -m benchmarks.load` reads an order as JSON from its input and writes what came of it as JSON. Two kinds:

* closed loop: each connection sends its next request as soon as it has the answer to its last one,
  for so many seconds or until every body was sent;
* open loop (`rate`): requests have due times, whatever became of the ones before, and a latency counts from the due
  time, so that a slow answer cannot hide the ones that it delays (no coordinated omission).

It parses only what it must, so that it costs the machine little; the CPU that it used is part of its answer.
"""

from __future__ import annotations

import asyncio
import collections
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.harness import MeasureFailed
from orchestrator_cli.migrate import ROOT

CONNECTIONS = 16
PATIENCE_SECONDS = 60.0
ERRORS_KEPT = 3


@dataclass
class Order:
    """What to send. Without `seconds` each body is sent once."""

    port: int
    path: str
    bodies: list[str]
    expected: int
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    connections: int = CONNECTIONS
    seconds: float | None = None
    rate: float | None = None
    keep_answers: bool = False


@dataclass
class Outcome:
    """`sent_at_ns` are moments of the machine's monotonic clock, in the order of the latencies."""

    seconds: float
    latencies_ms: list[float]
    sent_at_ns: list[int]
    numbers: list[int]
    cpu_seconds: float
    errors: list[str]
    answers: list[str]

    @property
    def rate(self) -> float:
        return len(self.latencies_ms) / self.seconds


def carry_out(order: Order) -> Outcome:
    """Run the generator as a process of its own. Raises MeasureFailed when any answer was not the expected one."""
    command = [sys.executable, "-m", "benchmarks.load"]
    asked = json.dumps(asdict(order))
    done = subprocess.run(command, input=asked, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise MeasureFailed(f"the load generator failed: {done.stderr.strip().splitlines()[-1:]}")
    outcome = Outcome(**json.loads(done.stdout))
    if outcome.errors:
        raise MeasureFailed(f"{order.method} {order.path}: {outcome.errors[0]}")
    return outcome


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport: Any = None
        self.buffer = b""
        self.number: int | None = None
        self.since = self.sent_at = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.load.is_free(self)

    def send(self, number: int, since: int) -> None:
        """`since`: the moment from which the latency counts."""
        self.number, self.since, self.sent_at = number, since, time.monotonic_ns()
        self.transport.write(self.load.requests[number % len(self.load.requests)])

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer = self.buffer + data if self.buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = buffer[:end].lower()
        at = head.find(b"\r\ncontent-length:")
        length = int(head[at + 17 :].split(b"\r", 1)[0]) if at >= 0 else 0
        if len(buffer) < end + 4 + length:
            return
        self.buffer = b""
        self.load.answered(self, buffer[9:12], buffer[end + 4 :])

    def connection_lost(self, _error: Exception | None) -> None:
        self.load.lost(self)


class Load:
    """All connections of one order."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.expected = str(order.expected).encode()
        self.requests = [request(order, body) for body in order.bodies]
        self.free: collections.deque[Connection] = collections.deque()
        self.due: collections.deque[tuple[int, int]] = collections.deque()
        self.found: list[tuple[float, int, int]] = []
        self.answers: list[str] = []
        self.errors: list[str] = []
        self.next = self.under_way = self.awaited = 0
        self.began = self.ended = 0
        self.until = 0
        self.over = asyncio.Event()
        self.is_started = False

    async def run(self) -> Outcome:
        loop = asyncio.get_running_loop()
        for _ in range(self.order.connections):
            await loop.create_connection(lambda: Connection(self), "127.0.0.1", self.order.port)
        self.is_started = True
        before = resource.getrusage(resource.RUSAGE_SELF)
        self.began = time.monotonic_ns()
        self.until = self.began + int((self.order.seconds or 1e6) * 1e9)
        self.start_open(loop) if self.order.rate else self.start_closed()
        try:
            await asyncio.wait_for(self.over.wait(), (self.order.seconds or 300) + PATIENCE_SECONDS)
        except TimeoutError:
            self.errors.append(f"{self.under_way} answers did not come")
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        return Outcome(
            seconds=max(1, self.ended - self.began) / 1e9,
            latencies_ms=[each[0] for each in self.found],
            sent_at_ns=[each[1] for each in self.found],
            numbers=[each[2] for each in self.found],
            cpu_seconds=cpu,
            errors=self.errors,
            answers=self.answers,
        )

    def start_closed(self) -> None:
        waiting, self.free = self.free, collections.deque()
        for connection in waiting:
            self.is_free(connection)

    def start_open(self, loop: asyncio.AbstractEventLoop) -> None:
        rate, seconds = self.order.rate or 1.0, self.order.seconds or 1.0
        base, loop_base = time.monotonic_ns(), loop.time()
        self.awaited = int(rate * seconds)
        for number in range(self.awaited):
            loop.call_at(loop_base + number / rate, self.is_due, number, base + int(number / rate * 1e9))

    def is_due(self, number: int, since: int) -> None:
        self.under_way += 1
        if self.free:
            self.free.popleft().send(number, since)
        else:
            self.due.append((number, since))

    def is_free(self, connection: Connection) -> None:
        connection.number = None
        if not self.is_started or (self.order.rate and not self.due):
            self.free.append(connection)
        elif self.order.rate:
            connection.send(*self.due.popleft())
        elif self.has_more():
            self.under_way += 1
            connection.send(self.next, time.monotonic_ns())
            self.next += 1

    def has_more(self) -> bool:
        if self.order.seconds:
            return time.monotonic_ns() < self.until
        return self.next < len(self.requests)

    def answered(self, connection: Connection, status: bytes, body: bytes) -> None:
        now = time.monotonic_ns()
        self.ended = now
        self.under_way -= 1
        if status == self.expected:
            self.found.append(((now - connection.since) / 1e6, connection.sent_at, connection.number or 0))
            if self.order.keep_answers:
                self.answers.append(body.decode())
        elif len(self.errors) < ERRORS_KEPT:
            self.errors.append(f"answered {status.decode()}: {body[:200].decode(errors='replace')}")
        self.is_free(connection)
        self.end_if_done()

    def end_if_done(self) -> None:
        done = len(self.found) >= self.awaited if self.order.rate else self.under_way == 0
        if done or self.errors:
            self.over.set()

    def lost(self, connection: Connection) -> None:
        if connection.number is not None and not self.over.is_set():
            self.errors.append("the server closed a connection before it answered")
            self.over.set()


def request(order: Order, body: str) -> bytes:
    data = body.encode()
    headers = {"Host": f"127.0.0.1:{order.port}", **order.headers}
    if data or order.method == "POST":
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
    lines = [f"{order.method} {order.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + data


def main() -> None:
    order = Order(**json.loads(sys.stdin.read()))

    async def run() -> Outcome:
        return await Load(order).run()

    json.dump(asdict(asyncio.run(run())), sys.stdout)


if __name__ == "__main__":
    main()
