"""Everything that may be done to a run. Each act is one transition; none publishes anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, select

from models.engine import events, transitions
from models.engine.canonical import canonical, normalise
from models.engine.queries import list_attempts, now_ms
from models.engine.states import COMPLETED, FAILED, RUN
from models.engine.tables import ENGINE_FAILURE, engine_outputs
from models.kernel.errors import LeaseLost
from models.kernel.jobs import Held, jobs
from models.kernel.ledger import note
from models.kernel.schedules import storable
from models.kernel.transition import Rows

LONGEST_DETAIL = 500
WORKERS_LOST = f"{transitions.LOST_ATTEMPTS} workers fell silent one after the other while they carried the run out"


@dataclass(frozen=True)
class Attempt:
    """One leased try at one run: what the worker needs, and the fence it acts under.

    `run` holds the run's columns; `number` is the attempt's, from 1 on.
    """

    job_id: int
    fence: int
    number: int
    run: Mapping[str, Any]
    timeout_seconds: float

    @property
    def run_id(self) -> str:
        return str(self.run["id"])

    @property
    def held(self) -> dict[str, int]:
        return {"job_id": self.job_id, "fence": self.fence}


class EngineName(NamedTuple):
    """Which engine was called in an attempt: its module, and its version if it has one. Of neither: none was."""

    module: str | None = None
    version: str | None = None

    @property
    def columns(self) -> dict[str, str | None]:
        return {"engine_module": self.module, "engine_version": self.version}


NO_ENGINE = EngineName()


def take_run(connection: Connection, job_id: int, worker: str) -> Attempt | None:
    """Lease the job and start or resume the run; None when it is no longer to be had. Raises LaneBusy."""
    rows = transitions.TAKE(connection, [{"job_id": job_id}], actor=worker)
    if not rows:
        return None
    row = rows[0]
    return Attempt(
        job_id=row["job_id"],
        fence=row["fence"],
        number=row["attempts"] + 1,
        run={column.name: row[column.name] for column in transitions.SUBJECT.table.columns},
        timeout_seconds=row["job_timeout_seconds"],
    )


def settle_completed(
    connection: Connection,
    attempt: Attempt,
    result: Mapping[str, Any],
    worker: str,
    *,
    snapshot_ingest_seq: int | None = None,
    elapsed_ms: float | None = None,
    engine: EngineName = NO_ENGINE,
) -> Mapping[str, Any]:
    """Record what the engine answered: `regime_output`, and with hysteresis `hysteresis_decision` and `state`.

    With a decision `connection` must be a transaction: it is told just before the completion.
    Raises LeaseLost when the attempt no longer owns the run, NotSerialisable.
    """
    row = {
        "to": COMPLETED,
        "payload": canonical(events.completed_payload(result["regime_output"])),
        "state": canonical(result["state"]) if result.get("state") is not None else None,
        "snapshot_ingest_seq": snapshot_ingest_seq,
        "elapsed_ms": elapsed_ms,
        **engine.columns,
    }
    if "hysteresis_decision" in result:
        publish_decision(connection, attempt, result["hysteresis_decision"], worker)
    return settle_run(connection, attempt, row, worker)


def settle_failed(
    connection: Connection,
    attempt: Attempt,
    error_kind: str,
    error_detail: str,
    worker: str,
    *,
    snapshot_ingest_seq: int | None = None,
    elapsed_ms: float | None = None,
    engine: EngineName = NO_ENGINE,
) -> Mapping[str, Any]:
    """Record that the run has failed; the detail is kept as far as it is short. Raises LeaseLost."""
    facts = {"snapshot_ingest_seq": snapshot_ingest_seq, "elapsed_ms": elapsed_ms, **engine.columns}
    return settle_run(connection, attempt, failure(error_kind, error_detail) | facts, worker)


def failure(error_kind: str, error_detail: str) -> dict[str, Any]:
    """A failed end, with its event's payload."""
    detail = short(error_detail)
    payload = canonical(events.failed_payload(error_kind, detail))
    return {"to": FAILED, "payload": payload, "error_kind": error_kind, "error_detail": detail}


def short(error_detail: str) -> str:
    """The beginning of a text, as Postgres can hold it."""
    return (storable(error_detail) or "")[:LONGEST_DETAIL]


def settle_run(connection: Connection, attempt: Attempt, end: Mapping[str, Any], worker: str) -> Mapping[str, Any]:
    rows = transitions.SETTLE(connection, [{**attempt.held, **end}], actor=worker)
    if not rows:
        raise lease_lost(attempt)
    return rows[0]


