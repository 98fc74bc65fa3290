"""Rows as the contract's objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.engine import queries, workers
from models.engine.publications import COUNT_CAP, count_pending, find_publication
from models.engine.states import RUN, RUNNING
from models.kernel.tallies import count_states
from orchestrator_web.engine import schemas
from orchestrator_web.json import dumps

Row = Mapping[str, Any]

SAME = tuple(name for name in schemas.RunRecord._declared_fields if name not in {"run_id", "status"})


def read_health(connection: Any) -> dict[str, Any]:
    """The contract's HealthStatus, and why something is paused."""
    control, buffer = queries.get_status(connection), queries.get_buffer(connection)
    return health(control, buffer, body_of_config(connection)["buffer_retention"]["max_records"])


def body_of_config(connection: Any) -> dict[str, Any]:
    config = queries.find_config_row(connection)
    return config["body"] if config else NOTHING


def read_status(connection: Any) -> dict[str, Any]:
    """How the engine does at this moment."""
    control, buffer = queries.get_status(connection), queries.get_buffer(connection)
    body = body_of_config(connection)
    counts = count_states(connection, RUN.kind)
    engines = workers.list_engines(connection)
    return {
        **health(control, buffer, body["buffer_retention"]["max_records"]),
        "config_version": control["config_version"],
        "config_error": control["config_error"] or "\n".join(workers.find_misfits(engines, options_of(body))) or None,
        "engine_module": engines[0].module if engines else None,
        "engine_version": engines[0].version if engines else None,
        "engines": [engine_facts(each) for each in engines],
        "buffer": buffer_facts(buffer, body["buffer_retention"]["max_records"]),
        "scheduler": {"mode": body["scheduler"]["mode"], **scheduler_facts(control)},
        "runs": {state: counts.get(state, 0) for state in schemas.STATES},
        "publish": publish_facts(connection, control, buffer["now_ms"], body["output_publish"]["stream"] or None),
    }


NOTHING: dict[str, Any] = {
    "buffer_retention": {"max_records": None},
    "scheduler": {"mode": None},
    "engine": {"hysteresis": None},
    "output_publish": {"stream": None},
}
"""What an engine without a configuration is told to do."""


def options_of(body: dict[str, Any]) -> dict[str, Any] | None:
    options: dict[str, Any] | None = body["engine"]["hysteresis"]
    return options


def engine_facts(engine: workers.Running) -> dict[str, Any]:
    return {"engine_module": engine.module, "engine_version": engine.version, "workers": engine.workers}


def health(control: Row, buffer: Row, capacity: int | None) -> dict[str, Any]:
    """A full buffer pauses ingestion by itself."""
    full = capacity is not None and buffer["depth"] >= capacity
    ingestion_paused = control["ingestion_paused"] or full
    why = [control["paused_why"]] if control["paused_why"] else []
    why += [f"the buffer holds {buffer['depth']} of {capacity} records"] if full else []
    return {
        "ready": control["state"] == RUNNING and not ingestion_paused and not control["scheduling_paused"],
        "state": control["state"],
        "ingestion_paused": ingestion_paused,
        "scheduling_paused": control["scheduling_paused"],
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


def scheduler_facts(control: Row) -> dict[str, Any]:
    return {
        "next_tick_ms": control["next_tick_ms"],
        "last_tick_ms": control["last_tick_ms"],
        "lag_ms": control["lag_ms"],
        "ticks": control["ticks"],
        "skipped": control["skipped_ticks"],
        "missed": control["missed_ticks"],
    }


def publish_facts(connection: Any, control: Row, now_ms: int, stream: str | None) -> dict[str, Any]:
    publication: Row = find_publication(connection) or {}
    pending = count_pending(connection, COUNT_CAP + 1) if stream else 0
    return {
        "stream": stream,
        "pending": min(pending, COUNT_CAP),
        "pending_is_estimate": pending > COUNT_CAP,
        "blocked_ms": blocked_ms(control, now_ms),
        "blocks": control["blocks"],
        "published": publication.get("published", 0),
        "last_seq": publication.get("seq"),
        "last_error": publication.get("last_error"),
    }


def blocked_ms(control: Row, now_ms: int) -> int:
    """For how long publishing has paused the planning of runs, up to now."""
    since = control["blocked_at"]
    return int(control["blocked_ms"]) + (max(0, now_ms - int(since.timestamp() * 1000)) if since else 0)


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
