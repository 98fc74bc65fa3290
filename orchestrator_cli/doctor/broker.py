"""Looks at Redis or Valkey: version, whether it keeps and never drops messages, its clock, and the queues."""

from __future__ import annotations

import time
from typing import Any

import redis

from models.kernel.hints import redis_url
from models.kernel.settings import settings
from orchestrator_cli.checks import OLDEST_REDIS
from orchestrator_cli.doctor.findings import WARN, Finding, judge
from orchestrator_cli.doctor.machine import clock_finding

REPLY_SECONDS = 2.0


def connect() -> redis.Redis:
    url = redis_url(settings().broker_url)
    return redis.Redis.from_url(url, socket_timeout=REPLY_SECONDS, socket_connect_timeout=REPLY_SECONDS)


def look_at_broker() -> list[Finding]:
    """Every finding about the broker."""
    with connect() as client:
        facts: dict[str, Any] = client.info()
        asked_at = time.time()
        seconds, microseconds = client.time()
        clock = clock_finding("clock of the broker", seconds + microseconds / 1e6, asked_at, time.time())
    version = str(facts.get("redis_version", "0"))
    kind = facts.get("server_name", "redis")
    policy = str(facts.get("maxmemory_policy", "unknown"))
    return [
        judge(
            "broker",
            int(version.split(".", maxsplit=1)[0]) >= OLDEST_REDIS,
            f"{kind}, Redis protocol {version}",
            f"{OLDEST_REDIS} or newer is needed",
        ),
        judge(
            "broker eviction", policy == "noeviction", policy, "set maxmemory-policy noeviction: it may drop messages"
        ),
        persistence(facts),
        memory(facts),
        clock,
    ]


def persistence(facts: dict[str, Any]) -> Finding:
    on = bool(facts.get("aof_enabled"))
    healthy = on and facts.get("aof_last_write_status", "ok") == "ok"
    found = (
        "append-only file is on"
        if healthy
        else "writing the append-only file fails"
        if on
        else "append-only file is off"
    )
    return judge(
        "broker persistence",
        healthy,
        found,
        "set appendonly yes and see that its disk has room; a restart costs time",
        WARN,
    )


def memory(facts: dict[str, Any]) -> Finding:
    used, most = int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0))
    found = f"{used / 2**20:.0f} MiB used, " + (f"of {most / 2**20:.0f} MiB" if most else "no limit set")
    return judge("broker memory", not most or used < 0.8 * most, found, "raise maxmemory", WARN)
