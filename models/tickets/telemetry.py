"""Telemetry in the documented shapes, derived from the ledger: the last entries, and counts that scan nothing.

Events: {timestamp, type, data}. Metrics: {timestamp, name, value, tags}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, select

from models.kernel import latch
from models.kernel.ledger import ledger
from models.kernel.tallies import read_tallies
from models.tickets import events
from models.tickets.states import TICKET

SERVICE = "service"
KINDS = (TICKET.kind, SERVICE, latch.KIND)
STARTED, STOPPED = "service_started", "service_stopped"
SHOWN = 100

EVENT_KEYS: dict[str, tuple[str, ...]] = {
    events.CREATED: ("ticket_id", "command", "priority"),
    events.STARTED: ("ticket_id", "command"),
    events.COMPLETED: ("ticket_id", "command", "execution_time_ms"),
    events.FAILED: ("ticket_id", "command", "error", "execution_time_ms"),
    events.CANCELLED: ("ticket_id", "command", "execution_time_ms"),
    events.ESTOP_ENGAGED: ("scope", "reason", "by"),
    events.ESTOP_RELEASED: ("scope", "reason", "by"),
    STARTED: ("service", "version"),
    STOPPED: ("service", "total_tickets"),
}
ENDS = {events.COMPLETED: "success", events.FAILED: "failed"}
OUTCOME_METRICS = {events.COMPLETED: "execution.success", events.FAILED: "execution.failure"}
METRICS_AT_CREATION = 2


def list_last(connection: Connection, kinds: Sequence[str], topics: Sequence[str]) -> list[RowMapping]:
    """The last SHOWN ledger rows of these kinds and topics, oldest first."""
    found: list[RowMapping] = []
    for kind in kinds:
        mine = (ledger.c.subject_kind == kind, ledger.c.topic.in_(topics))
        columns = (ledger.c.seq, ledger.c.topic, ledger.c.at, ledger.c.body, ledger.c.elapsed_ms)
        query = select(*columns).where(*mine).order_by(ledger.c.seq.desc()).limit(SHOWN)
        found += connection.execute(query).mappings().all()
    return sorted(found, key=lambda row: row["seq"])[-SHOWN:]


def topic_counts(connection: Connection, kind: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in read_tallies(connection, kind, "topic"):
        counts[row.name] = counts.get(row.name, 0) + int(row.value)
    return counts


def list_events(connection: Connection) -> dict[str, Any]:
    """{count, events}: how many there were, and the last of them, oldest first."""
    rows = list_last(connection, KINDS, list(EVENT_KEYS))
    counts = {topic: n for kind in KINDS for topic, n in topic_counts(connection, kind).items()}
    shown = [
        {
            "timestamp": row["at"].isoformat(),
            "type": row["topic"],
            "data": {key: row["body"].get(key) for key in EVENT_KEYS[row["topic"]]},
        }
        for row in rows
    ]
    return {"count": sum(counts.get(topic, 0) for topic in EVENT_KEYS), "events": shown}


def list_metrics(connection: Connection) -> dict[str, Any]:
    """{count, metrics, latency}: how many there were, the last of them, and latency by command and status."""
    rows = list_last(connection, (TICKET.kind,), [events.CREATED, *ENDS])
    counts = topic_counts(connection, TICKET.kind)
    latency = latencies(connection)
    created = counts.get(events.CREATED, 0)
    total = created - sum(row["topic"] == events.CREATED for row in rows)
    metrics: list[dict[str, Any]] = []
    for row in rows:
        total += row["topic"] == events.CREATED
        metrics += metrics_of(row, total)
    timed = sum(entry["count"] for entry in latency)
    ended = sum(counts.get(topic, 0) for topic in ENDS)
    return {"count": METRICS_AT_CREATION * created + ended + timed, "metrics": metrics[-SHOWN:], "latency": latency}


def metrics_of(row: RowMapping, total: int) -> Iterator[dict[str, Any]]:
    """The documented metrics of one ledger row; `total` is the number of tickets just after it."""
    command = {"command": row["body"]["command"]}
    if row["topic"] == events.CREATED:
        yield metric(row, "tickets.created", 1.0, command)
        yield metric(row, "tickets.total", float(total), {})
        return
    if row["elapsed_ms"] is not None:
        tags = {**command, "status": ENDS[row["topic"]]}
        yield metric(row, "execution.latency_ms", row["elapsed_ms"], tags)
    yield metric(row, OUTCOME_METRICS[row["topic"]], 1.0, command)


def metric(row: RowMapping, name: str, value: float, tags: Mapping[str, str]) -> dict[str, Any]:
    return {"timestamp": row["at"].isoformat(), "name": name, "value": value, "tags": dict(tags)}


def latencies(connection: Connection) -> list[dict[str, Any]]:
    """Execution latency by command and status: count, mean and the upper bounds (ms) that hold 50 and 95 percent."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in read_tallies(connection, TICKET.kind, "elapsed"):
        if row.name in ENDS:
            found.setdefault((row.label, ENDS[row.name]), {})[row.bucket] = row.value
    return [summary(command, status, values) for (command, status), values in sorted(found.items())]


def summary(command: str, status: str, values: dict[str, float]) -> dict[str, Any]:
    total = values.pop("sum", 0.0)
    count = int(values.get("+Inf", 0))
    edges = sorted((float(edge), n) for edge, n in values.items() if edge != "+Inf")
    bounds = {f"p{share}_ms": upper_bound(edges, count * share / 100) for share in (50, 95)}
    return {"command": command, "status": status, "count": count, "mean_ms": round(total / count, 3), **bounds}


def upper_bound(edges: Sequence[tuple[float, float]], wanted: float) -> float | None:
    """The smallest edge below which that many lie; None when it is beyond the last edge."""
    return next((edge for edge, n in edges if n >= wanted), None)
