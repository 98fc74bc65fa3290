"""Rows as the contract's objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator_web.engine import schemas
from orchestrator_web.json import dumps

Row = Mapping[str, Any]

SAME = tuple(name for name in schemas.RunRecord._declared_fields if name not in {"run_id", "status"})


def status(control: Row, buffer: Row, runs: Mapping[str, int], publish: Row, module: str) -> dict[str, Any]:
    """How the engine does; a full buffer pauses ingestion by itself."""
    full = is_full(buffer)
    ingestion_paused = control["ingestion_paused"] or full
    why = [control["paused_why"]] if control["paused_why"] else []
    why += [f"the buffer holds {buffer['depth']} of {buffer['capacity']} records"] if full else []
    return {
        "ready": control["state"] == "running" and not ingestion_paused and not control["scheduling_paused"],
        "state": control["state"],
        "ingestion_paused": ingestion_paused,
        "scheduling_paused": control["scheduling_paused"],
        "paused_why": "; ".join(why) or None,
        "config_version": control["config_version"],
        "engine_module": module,
        "buffer": buffer_facts(buffer),
        "scheduler": scheduler_facts(control),
        "runs": {state: runs.get(state, 0) for state in schemas.STATES},
        "publish": {**publish, "blocked_ms": control["blocked_ms"], "blocks": control["blocks"]},
    }


def is_full(buffer: Row) -> bool:
    return buffer["capacity"] is not None and buffer["depth"] >= buffer["capacity"]


def buffer_facts(buffer: Row) -> dict[str, Any]:
    return {
        "depth": buffer["depth"],
        "capacity": buffer["capacity"],
        "age_ms": buffer["age_ms"],
        "first_ingest_seq": buffer["first_seq"] if buffer["depth"] else None,
        "last_ingest_seq": buffer["last_seq"],
    }


def scheduler_facts(control: Row) -> dict[str, Any]:
    return {
        "mode": control["mode"],
        "next_tick_ms": control["next_tick_ms"],
        "last_tick_ms": control["last_tick_ms"],
        "lag_ms": control["lag_ms"],
        "ticks": control["ticks"],
        "skipped": control["skipped_ticks"],
        "missed": control["missed_ticks"],
    }


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
