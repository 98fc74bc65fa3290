"""Rows as the contract's objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.engine import control, queries, workers
from models.engine.publications import COUNT_CAP, count_pending, find_publication
from models.engine.states import RUN, RUNNING
from models.kernel.processes import list_fresh_roles
from models.kernel.tallies import count_states
from orchestrator_web.engine import schemas
from orchestrator_web.json import dumps

Row = Mapping[str, Any]

READER = "relay"
SAME = tuple(name for name in schemas.RunRecord._declared_fields if name not in {"run_id", "status"})


def read_health(connection: Any) -> dict[str, Any]:
    """The contract's HealthStatus, and why something is paused."""
    status, buffer = queries.get_status(connection), queries.get_buffer(connection)
    unread = control.find_ingestion_reason(connection)
    return health(status, buffer, body_of_config(connection)["buffer_retention"]["max_records"], unread)


def body_of_config(connection: Any) -> dict[str, Any]:
    config = queries.find_config_row(connection)
    return config["body"] if config else NOTHING


def read_status(connection: Any) -> dict[str, Any]:
    """How the engine does at this moment."""
    status, buffer = queries.get_status(connection), queries.get_buffer(connection)
    body, unread = body_of_config(connection), control.find_ingestion_reason(connection)
    counts = count_states(connection, RUN.kind)
    engines = workers.list_engines(connection)
    return {
        **health(status, buffer, body["buffer_retention"]["max_records"], unread),
        "config_version": status["config_version"],
        "config_error": status["config_error"] or "\n".join(workers.find_misfits(engines, options_of(body))) or None,
        "engine_module": engines[0].module if engines else None,
        "engine_version": engines[0].version if engines else None,
        "engines": [engine_facts(each) for each in engines],
        "buffer": buffer_facts(buffer, body["buffer_retention"]["max_records"]),
        "subscription": {
            **stream_of(body),
            "alive": READER in list_fresh_roles(connection),
            "paused": status["ingestion_paused"],
            "paused_why": unread,
        },
        "scheduler": {"mode": body["scheduler"]["mode"], **scheduler_facts(status, buffer["now_ms"])},
        "runs": {state: counts.get(state, 0) for state in schemas.STATES},
        "publish": publish_facts(connection, status, buffer["now_ms"], body["output_publish"]["stream"] or None),
    }


NOTHING: dict[str, Any] = {
    "buffer_retention": {"max_records": None},
    "scheduler": {"mode": None},
    "engine": {"hysteresis": None},
    "subscription": {"stream": "", "group": ""},
    "output_publish": {"stream": None},
}
"""What an engine without a configuration is told to do."""


def options_of(body: dict[str, Any]) -> dict[str, Any] | None:
    options: dict[str, Any] | None = body["engine"]["hysteresis"]
    return options


def engine_facts(engine: workers.Running) -> dict[str, Any]:
    return {"engine_module": engine.module, "engine_version": engine.version, "workers": engine.workers}


def health(status: Row, buffer: Row, capacity: int | None, unread: str | None) -> dict[str, Any]:
    """A full buffer pauses ingestion by itself. `unread`: why nothing is read from the stream."""
    full = capacity is not None and buffer["depth"] >= capacity
    ingestion_paused = status["ingestion_paused"] or full
    why = [each for each in (status["paused_why"], unread) if each]
    why += [f"the buffer holds {buffer['depth']} of {capacity} records"] if full else []
    return {
        "ready": status["state"] == RUNNING and not ingestion_paused and not status["scheduling_paused"],
        "state": status["state"],
        "ingestion_paused": ingestion_paused,
        "scheduling_paused": status["scheduling_paused"],
        "paused_why": "; ".join(why) or None,
    }


def buffer_facts(buffer: Row, capacity: int | None) -> dict[str, Any]:
    return {
        "depth": buffer["depth"],
        "capacity": capacity,
        "age_ms": buffer["age_ms"],
        "first_ingest_seq": buffer["first_seq"] if buffer["depth"] else None,
        "last_ingest_seq": buffer["last_seq"],
    }


def stream_of(body: dict[str, Any]) -> dict[str, Any]:
    """The stream that events are read from, and as which group; null without one."""
    chosen = body["subscription"]
    return {"stream": chosen["stream"] or None, "group": chosen["group"] if chosen["stream"] else None}


def scheduler_facts(status: Row, now_ms: int) -> dict[str, Any]:
    return {
        "next_tick_ms": status["next_tick_ms"],
        "last_tick_ms": status["last_tick_ms"],
        "lag_ms": status["lag_ms"],
        "overdue_ms": queries.overdue_ms(status, now_ms),
        "ticks": status["ticks"],
        "skipped": status["skipped_ticks"],
        "missed": status["missed_ticks"],
    }


def publish_facts(connection: Any, status: Row, now_ms: int, stream: str | None) -> dict[str, Any]:
    publication: Row = find_publication(connection) or {}
    pending = count_pending(connection, COUNT_CAP + 1) if stream else 0
    return {
        "stream": stream,
        "pending": min(pending, COUNT_CAP),
        "pending_is_estimate": pending > COUNT_CAP,
        "blocked_ms": blocked_ms(status, now_ms),
        "blocks": status["blocks"],
        "published": publication.get("published", 0),
        "last_seq": publication.get("seq"),
        "last_error": publication.get("last_error"),
    }


def blocked_ms(status: Row, now_ms: int) -> int:
    """For how long publishing has paused the planning of runs, up to now."""
    since = status["blocked_at"]
    return int(status["blocked_ms"]) + (max(0, now_ms - int(since.timestamp() * 1000)) if since else 0)


def run(row: Row) -> dict[str, Any]:
    return {"run_id": row["id"], "status": row["state"], **{name: row[name] for name in SAME}}


def whole_run(row: Row, history: Sequence[Row], outputs: Sequence[Row]) -> bytes:
    """A run with what happened to it and what came of it."""
    return with_events(dumps({**run(row), "history": [step(one) for one in history]}), "outputs", outputs)


def step(row: Row) -> dict[str, Any]:
    return {
        "seq": row["seq"],
        "topic": row["topic"],
        "from": row["from_state"],
        "to": row["to_state"],
        "at": row["at"].isoformat(),
        "actor": row["actor"],
        "reason": row["reason"],
    }


def with_events(body: bytes, name: str, outputs: Sequence[Row]) -> bytes:
    """A JSON object with one more member: a list of events, each byte for byte as it was recorded."""
    events = ",".join(row["event"] for row in outputs).encode()
    return body[:-1] + b',"' + name.encode() + b'":[' + events + b"]}"


def config(row: Row) -> dict[str, Any]:
    return {
        "version": row["version"],
        "digest": row["digest"],
        "accepted_at": row["accepted_at"].isoformat(),
        "accepted_by": row["accepted_by"],
        "config": row["body"],
    }
