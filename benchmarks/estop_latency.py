"""How fast an e-stop is: `python -m benchmarks.estop_latency [rounds] [--bus PORT]`, against `make up`.

Each round sets five robots moving, starts executions that race it, sends POST /estop, and
takes the time until each robot had its stop: for the simulated robots from their own record,
for an actuator bus (start the service with ORCHESTRATOR_DRIVER=http and
ORCHESTRATOR_ACTUATOR_URL=http://127.0.0.1:PORT) from the bus that this script then is. That bus
ignores every header, as the contract allows, and so shows what still begins: each drive that
reached it after the answer to POST /estop, how late, and how soon after it came a stop.
BUS_LAG makes the bus take each drive so many seconds late, so that there are some.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy.engine import make_url

from examples.actuator_bus import Actuate, Bus
from orchestrator_cli.embedded.postgres import Postgres

ROBOTS, RACERS = 5, 12
LAG = float(os.environ.get("BUS_LAG", "0"))  # seconds that the bus takes to take a drive
HOME = Path(os.environ.get("ORCHESTRATOR_HOME", ".orchestrator"))
PATIENCE_SECONDS = 20.0

Arrivals = Callable[[str, str], list[float]]


class Plain(Actuate):
    """A bus that knows no fences: it takes whatever comes, and keeps when it came and for which robot."""

    def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
        body = self.read_json()
        if body["command"] == "drive":
            time.sleep(LAG)
        self.server.received.append({**body, "at": time.time(), "target": self.headers.get("X-Target", "")})
        self.answer(200, {"ack": True, "received_at": datetime.now(UTC).isoformat()})


def ask(method: str, path: str, body: Any, *expected: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("PORT", "8000")), timeout=60)
    token = (HOME / "admin.token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Prefer": "respond-async"}
    connection.request(method, path, json.dumps(body), headers)
    answer = connection.getresponse()
    said = json.loads(answer.read())
    connection.close()
    if answer.status not in expected:
        raise SystemExit(f"{method} {path} answered {answer.status}: {said}")
    return dict(said)


def create(target: str) -> str:
    params = {"speed": 0.1, "duration_seconds": 60}
    return str(ask("POST", "/ticket", {"command": "drive", "params": params, "target": target}, 201)["id"])


def execute(ticket_id: str) -> None:
    ask("POST", "/execute", {"ticket_id": ticket_id}, 202, 409)


def of_the_bus(bus: Bus) -> Arrivals:
    def arrivals(command: str, target: str) -> list[float]:
        return [one["at"] for one in list(bus.received) if (one["command"], one["target"]) == (command, target)]

    return arrivals


def of_the_robots() -> Arrivals:
    url = make_url(os.environ.get("DATABASE_URL") or Postgres(HOME / "postgres").url())
    connection = psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    connection.autocommit = True

    def arrivals(command: str, target: str) -> list[float]:
        column = "began_at" if command == "drive" else "ended_at"
        with connection.cursor() as cursor:
            moment = f"extract(epoch FROM {column})::float8"
            cursor.execute(f"SELECT {moment} FROM sim_motions WHERE target = %s AND {column} IS NOT NULL", (target,))
            return [row[0] for row in cursor.fetchall()]

    return arrivals


def wait_for(arrivals: Arrivals, command: str, targets: list[str], after: float) -> list[float]:
    """When each robot was first told this after a moment."""
    deadline = time.time() + PATIENCE_SECONDS
    while True:
        found = [min((at for at in arrivals(command, target) if at >= after), default=0.0) for target in targets]
        if all(found):
            return found
        if time.time() > deadline:
            raise SystemExit(f"not every robot had its {command} within {PATIENCE_SECONDS:g} s")
        time.sleep(0.02)


def race(tickets: list[str]) -> list[threading.Thread]:
    threads = [threading.Thread(target=execute, args=(ticket_id,)) for ticket_id in tickets]
    for thread in threads:
        thread.start()
    return threads


def measure(arrivals: Arrivals, rounds: int) -> Iterator[tuple[float, list[float], list[float], list[float]]]:
    """For each round the answer's time, the stops' times, the late drives and how soon each was followed by a stop."""
    for number in range(rounds):
        mark = f"{os.getpid()}-{number}"
        moving = [f"m{mark}-{n}" for n in range(ROBOTS)]
        racing = [f"x{mark}-{n}" for n in range(RACERS)]
        for target in moving:
            execute(create(target))
        racers = [create(target) for target in racing]
        wait_for(arrivals, "drive", moving, 0.0)
        threads = race(racers)
        time.sleep(number % 10 * 0.05)  # so that they are met everywhere on their way
        sent = time.time()
        ask("POST", "/estop", {"scope": "all", "reason": "benchmark"}, 200)
        answered = time.time()
        stops = wait_for(arrivals, "stop", moving, sent)
        for thread in threads:
            thread.join()
        time.sleep(0.5)
        late = [(target, at) for target in racing for at in arrivals("drive", target) if at > answered]
        followed = [wait_for(arrivals, "stop", [target], at)[0] - at for target, at in late]
        yield answered - sent, [at - sent for at in stops], [at - answered for _, at in late], followed
        ask("DELETE", "/estop", {"reason": "benchmark"}, 200)


def shown(name: str, values: list[float]) -> str:
    ordered = sorted(value * 1000 for value in values)
    if not ordered:
        return f"{name:44}{0:6}"
    quantiles = "".join(f"{ordered[min(len(ordered) - 1, int(len(ordered) * q))]:9.1f}" for q in (0.5, 0.95, 1.0))
    return f"{name:44}{len(ordered):6}{quantiles}"


def report(arrivals: Arrivals, rounds: int) -> None:
    results = list(measure(arrivals, rounds))
    print(f"{rounds} rounds, {ROBOTS} robots, {RACERS} executions racing, {os.cpu_count()} cores; milliseconds")
    print(f"{'':44}{'count':>6}{'p50':>9}{'p95':>9}{'most':>9}")
    print(shown("POST /estop sent to its answer", [result[0] for result in results]))
    print(shown("POST /estop sent to a robot's stop", [at for result in results for at in result[1]]))
    print(shown("POST /estop sent to the last robot's stop", [max(result[1]) for result in results]))
    print(shown("a drive that began after the answer, by", [at for result in results for at in result[2]]))
    print(shown("such a drive to its stop", [at for result in results for at in result[3]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=50)
    parser.add_argument("--bus", type=int, metavar="PORT")
    given = parser.parse_args()
    if given.bus is None:
        report(of_the_robots(), given.rounds)
        return
    with Bus(("127.0.0.1", given.bus), Plain) as bus:
        threading.Thread(target=bus.serve_forever, daemon=True).start()
        report(of_the_bus(bus), given.rounds)
        bus.shutdown()


if __name__ == "__main__":
    main()
