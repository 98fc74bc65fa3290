"""OrchestratorEvent v1: what is told of a run to whoever reads its outputs, and the ledger's topics.

An event is made of the run's row and of nothing else, so that a replay makes the same. Where it is told, it
gets `published_ts_ms`: the only part of it that is operational and that says nothing of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEMA, SCHEMA_VERSION = "orchestrator_event", "1"

RUN_STARTED = "EngineRunStarted"
RUN_COMPLETED = "EngineRunCompleted"
RUN_FAILED = "EngineRunFailed"
DECISION_PUBLISHED = "HysteresisDecisionPublished"
EVENT_TYPES = (RUN_STARTED, RUN_COMPLETED, RUN_FAILED, DECISION_PUBLISHED)
OPERATIONAL = "published_ts_ms"

STARTED = "engine_run_started"
COMPLETED = "engine_run_completed"
FAILED = "engine_run_failed"
DECIDED = "hysteresis_decision_published"
PUBLIC_TOPICS = (STARTED, COMPLETED, FAILED, DECIDED)
"""What the outputs consist of."""

PLANNED = "engine_run_planned"
RESUMED = "engine_run_resumed"
RETRIED = "engine_run_waiting"
RELEASED = "engine_run_released"
LOST = "engine_run_lost"
EVIDENCE = "engine_run_late_outcome"
"""What the ledger knows beside them."""

FROM_RUN = (
    "symbol",
    "engine_timestamp_ms",
    "cut_start_ingest_seq",
    "cut_end_ingest_seq",
    "cut_kind",
    "engine_mode",
    "counts_by_event_type",
)
"""The columns of a run that each of its events has under the same name."""


def event_of(
    run: Mapping[str, Any], event_type: str, attempt: int, payload: Mapping[str, Any] | None
) -> dict[str, Any]:
    """One event of a run without its `published_ts_ms`."""
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "event_type": event_type,
        "run_id": run["id"],
        **{name: run[name] for name in FROM_RUN},
        "attempt": attempt,
        "payload": None if payload is None else dict(payload),
    }


def started_event(run: Mapping[str, Any]) -> dict[str, Any]:
    """Told once, with the first attempt."""
    return event_of(run, RUN_STARTED, 1, None)


def completed_event(run: Mapping[str, Any], regime_output: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run with the number of its last attempt in `attempts`; in hysteresis mode with the selected output."""
    return event_of(run, RUN_COMPLETED, run["attempts"], completed_payload(regime_output))


def failed_event(run: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run with its last attempt, its error's kind and detail."""
    payload = failed_payload(run["error_kind"], run["error_detail"])
    return event_of(run, RUN_FAILED, run["attempts"], payload)


def decision_event(run: Mapping[str, Any], decision: Mapping[str, Any]) -> dict[str, Any]:
    """Told just before the completion whose attempt it has."""
    return event_of(run, DECISION_PUBLISHED, run["attempts"], {"hysteresis_decision": decision})


def completed_payload(regime_output: Mapping[str, Any]) -> dict[str, Any]:
    return {"regime_output": regime_output}


def failed_payload(error_kind: str, error_detail: str) -> dict[str, Any]:
    return {"error_kind": error_kind, "error_detail": error_detail}
