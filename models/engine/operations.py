"""Everything that may be done to a run. Each act is one transition; none publishes anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, insert, select

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


def take_runs(connection: Connection, job_ids: Sequence[int], worker: str) -> dict[int, Attempt]:
    """Lease the jobs and start or resume their runs; answers, by job, those that were to be had. Raises LaneBusy."""
    rows = transitions.TAKE(connection, [{"job_id": job_id} for job_id in job_ids], actor=worker)
    return {row["job_id"]: attempt_of(row) for row in rows}


def take_run(connection: Connection, job_id: int, worker: str) -> Attempt | None:
    """Lease the job and start or resume the run; None when it is no longer to be had. Raises LaneBusy."""
    return take_runs(connection, [job_id], worker).get(job_id)


def attempt_of(row: Mapping[str, Any]) -> Attempt:
    return Attempt(
        job_id=row["job_id"],
        fence=row["fence"],
        number=row["attempts"] + 1,
        run={column.name: row[column.name] for column in transitions.SUBJECT.table.columns},
        timeout_seconds=row["job_timeout_seconds"],
    )


@dataclass(frozen=True)
class End:
    """How an attempt ended, as its run is told: the columns that change, and the decision that is told before."""

    columns: Mapping[str, Any]
    decision: Mapping[str, Any] | None = None


def completion(
    result: Mapping[str, Any],
    *,
    snapshot_ingest_seq: int | None = None,
    elapsed_ms: float | None = None,
    engine: EngineName = NO_ENGINE,
) -> End:
    """The end with what the engine answered: `regime_output`, and with hysteresis `hysteresis_decision` and `state`.

    Raises NotSerialisable.
    """
    columns = {
        "to": COMPLETED,
        "payload": canonical(events.completed_payload(result["regime_output"])),
        "state": canonical(result["state"]) if result.get("state") is not None else None,
        "snapshot_ingest_seq": snapshot_ingest_seq,
        "elapsed_ms": elapsed_ms,
        **engine.columns,
    }
    return End(columns, result.get("hysteresis_decision"))


def failing(
    error_kind: str,
    error_detail: str,
    *,
    snapshot_ingest_seq: int | None = None,
    elapsed_ms: float | None = None,
    engine: EngineName = NO_ENGINE,
) -> End:
    """The end of a run that has failed; the detail is kept as far as it is short."""
    facts = {"snapshot_ingest_seq": snapshot_ingest_seq, "elapsed_ms": elapsed_ms, **engine.columns}
    return End(failure(error_kind, error_detail) | facts)


def settle_completed(
    connection: Connection, attempt: Attempt, result: Mapping[str, Any], worker: str, **facts: Any
) -> Mapping[str, Any]:
    """Record what the engine answered; `facts` are those of `completion`. See `settle_runs` for the connection.

    Raises LeaseLost when the attempt no longer owns the run, NotSerialisable.
    """
    return settle_run(connection, attempt, completion(result, **facts), worker)


def settle_failed(
    connection: Connection, attempt: Attempt, error_kind: str, error_detail: str, worker: str, **facts: Any
) -> Mapping[str, Any]:
    """Record that the run has failed; `facts` are those of `failing`. Raises LeaseLost."""
    return settle_run(connection, attempt, failing(error_kind, error_detail, **facts), worker)


def failure(error_kind: str, error_detail: str) -> dict[str, Any]:
    """A failed end, with its event's payload."""
    detail = short(error_detail)
    payload = canonical(events.failed_payload(error_kind, detail))
    return {"to": FAILED, "payload": payload, "error_kind": error_kind, "error_detail": detail}


def short(error_detail: str) -> str:
    """The beginning of a text, as Postgres can hold it."""
    return (storable(error_detail) or "")[:LONGEST_DETAIL]


def settle_run(connection: Connection, attempt: Attempt, end: End, worker: str) -> Mapping[str, Any]:
    (settled,) = settle_runs(connection, [(attempt, end)], worker)
    if isinstance(settled, LeaseLost):
        raise settled
    return settled


def settle_runs(
    connection: Connection, ends: Sequence[tuple[Attempt, End]], worker: str
) -> list[Mapping[str, Any] | LeaseLost]:
    """Record how attempts ended; answers, in order, their runs, or LeaseLost for one that no longer owns its run.

    With a decision among them `connection` must be a transaction: it is told just before the completion.
    Raises NotSerialisable for a decision that is.
    """
    told = publish_decisions(connection, ends, worker) if any(end.decision is not None for _, end in ends) else set()
    given = [{**attempt.held, **end.columns} for attempt, end in ends]
    rows = {row["id"]: row for row in transitions.SETTLE(connection, given, actor=worker)}
    if not told <= rows.keys():
        raise LeaseLost("A decision was told of a run that was not completed")
    return [rows.get(attempt.run_id) or lease_lost(attempt) for attempt, _ in ends]


def lease_lost(attempt: Attempt) -> LeaseLost:
    return LeaseLost(f"The attempt under fence {attempt.fence} no longer owns {attempt.run_id}")


def publish_decisions(connection: Connection, ends: Sequence[tuple[Attempt, End]], worker: str) -> set[str]:
    """Tell the decisions of runs that are about to be completed, where the attempt still owns its run; answers which.

    All jobs stay locked until the transaction ends, so that whoever tells a decision also completes its run.
    """
    fences = {attempt.job_id: attempt.fence for attempt, _ in ends}
    mine = jobs.c.id == func.any(list(fences)), jobs.c.fence == func.any(list(fences.values()))
    live = select(jobs.c.id, now_ms()).where(*mine).order_by(jobs.c.id).with_for_update(of=jobs)
    told_at = {job_id: at for job_id, at in connection.execute(live)}
    told = [
        decision_row(connection, attempt, end.decision, told_at[attempt.job_id], worker)
        for attempt, end in ends
        if end.decision is not None and attempt.job_id in told_at
    ]
    if told:
        connection.execute(insert(engine_outputs), told)
    return {row["run_id"] for row in told}


def decision_row(
    connection: Connection, attempt: Attempt, decision: Mapping[str, Any], told_at: int, worker: str
) -> dict[str, Any]:
    """Tell the ledger of one decision; answers its output, under the ledger's number."""
    run = {**attempt.run, "attempts": attempt.number}
    event = normalise(events.decision_event(run, decision) | {events.OPERATIONAL: told_at})
    seq = tell_run(connection, attempt, worker, topic=events.DECIDED, body=event)
    of_run = {name: run[name] for name in ("symbol", "engine_timestamp_ms")}
    kept = {"event_type": event["event_type"], "event": canonical(event)}
    return {"seq": seq, "run_id": attempt.run_id, **of_run, **kept}


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


def release_runs(connection: Connection, attempts: Sequence[Attempt], worker: str) -> int:
    """Give attempts back that shall be made by somebody else; answers how many leases had not been lost."""
    return len(transitions.RELEASE(connection, [each.held for each in attempts], actor=worker, reason="released"))


def release_run(connection: Connection, attempt: Attempt, worker: str) -> bool:
    """Give an attempt back; False when the lease was lost."""
    return release_runs(connection, [attempt], worker) == 1


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
