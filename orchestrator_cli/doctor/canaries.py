"""Sends a small task through every queue and waits for the workers' answers."""

from __future__ import annotations

import time

import redis
from sqlalchemy import text

from models.kernel import ids
from models.kernel.errors import OrchestratorError
from models.kernel.hints import canary_key
from models.kernel.session import statement
from orchestrator_cli.doctor.broker import connect
from orchestrator_cli.doctor.findings import FAIL, OK, WARN, Finding
from orchestrator_tasks import publisher
from orchestrator_tasks.app import app

FIND_OUT = "is there a worker with `--queues {queue}`? its log says what it does"


def look_at_queues(seconds: float) -> list[Finding]:
    """One finding for each queue: how long its canary took, or that nobody read it within so many seconds."""
    queues = [queue.name for queue in app.conf.task_queues]
    canary = ids.new_uuid()
    lengths = {queue: publisher.count_messages(queue) for queue in queues}
    sent_at = time.monotonic()
    for queue in queues:
        publisher.publish_canary(queue, canary)
    heard = listen(canary, len(queues), sent_at, seconds)
    for queue in queues:
        if queue not in heard:
            publisher.withdraw_canary(queue, canary)
    busy = count_busy() if len(heard) < len(queues) else {}
    return [finding(queue, lengths[queue], heard.get(queue), busy.get(queue, 0), seconds) for queue in queues]


def listen(canary: str, wanted: int, sent_at: float, seconds: float) -> dict[str, float]:
    """The queues whose canary answered, with how many milliseconds that took."""
    heard: dict[str, float] = {}
    with connect() as client:
        while len(heard) < wanted and (left := sent_at + seconds - time.monotonic()) > 0:
            try:
                answer = client.blpop([canary_key(canary)], timeout=min(left, 1.0))
            except redis.TimeoutError:
                continue
            if answer:
                heard[answer[1].decode()] = (time.monotonic() - sent_at) * 1000
    return heard


def count_busy() -> dict[str, int]:
    """How many jobs of each queue are at work right now, which explains a canary that had to wait."""
    query = (
        "SELECT queue, count(*) FROM jobs WHERE fence IS NOT NULL AND lease_until > clock_timestamp() GROUP BY queue"
    )
    try:
        with statement() as connection:
            return {row[0]: row[1] for row in connection.execute(text(query))}
    except OrchestratorError:
        return {}


def finding(queue: str, length: int, took_ms: float | None, busy: int, seconds: float) -> Finding:
    waiting = f"{length} messages before it"
    if took_ms is not None:
        return Finding(f"queue {queue}", OK, f"canary back after {took_ms:.0f} ms, {waiting}")
    if busy:
        found = f"no canary within {seconds:g} s, {waiting}, {busy} jobs at work"
        return Finding(f"queue {queue}", WARN, found, "all threads may be busy: ask again, or raise the concurrency")
    return Finding(f"queue {queue}", FAIL, f"no canary within {seconds:g} s, {waiting}", FIND_OUT.format(queue=queue))
