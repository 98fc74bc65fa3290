"""Looks at what lies around the servers: clocks, the disk under the home, the API's port, the robots' bus."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx

from models.kernel.settings import Settings
from orchestrator_cli.addresses import service_url
from orchestrator_cli.doctor.findings import FAIL, OK, WARN, Finding, judge
from orchestrator_cli.home import Home

FURTHEST_SECONDS = 1.0
LEAST_BYTES, FEW_BYTES = 200 * 2**20, 2 * 2**30
REACH_SECONDS = 2.0
PORTS = {"http": 80, "https": 443, "mqtt": 1883, "mqtts": 8883}
OK_STATUS = 200


def clock_finding(check: str, theirs: float, asked_at: float, answered_at: float) -> Finding:
    """How far a clock is from ours (all in seconds since 1970); how long the question took is not held against it."""
    off = theirs - (asked_at + answered_at) / 2
    slack = (answered_at - asked_at) / 2
    found = f"{off * 1000:+.0f} ms from this machine's, give or take {slack * 1000:.0f}"
    return judge(check, abs(off) - slack < FURTHEST_SECONDS, found, "let NTP keep both clocks", WARN)


def look_at_disk(chosen: Settings) -> list[Finding]:
    """Room under the home, or under its nearest parent that exists."""
    place = Home.at(chosen.home).directory
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    verdict = OK if free >= FEW_BYTES else WARN if free >= LEAST_BYTES else FAIL
    return [
        Finding("disk", verdict, f"{free / 2**30:.1f} GiB free under {place}", "make room" if verdict != OK else "")
    ]


def look_at_service(chosen: Settings) -> list[Finding]:
    """The API, asked whether it is ready; on another machine that may not be for us to reach."""
    url = service_url(chosen)
    try:
        answer = httpx.get(f"{url}/readyz", timeout=REACH_SECONDS, trust_env=False)
        missing = ", ".join(map(str, answer.json().get("missing", [])))
    except (httpx.HTTPError, ValueError, AttributeError) as error:
        found = f"{url} does not answer: {str(error) or type(error).__name__}"
        return [Finding("service", WARN, found, "set ORCHESTRATOR_URL if it runs elsewhere")]
    ready = answer.status_code == OK_STATUS
    found = f"{url} is ready" if ready else f"{url} waits for {missing or 'something'}"
    return [judge("service", ready, found, "what is missing has a line of its own here", WARN)]


def look_at_driver(chosen: Settings) -> list[Finding]:
    """Whether somebody listens where robot commands go."""
    if chosen.driver == "sim":
        return [Finding("driver", OK, "simulated robots")]
    url = chosen.actuator_url if chosen.driver == "http" else chosen.mqtt_url
    parts = urlsplit(url)
    address = parts.hostname or "", parts.port or PORTS[parts.scheme]
    shown = f"{chosen.driver} driver, {parts.scheme}://{address[0]}:{address[1]}"
    try:
        socket.create_connection(address, timeout=REACH_SECONDS).close()
    except OSError as error:
        return [Finding("driver", FAIL, f"{shown}: {error}", "start it, or set its address")]
    return [Finding("driver", OK, f"{shown} listens")]


def around(chosen: Settings) -> dict[str, Callable[[], list[Finding]]]:
    """What can be looked at without the servers."""
    return {
        "service": lambda: look_at_service(chosen),
        "driver": lambda: look_at_driver(chosen),
        "disk": lambda: look_at_disk(chosen),
    }
