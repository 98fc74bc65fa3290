"""How long creates take at a steady rate: `python benchmarks/create_latency.py [rate] [seconds]`, against `make up`.

Open loop: each request has a due time whatever became of the ones before, and its
latency counts from then, so that a slow answer cannot hide the ones that it delays.
Beside it, in the same run and at the same rate, the cheapest answer that the same
server gives (GET /healthz): the machine's own share.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
from pathlib import Path

CLIENTS = 16
TICKET = json.dumps({"command": "drive", "params": {"speed": 1.5, "direction": 90, "duration_seconds": 5}})


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def measure(
    rate: float, seconds: float, method: str, path: str, *, body: str | None = None, expected: int
) -> list[float]:
    """Latencies in ms of one request at a steady rate."""
    home = Path(os.environ.get("ORCHESTRATOR_HOME", ".orchestrator"))
    token = (home / "admin.token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    start = time.perf_counter() + 0.2
    found: list[float] = []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("PORT", "8000")), timeout=30)
        for turn in range(number, int(rate * seconds), CLIENTS):
            due = start + turn / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != expected:
                raise SystemExit(f"{method} {path} answered {answer.status}")
            found.append((time.perf_counter() - due) * 1000)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def main() -> None:
    rate = float(sys.argv[1]) if len(sys.argv) > 1 else 100.0
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
    rows = {
        "GET /healthz": measure(rate, seconds, "GET", "/healthz", expected=200),
        "POST /ticket": measure(rate, seconds, "POST", "/ticket", body=TICKET, expected=201),
    }
    print(f"{rate:g} a second for {seconds:g} s, {os.cpu_count()} cores; milliseconds")
    print(f"{'':14}{'p50':>8}{'p95':>8}{'p99':>8}{'most':>8}")
    for name, values in rows.items():
        print(f"{name:14}" + "".join(f"{quantile(values, share):8.1f}" for share in (0.5, 0.95, 0.99, 1.0)))


if __name__ == "__main__":
    main()
