"""How soon readers hear of events: `python -m benchmarks.event_latency [readers] [rate] [seconds]`, on its own service.

It starts the service with one web process, opens so many streams (half of them
WebSockets), creates tickets at a steady rate, and measures from each event's `at` in
the ledger to its receipt, with the clocks of one machine. Beside it the latency of
GET /healthz and POST /ticket, with the readers and without.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

TICKET = {"command": "scan"}
PORT = int(os.environ.get("PORT", "8000"))
URL = f"http://127.0.0.1:{PORT}"
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
EVENT = re.compile(rb'"seq":(\d+),.*?"at":"([^"]+)".*?"data":\{[^}]*\}\}', re.DOTALL)
CONTEXT = multiprocessing.get_context("spawn")
READY = "Ctrl-C stops everything"


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


@contextlib.contextmanager
def service(home: Path) -> Iterator[str]:
    """A whole service with one web process; yields the admin's key."""
    environment = {**os.environ, "ORCHESTRATOR_HOME": str(home), "ORCHESTRATOR_WEB_PROCESSES": "1", "PORT": str(PORT)}
    environment["ORCHESTRATOR_RATE_LIMIT"] = "0"
    command = [sys.executable, "-m", "orchestrator_cli", "up"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if READY in line:
                break
        try:
            yield (home / "admin.token").read_text().strip()
        finally:
            process.send_signal(signal.SIGINT)


class Reader:
    """One stream. It only notes what came when, so that the measuring process is not what is measured."""

    def __init__(self, path: str, headers: dict[str, str]) -> None:
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
        self.request = "\r\n".join([*lines, "", ""]).encode()
        self.came: list[tuple[float, bytes]] = []
        self.opened = asyncio.Event()

    async def read(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        writer.write(self.request)
        while data := await reader.read(1 << 16):
            self.came.append((time.time(), data))
            self.opened.set()

    def events(self) -> list[tuple[int, float]]:
        """(seq, delay in ms) of each event; one that came in pieces counts from its last."""
        found, rest = [], b""
        for now, data in self.came:
            rest += data
            end = 0
            for event in EVENT.finditer(rest):
                at = datetime.fromisoformat(event[2].decode()).timestamp()
                found.append((int(event[1]), (now - at) * 1000))
                end = event.end()
            rest = rest[end:]
        return found


async def listen(count: int, token: str, ready: Any, over: Any) -> list[list[tuple[int, float]]]:
    """Open the streams, half of them WebSockets, and answer what each heard until it is over."""
    headers = {"Authorization": f"Bearer {token}"}
    kinds = [("/tickets/events", headers), ("/ws/tickets", {**headers, **HANDSHAKE})]
    readers = [Reader(*kinds[number % 2]) for number in range(count)]
    tasks = []
    for number, reader in enumerate(readers):
        tasks.append(asyncio.create_task(reader.read()))
        if number % 20 == 19:
            await asyncio.wait_for(reader.opened.wait(), 30)
    await asyncio.gather(*(asyncio.wait_for(reader.opened.wait(), 30) for reader in readers))
    ready.set()
    await asyncio.to_thread(over.wait)
    for task in tasks:
        task.cancel()
    return [reader.events() for reader in readers]


def listen_apart(count: int, token: str, ready: Any, over: Any, answer: Any) -> None:
    answer.put(asyncio.run(listen(count, token, ready, over)))


async def at_rate(client: httpx.AsyncClient, rate: float, seconds: float, *request: Any, **body: Any) -> list[float]:
    """Latencies in ms of one request at a steady rate, each from its due time (open loop)."""
    start, found = time.perf_counter() + 0.2, list[float]()

    async def one(due: float) -> None:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        answer = await client.request(*request, **body)
        answer.raise_for_status()
        found.append((time.perf_counter() - due) * 1000)

    await asyncio.gather(*(one(start + turn / rate) for turn in range(int(rate * seconds))))
    return found


def show(name: str, values: list[float]) -> None:
    shares = "".join(f"{quantile(values, share):9.1f}" for share in (0.5, 0.95, 0.99, 1.0))
    print(f"{name:34}{shares}")


async def api(headers: dict[str, str], rate: float, seconds: float, label: str) -> int:
    """Both requests at once; answers how many tickets were created."""
    limits = httpx.Limits(max_connections=16)
    async with httpx.AsyncClient(base_url=URL, headers=headers, timeout=30, limits=limits, trust_env=False) as client:
        created, alive = await asyncio.gather(
            at_rate(client, rate, seconds, "POST", "/ticket", json=TICKET),
            at_rate(client, rate, seconds, "GET", "/healthz"),
        )
    show(f"POST /ticket, {label}", created)
    show(f"GET /healthz, {label}", alive)
    return len(created)


def seconds_of_cpu(home: Path) -> float:
    """What the web processes of this service have used so far."""
    found = 0.0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"ORCHESTRATOR_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0")
            if ours and b"orchestrator_web" in (process / "cmdline").read_bytes():
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                found += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def measure(home: Path, token: str, count: int, rate: float, seconds: float) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    load = os.getloadavg()[0]
    print(f"{count} readers on one web process, {rate:g} creates/s for {seconds:g} s; ms")
    print(f"{os.cpu_count()} cores, load {load:.1f} before it began")
    print(f"{'':34}{'p50':>9}{'p95':>9}{'p99':>9}{'most':>9}")
    before = seconds_of_cpu(home)
    asyncio.run(api(headers, rate, seconds, "no readers"))
    alone = seconds_of_cpu(home) - before
    ready, over, answer = CONTEXT.Event(), CONTEXT.Event(), CONTEXT.Queue()
    CONTEXT.Process(target=listen_apart, args=(count, token, ready, over, answer), daemon=True).start()
    ready.wait(120)
    before = seconds_of_cpu(home)
    created = asyncio.run(api(headers, rate, seconds, "with readers"))
    time.sleep(3)
    streaming = seconds_of_cpu(home) - before - alone
    over.set()
    heard = answer.get(timeout=60)
    show("event: commit to receipt", [delay for events in heard for _, delay in events])
    show("the same, worst reader's p99", [max(quantile([delay for _, delay in events], 0.99) for events in heard)])
    whole = [seq for seq, _ in heard[0]]
    wrong = sum([seq for seq, _ in events] != whole or len(whole) != created for events in heard)
    print(f"{created} events each; {wrong} readers lost, doubled or reordered any")
    print(f"web worker: {alone:.1f} s of CPU without readers, {streaming:.1f} s more with them")
    print(f"that is {streaming / max(1, created * count) * 1e6:.0f} us for each event of each reader")


def main() -> None:
    given = [float(word) for word in sys.argv[1:4]]
    count, rate, seconds = given + [500.0, 20.0, 15.0][len(given) :]
    with tempfile.TemporaryDirectory() as directory, service(Path(directory) / "home") as token:
        measure(Path(directory) / "home", token, int(count), rate, seconds)


if __name__ == "__main__":
    main()
