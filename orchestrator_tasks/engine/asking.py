"""Asking the engine: what one attempt comes to, if there is something to ask it with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from models.engine.config import HYSTERESIS
from models.engine.operations import Attempt, EngineName
from models.engine.snapshots import SnapshotNotBuilt, engine_input
from models.engine.tables import ENGINE_TIMEOUT, MISSING_INPUTS, SNAPSHOT_FAILURE
from models.kernel import clock
from models.kernel.settings import settings
from orchestrator_tasks.engine.hosts import Interrupt, Interrupted, call_engine
from orchestrator_tasks.engine.together import Given, Outcome
from orchestrator_tasks.keeper import TIMEOUT

MISSING = "missing SnapshotInputs"


def decide(attempt: Attempt, given: Given, interrupt: Interrupt) -> Outcome:
    """Call the engine, if there is something to call it with. Raises Interrupted, Unavailable."""
    if given.snapshot is None:
        return Outcome(error_kind=MISSING_INPUTS, error_detail=MISSING)
    seq, text = given.snapshot
    try:
        asked = engine_input(text, attempt.run["engine_timestamp_ms"])
    except SnapshotNotBuilt as error:
        return Outcome(error_kind=SNAPSHOT_FAILURE, error_detail=error.message, snapshot_ingest_seq=seq)
    engine = given.config.engine
    request = {"mode": attempt.run["engine_mode"], "input": asked}
    if attempt.run["engine_mode"] == HYSTERESIS:
        state = None if given.state is None else orjson.loads(given.state)
        request |= {"state": state, "config": engine.hysteresis}
    began = clock.monotonic()
    answer = called(request, engine.timeout_ms / 1000, engine.memory_mb, interrupt)
    elapsed_ms = round((clock.monotonic() - began) * 1000, 3)
    name = EngineName(settings().engine_module, answer.get("engine_version"))
    facts: dict[str, Any] = {"snapshot_ingest_seq": seq, "elapsed_ms": elapsed_ms, "engine": name}
    if "ok" in answer:
        return Outcome(result=answer["ok"], **facts)
    return Outcome(error_kind=answer["error_kind"], error_detail=answer["error_detail"], **facts)


def called(request: Mapping[str, Any], timeout: float, memory_mb: int, interrupt: Interrupt) -> Mapping[str, Any]:
    """The engine's answer. A host that does not even keep the engine's time is ended by the keeper."""
    try:
        return call_engine(request, timeout, memory_mb, interrupt)
    except Interrupted as interrupted:
        if interrupted.reason != TIMEOUT:
            raise
        return {"error_kind": ENGINE_TIMEOUT, "error_detail": "the engine did not answer within its time"}
