"""The moves of a run, each one statement: what it changes, what it owes, what it tells.

The events of a run are told to the ledger as jsonb and recorded in `engine_outputs` as canonical text, under one
number; both are made of the same columns here and are equal to what `events` makes.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Double, Integer, Text, case, cast, func, insert, literal, null, select, true
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by

from models.engine import events
from models.engine.queries import now_ms
from models.engine.states import COMPLETED, FAILED, PLANNED, RUN, STARTED, WAITING
from models.engine.tables import engine_outputs, engine_runs, engine_states
from models.kernel.jobs import NORMAL, Spec
from models.kernel.transition import Birth, Job, Subject, Told, Transition

SUBJECT = Subject(RUN, engine_runs)
TASK = "engine.run"
QUEUE = "cpu"
LANE = "symbol:"
LOST_ATTEMPTS = 5
"""How many workers may die over one run before it fails."""

FACTS = ("symbol", "engine_timestamp_ms", "cut_start_ingest_seq", "cut_end_ingest_seq", "engine_mode")


def run_job(run: Any) -> Spec:
    """What a planned run owes: its turn in its symbol's lane, which nobody overtakes."""
    return Spec(
        task=TASK,
        queue=QUEUE,
        priority=NORMAL,
        tenant=run.tenant,
        lane=func.concat(LANE, run.symbol),
        timeout_seconds=run.timeout_seconds,
        max_attempts=run.max_attempts + LOST_ATTEMPTS,
        turn=run.engine_timestamp_ms,
        keeps_turn=True,
    )


def facts(run: Any) -> dict[str, Any]:
    """What the ledger is told of a move that is no event."""
    return {"run_id": run.id, **{name: run[name] for name in FACTS}, "attempts": run.attempts}


def label(run: Any) -> Any:
    return run.engine_mode


# an event, twice: as jsonb for the ledger, as canonical text for the outputs


def body_of(run: Any, event_type: Any, attempt: Any, payload: Any) -> dict[str, Any]:
    """The event as jsonb."""
    return {
        "schema": literal(events.SCHEMA),
        "schema_version": literal(events.SCHEMA_VERSION),
        "event_type": event_type,
        "run_id": run.id,
        **{name: run[name] for name in events.FROM_RUN},
        "attempt": attempt,
        "payload": payload,
        events.OPERATIONAL: now_ms(),
    }


def quoted(value: Any) -> Any:
    """A text as JSON. None of ours has a character that Postgres and Python escape differently."""
    return cast(func.to_json(cast(value, Text)), Text)


def counts_text(counts: Any) -> Any:
    """Whole numbers by name as canonical JSON: in the order of the names' bytes."""
    each = func.jsonb_each_text(counts).table_valued("key", "value").render_derived()
    pair = func.concat(quoted(each.c.key), ":", each.c.value)
    pairs = func.string_agg(pair, aggregate_order_by(literal(","), each.c.key.collate("C")))
    return select(func.concat("{", pairs, "}")).select_from(each).scalar_subquery()


def text_of(run: Any, told: Any, event_type: Any, attempt: Any, payload: Any) -> Any:
    """The same event as canonical text; `payload` is canonical text itself."""
    parts = {
        "schema": quoted(literal(events.SCHEMA)),
        "schema_version": quoted(literal(events.SCHEMA_VERSION)),
        "event_type": quoted(event_type),
        "run_id": quoted(run.id),
        **{name: quoted(run[name]) for name in ("symbol", "cut_kind", "engine_mode")},
        **{name: run[name] for name in ("engine_timestamp_ms", "cut_start_ingest_seq", "cut_end_ingest_seq")},
        "counts_by_event_type": counts_text(run.counts_by_event_type),
        "attempt": attempt,
        "payload": payload,
        events.OPERATIONAL: told.body[events.OPERATIONAL].astext,
    }
    pieces = [piece for name in sorted(parts) for piece in (f',"{name}":', parts[name])]
    return func.concat("{" + pieces[0][1:], *pieces[1:], "}")


def output(moved: Any, told: Any, event_type: Any, attempt: Any, payload: Any, *, when: Any = None) -> Any:
    """The output under the number of what the ledger was told."""
    columns = {
        "seq": told.c.seq,
        "run_id": moved.c.id,
        "symbol": moved.c.symbol,
        "engine_timestamp_ms": moved.c.engine_timestamp_ms,
        "event_type": event_type,
        "event": text_of(moved.c, told.c, event_type, attempt, payload),
    }
    source = select(*(value.label(name) for name, value in columns.items()))
    source = source.select_from(moved.join(told, told.c.subject_id == moved.c.id))
    source = source.where(true() if when is None else when)
    return insert(engine_outputs).from_select(list(columns), source).returning(engine_outputs.c.seq)


PLAN = Birth(
    subject=SUBJECT,
    given={
        "id": Text,
        "symbol": Text,
        "engine_timestamp_ms": BigInteger,
        "engine_mode": Text,
        "cut_kind": Text,
        "cut_start_ingest_seq": BigInteger,
        "cut_end_ingest_seq": BigInteger,
        "counts_by_event_type": JSONB,
        "planned_ts_ms": BigInteger,
        "max_attempts": Integer,
        "timeout_seconds": Integer,
        "config_version": Integer,
        "state_epoch": Integer,
        "correlation_id": Text,
    },
    owes=run_job,
    told=Told(
        topic=lambda _r: literal(events.PLANNED),
        label=label,
        body=lambda run: {**facts(run), "planned_ts_ms": run.planned_ts_ms},
    ),
)