def lease_lost(attempt: Attempt) -> LeaseLost:
    return LeaseLost(f"The attempt under fence {attempt.fence} no longer owns {attempt.run_id}")


def publish_decision(connection: Connection, attempt: Attempt, decision: Mapping[str, Any], worker: str) -> int:
    """Tell the decision of a run that is about to be completed; answers its seq. Raises LeaseLost.

    The job stays locked until the transaction ends, so that whoever tells it also completes the run.
    """
    mine = jobs.c.id == attempt.job_id, jobs.c.fence == attempt.fence
    told_at = connection.scalar(select(now_ms()).select_from(jobs).where(*mine).with_for_update(of=jobs))
    if told_at is None:
        raise lease_lost(attempt)
    run = {**attempt.run, "attempts": attempt.number}
    event = normalise(events.decision_event(run, decision) | {events.OPERATIONAL: told_at})
    seq = tell_run(connection, attempt, worker, topic=events.DECIDED, body=event)
    row = {"seq": seq, "run_id": attempt.run_id, "event_type": event["event_type"], "event": canonical(event)}
    of_run = {name: run[name] for name in ("symbol", "engine_timestamp_ms")}
    connection.execute(insert(engine_outputs).values(**row, **of_run))
    return seq


def tell_run(
    connection: Connection,
    attempt: Attempt,
    worker: str,
    *,
    topic: str,
    body: Mapping[str, Any],
    reason: str | None = None,
) -> int:
    return note(
        connection,
        topic,
        subject=(RUN.kind, attempt.run_id),
        actor=worker,
        correlation_id=attempt.run["correlation_id"],
        reason=reason,
        body=body,
    )


def keep_evidence(connection: Connection, attempt: Attempt, what: Mapping[str, Any], worker: str) -> None:
    """Keep in the ledger what an attempt reports that owns its run no longer; it changes nothing."""
    facts = {"run_id": attempt.run_id, "symbol": attempt.run["symbol"], "attempt": attempt.number}
    body = {**facts, **attempt.held, **what}
    tell_run(connection, attempt, worker, topic=events.EVIDENCE, body=body, reason="lease_lost")


def retry_run(
    connection: Connection,
    attempt: Attempt,
    error_kind: str,
    error_detail: str,
    worker: str,
    *,
    delay_ms: int,
    elapsed_ms: float | None = None,
    engine: EngineName = NO_ENGINE,
) -> Mapping[str, Any]:
    """Let the run wait for its next attempt; its lane waits with it. Raises LeaseLost."""
    row = {
        **attempt.held,
        "delay_seconds": delay_ms / 1000,
        "error_kind": error_kind,
        "error_detail": short(error_detail),
        "elapsed_ms": elapsed_ms,
        **engine.columns,
    }
    rows = transitions.RETRY(connection, [row], actor=worker)
    if not rows:
        raise lease_lost(attempt)
    return rows[0]


def release_run(connection: Connection, attempt: Attempt, worker: str) -> bool:
    """Give an attempt back that shall be made by somebody else; False when the lease was lost."""
    return bool(transitions.RELEASE(connection, [attempt.held], actor=worker, reason="released"))


def lose_runs(connection: Connection, held: Sequence[Held]) -> int:
    """The workers of these fell silent: the same attempt is made again, until too many of them did."""
    answered = list_attempts(connection, [job.subject_id for job in held])
    lost = {job.id: job.attempt - answered.get(job.subject_id, 0) for job in held}
    over = [job for job in held if lost[job.id] >= transitions.LOST_ATTEMPTS]
    again = [job for job in held if lost[job.id] < transitions.LOST_ATTEMPTS]
    moved: Rows = []
    if again:
        rows = [{"job_id": job.id, "fence": job.fence, "delay_seconds": 0} for job in again]
        moved += transitions.LOSE(connection, rows, actor="reaper", reason="lost")
    if over:
        end = failure(ENGINE_FAILURE, WORKERS_LOST)
        rows = [{"job_id": job.id, "fence": job.fence, **end} for job in over]
        moved += transitions.SETTLE(connection, rows, actor="reaper")
    return len(moved)


def expire_runs(_connection: Connection, _held: Sequence[Held]) -> int:
    """Runs do not expire: what was planned is carried out, however late."""
    return 0
