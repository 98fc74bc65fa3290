"""Runs carried out in this process, by the engine itself and the worker's acts, one after the other."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from models.engine import operations
from models.engine.exports import Range, export_lines, plan_export
from models.engine.inputs import find_snapshot
from models.engine.operations import Attempt
from models.engine.queries import find_state
from models.engine.snapshots import engine_input
from models.kernel.session import statement, transaction
from orchestrator_tasks.engine.adapter import Engine, answer
from tests.engine import desk

EXAMPLE = "examples.regime_engine.engine"
Call = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def example() -> Call:
    return functools.partial(answer, Engine.load(EXAMPLE))


def carry_out(engine: Call, most: int = 10**6) -> None:
    """What is ready, and what becomes so, up to so many runs."""
    while most and (ready := [job for job in desk.jobs() if not job["waits"]]):
        (run,) = desk.rows("SELECT * FROM engine_runs WHERE id = :id", id=ready[0]["subject_id"])
        carry_out_one(desk.take(run), engine)
        most -= 1


def carry_out_one(attempt: Attempt, engine: Call) -> None:
    run = attempt.run
    with statement() as connection:
        cut = run["cut_start_ingest_seq"], run["cut_end_ingest_seq"]
        found = find_snapshot(connection, run["symbol"], run["engine_timestamp_ms"], *cut)
        state = find_state(connection, run["symbol"], run["number"], run["state_epoch"])
    if found is None:
        desk.fail(attempt, "missing_snapshot_inputs", "missing SnapshotInputs")
        return
    request = {"mode": run["engine_mode"], "input": engine_input(found[1], run["engine_timestamp_ms"])}
    told = engine({**request, **hysteresis_of(run, state)})
    settle(attempt, told, found[0])


def hysteresis_of(run: Mapping[str, Any], state: str | None) -> dict[str, Any]:
    if run["engine_mode"] == "truth":
        return {}
    (config,) = desk.rows("SELECT body FROM engine_configs WHERE version = :v", v=run["config_version"])
    return {"state": state and json.loads(state), "config": config["body"]["engine"]["hysteresis"]}


def settle(attempt: Attempt, told: Mapping[str, Any], seq: int) -> None:
    with transaction() as connection:
        if "ok" in told:
            operations.settle_completed(connection, attempt, told["ok"], desk.WORKER, snapshot_ingest_seq=seq)
        else:
            kind, detail = told["error_kind"], told["error_detail"]
            operations.settle_failed(connection, attempt, kind, detail, desk.WORKER, snapshot_ingest_seq=seq)


def exported(**wanted: Any) -> list[bytes]:
    """The lines of an export."""
    with statement() as connection:
        return [*export_lines(connection, plan_export(connection, Range(**wanted)))]