def is_first(run: Any) -> Any:
    return run.from_state == PLANNED


def type_of_take(run: Any) -> Any:
    """Started is told once; what is taken again tells the ledger alone, under a name that is no event's."""
    return case((is_first(run), events.RUN_STARTED), else_="EngineRunResumed")


TAKE = Transition(
    subject=SUBJECT,
    sources=frozenset({PLANNED, WAITING}),
    targets=frozenset({STARTED}),
    job=Job.LEASE,
    set=lambda run, _g: {"started_ts_ms": func.coalesce(run.started_ts_ms, now_ms())},
    told=Told(
        topic=lambda run: case((is_first(run), events.STARTED), else_=events.RESUMED),
        label=label,
        body=lambda run: body_of(run, type_of_take(run), run.attempts + 1, null()),
    ),
    recorded=lambda moved, told: [
        output(moved, told, literal(events.RUN_STARTED), literal("1"), literal("null"), when=is_first(moved.c))
    ],
)


def type_of_end(run: Any) -> Any:
    return case((run.state == COMPLETED, events.RUN_COMPLETED), else_=events.RUN_FAILED)


def kept_state(moved: Any) -> Any:
    """The hysteresis state after the run, if it has one."""
    columns = {
        "run_id": moved.c.id,
        "number": moved.c.number,
        "symbol": moved.c.symbol,
        "engine_timestamp_ms": moved.c.engine_timestamp_ms,
        "state": moved.c.given_state,
        "state_epoch": moved.c.state_epoch,
    }
    source = select(*(value.label(name) for name, value in columns.items())).where(moved.c.given_state.is_not(None))
    return insert(engine_states).from_select(list(columns), source).returning(engine_states.c.run_id)


ENGINE_NAME = {"engine_module": Text, "engine_version": Text}


def engine_name(run: Any, given: Any) -> dict[str, Any]:
    """Which engine was called last. Where none was, since its workers were lost, it stays the one of the try before."""
    called = given.engine_module.is_not(None)
    return {name: case((called, given[name]), else_=run[name]) for name in ENGINE_NAME}


SETTLE = Transition(
    subject=SUBJECT,
    sources=frozenset({STARTED}),
    targets=frozenset({COMPLETED, FAILED}),
    given={
        "payload": Text,
        "state": Text,
        "snapshot_ingest_seq": BigInteger,
        "error_kind": Text,
        "error_detail": Text,
        "elapsed_ms": Double,
        **ENGINE_NAME,
    },
    set=lambda run, given: {
        "attempts": run.attempts + 1,
        **engine_name(run, given),
        "completed_ts_ms": now_ms(),
        "snapshot_ingest_seq": given.snapshot_ingest_seq,
        "error_kind": given.error_kind,
        "error_detail": given.error_detail,
    },
    job=Job.END,
    also=lambda moved: [kept_state(moved)],
    told=Told(
        topic=lambda run: case((run.state == COMPLETED, events.COMPLETED), else_=events.FAILED),
        label=label,
        elapsed_ms=lambda run: run.given_elapsed_ms,
        body=lambda run: body_of(run, type_of_end(run), run.attempts, cast(run.given_payload, JSONB)),
        reason=lambda run: run.error_kind,
    ),
    recorded=lambda moved, told: [output(moved, told, type_of_end(moved.c), moved.c.attempts, moved.c.given_payload)],
)

RETRY = Transition(
    subject=SUBJECT,
    sources=frozenset({STARTED}),
    targets=frozenset({WAITING}),
    given={"error_kind": Text, "error_detail": Text, "elapsed_ms": Double, **ENGINE_NAME},
    set=lambda run, given: {"attempts": run.attempts + 1, **engine_name(run, given)},
    job=Job.RETRY,
    keeps_lane=True,
    told=Told(
        topic=lambda _r: literal(events.RETRIED),
        label=label,
        elapsed_ms=lambda run: run.given_elapsed_ms,
        body=lambda run: {
            **facts(run),
            "error_kind": run.given_error_kind,
            "error_detail": run.given_error_detail,
            "engine_module": run.given_engine_module,
            "engine_version": run.given_engine_version,
            "delay_ms": run.delay_seconds * 1000,
        },
        reason=lambda run: run.given_error_kind,
    ),
)


def again(topic: str, job: Job) -> Transition:
    """Taken again as if nothing had been: the attempt does not count, and nobody overtakes it meanwhile."""
    return Transition(
        subject=SUBJECT,
        sources=frozenset({STARTED}),
        targets=frozenset({WAITING}),
        job=job,
        keeps_lane=True,
        told=Told(topic=lambda _r: literal(topic), label=label, body=facts),
    )


LOSE = again(events.LOST, Job.RETRY)
RELEASE = again(events.RELEASED, Job.RETURN)
