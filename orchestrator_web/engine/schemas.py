"""What requests about the engine and their answers look like. Wire names are the contract's."""

from __future__ import annotations

import re

from marshmallow import INCLUDE, RAISE, Schema, fields, validate

from models.engine.events import EVENT_TYPES
from models.engine.states import ENGINE, RUN
from models.engine.tables import CUT_KINDS, ERROR_KINDS, MODES
from orchestrator_web.fields import Json, QueryInteger

LARGEST_PAGE, DEFAULT_PAGE = 1000, 100
LONGEST_SYMBOL = 64
LONGEST_CURSOR = 512
STATES = tuple(RUN.edges)
# The end is spelled so that Python and JSON Schema (ECMA-262) mean the same by it.
RUN_ID = validate.Regexp(r"^[0-9a-f]{64}(?![\s\S])", error="must be 64 hexadecimal digits")
DATE_TIME = {"format": "date-time"}
OPERATIONAL = "operational: no part of what a replay reproduces"


class Strict(Schema):
    class Meta:
        unknown = RAISE


class QueryMoment(QueryInteger):
    """A moment in milliseconds since 1970, of more digits than other numbers."""

    form = re.compile(r"-?[0-9]{1,17}")


def symbol() -> fields.String:
    return fields.String(validate=validate.Length(1, LONGEST_SYMBOL))


class StreamQuery(Strict):
    """Which outputs a stream tells, and from where on."""

    symbol = symbol()
    event_type = fields.String(validate=validate.OneOf(EVENT_TYPES))
    run_id = fields.String(validate=RUN_ID)
    after = fields.String(
        validate=validate.Length(1, 64),
        metadata={"description": "`id` of the last event read, or `earliest`; without it the stream begins now"},
    )


class OutputQuery(Strict):
    """Which outputs, and from where on."""

    symbol = symbol()
    event_type = fields.String(validate=validate.OneOf(EVENT_TYPES))
    run_id = fields.String(validate=RUN_ID)
    after = fields.String(
        validate=validate.Length(1, 64),
        metadata={"description": "`next` of the page before, or `earliest`, which is the default"},
    )
    limit = QueryInteger(load_default=DEFAULT_PAGE, validate=validate.Range(1, LARGEST_PAGE))


class OrchestratorEvent(Schema):
    """What came of an engine run, version 1. Further members and types may come; what is here stays."""

    class Meta:
        unknown = INCLUDE

    schema = fields.String(required=True, validate=validate.Equal("orchestrator_event"))
    schema_version = fields.String(required=True, validate=validate.Equal("1"))
    event_type = fields.String(required=True, validate=validate.OneOf(EVENT_TYPES))
    run_id = fields.String(required=True, validate=RUN_ID)
    symbol = fields.String(required=True)
    engine_timestamp_ms = fields.Integer(required=True)
    cut_start_ingest_seq = fields.Integer(required=True)
    cut_end_ingest_seq = fields.Integer(required=True)
    cut_kind = fields.String(required=True, validate=validate.OneOf(CUT_KINDS))
    engine_mode = fields.String(validate=validate.OneOf(MODES))
    attempt = fields.Integer()
    counts_by_event_type = fields.Dict(keys=fields.String(), values=fields.Integer())
    payload = Json(allow_none=True)
    published_ts_ms = fields.Integer(
        metadata={"description": f"when it was recorded and so could be read; {OPERATIONAL}"}
    )


class OutputMessage(Schema):
    """An output as a WebSocket message."""

    type = fields.String(required=True, validate=validate.OneOf(EVENT_TYPES))
    id = fields.String(required=True, metadata={"description": "the cursor to resume from"})
    seq = fields.Integer(required=True, metadata={"description": "grows, with gaps"})
    data = fields.Nested(OrchestratorEvent, required=True)


class OutputPage(Schema):
    events = fields.List(fields.Nested(OrchestratorEvent), required=True)
    next = fields.String(
        required=True, metadata={"description": "the cursor to go on from, also when this page is empty"}
    )
    has_more = fields.Boolean(
        required=True, metadata={"description": "ask again at once: there is more to look at, though this may be empty"}
    )


class RunQuery(Strict):
    """Which runs; the newest first."""

    symbol = symbol()
    status = fields.String(validate=validate.OneOf(STATES))
    mode = fields.String(validate=validate.OneOf(MODES))
    from_ = QueryMoment(data_key="from", metadata={"description": "least engine_timestamp_ms"})
    to = QueryMoment(metadata={"description": "largest engine_timestamp_ms"})
    limit = QueryInteger(load_default=DEFAULT_PAGE, validate=validate.Range(1, LARGEST_PAGE))
    cursor = fields.String(
        validate=validate.Length(1, LONGEST_CURSOR), metadata={"description": "next_cursor of the page before"}
    )


class RunRecord(Schema):
    """An engine run: what was planned, of which cut, and what came of it."""

    run_id = fields.String(required=True, validate=RUN_ID)
    symbol = fields.String(required=True)
    engine_timestamp_ms = fields.Integer(required=True)
    engine_mode = fields.String(required=True, validate=validate.OneOf(MODES))
    cut_kind = fields.String(required=True, validate=validate.OneOf(CUT_KINDS))
    cut_start_ingest_seq = fields.Integer(required=True)
    cut_end_ingest_seq = fields.Integer(required=True)
    planned_ts_ms = fields.Integer(required=True)
    started_ts_ms = fields.Integer(required=True, allow_none=True, metadata={"description": OPERATIONAL})
    completed_ts_ms = fields.Integer(required=True, allow_none=True, metadata={"description": OPERATIONAL})
    status = fields.String(required=True, validate=validate.OneOf(STATES))
    attempts = fields.Integer(required=True)
    error_kind = fields.String(required=True, allow_none=True, validate=validate.OneOf(ERROR_KINDS))
    error_detail = fields.String(required=True, allow_none=True)
    counts_by_event_type = fields.Dict(keys=fields.String(), values=fields.Integer(), required=True)
    snapshot_ingest_seq = fields.Integer(
        required=True, allow_none=True, metadata={"description": "the SnapshotInputs record that the engine was given"}
    )
    config_version = fields.Integer(required=True)
    engine_module = fields.String(
        required=True, allow_none=True, metadata={"description": f"that answered or failed last; {OPERATIONAL}"}
    )
    engine_version = fields.String(
        required=True, allow_none=True, metadata={"description": f"its `__version__`; {OPERATIONAL}"}
    )
    max_attempts = fields.Integer(required=True)
    number = fields.Integer(required=True, metadata={"description": "grows in the order in which runs are planned"})
    correlation_id = fields.String(required=True)


class RunPage(Schema):
    total = fields.Integer(required=True)
    total_is_estimate = fields.Boolean(required=True, metadata={"description": "true: there are more than `total`"})
    limit = fields.Integer(required=True)
    runs = fields.List(fields.Nested(RunRecord), required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class RunStep(Schema):
    """One thing that happened to a run."""

    seq = fields.Integer(required=True)
    topic = fields.String(required=True)
    from_ = fields.String(required=True, allow_none=True, data_key="from")
    to = fields.String(required=True, allow_none=True)
    at = fields.String(required=True, metadata=DATE_TIME)
    actor = fields.String(required=True)
    reason = fields.String(required=True, allow_none=True)


class RunWhole(RunRecord):
    """An engine run with its history and its outputs."""

    history = fields.List(fields.Nested(RunStep), required=True)
    outputs = fields.List(fields.Nested(OrchestratorEvent), required=True)


class Buffer(Schema):
    depth = fields.Integer(required=True, metadata={"description": "records kept"})
    capacity = fields.Integer(required=True, allow_none=True, metadata={"description": "at this depth, 503"})
    age_ms = fields.Integer(required=True, allow_none=True, metadata={"description": "of the oldest record kept"})
    first_ingest_seq = fields.Integer(required=True, allow_none=True, metadata={"description": "null: it is empty"})
    last_ingest_seq = fields.Integer(required=True, metadata={"description": "of the newest ever; 0: none came yet"})


class Subscription(Schema):
    stream = fields.String(required=True, allow_none=True, metadata={"description": "null: none is read"})
    group = fields.String(required=True, allow_none=True, metadata={"description": "as which it is read"})
    alive = fields.Boolean(required=True, metadata={"description": "whether a relay is there to read it"})
    paused = fields.Boolean(required=True, metadata={"description": "true: it could not be read, or not be appended"})
    paused_why = fields.String(required=True, allow_none=True)


class Scheduler(Schema):
    mode = fields.String(required=True, allow_none=True, validate=validate.OneOf(CUT_KINDS))
    next_tick_ms = fields.Integer(required=True, allow_none=True)
    last_tick_ms = fields.Integer(required=True, allow_none=True)
    lag_ms = fields.Integer(
        required=True, allow_none=True, metadata={"description": "how late the last tick was planned"}
    )
    overdue_ms = fields.Integer(
        required=True, metadata={"description": "for how long a tick has been due that nobody has planned; 0: none is"}
    )
    ticks = fields.Integer(required=True)
    skipped = fields.Integer(required=True, metadata={"description": "symbols at ticks with nothing new for them"})
    missed = fields.Integer(required=True, metadata={"description": "ticks too old to be caught up with"})


class RunCounts(Schema):
    planned = fields.Integer(required=True)
    started = fields.Integer(required=True)
    waiting = fields.Integer(required=True)
    completed = fields.Integer(required=True)
    failed = fields.Integer(required=True)


class Publish(Schema):
    stream = fields.String(required=True, allow_none=True, metadata={"description": "null: none is configured"})
    pending = fields.Integer(required=True, metadata={"description": "outputs that the stream has yet to be given"})
    pending_is_estimate = fields.Boolean(required=True, metadata={"description": "true: there are more"})
    blocked_ms = fields.Integer(required=True, metadata={"description": "for how long it paused the planning, ever"})
    blocks = fields.Integer(required=True, metadata={"description": "how often"})
    published = fields.Integer(required=True, metadata={"description": "outputs that the stream was given, ever"})
    last_seq = fields.Integer(required=True, allow_none=True)
    last_error = fields.String(required=True, allow_none=True)


class WorkersEngine(Schema):
    """An engine that workers have, as they found it when they started."""

    engine_module = fields.String(required=True)
    engine_version = fields.String(required=True, allow_none=True, metadata={"description": "its `__version__`"})
    workers = fields.Integer(required=True)


class EngineStatus(Schema):
    """How the engine does. It is ready when it runs and nothing is paused."""

    ready = fields.Boolean(required=True)
    state = fields.String(required=True, validate=validate.OneOf(sorted(ENGINE.states)))
    ingestion_paused = fields.Boolean(required=True)
    scheduling_paused = fields.Boolean(required=True)
    paused_why = fields.String(required=True, allow_none=True)
    config_version = fields.Integer(required=True, allow_none=True)
    config_error = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "why the file was refused, or what the engine does not take of what was accepted"},
    )
    engine_module = fields.String(
        required=True, allow_none=True, metadata={"description": "of the worker that started last; null: none is alive"}
    )
    engine_version = fields.String(required=True, allow_none=True, metadata={"description": "its `__version__`"})
    engines = fields.List(
        fields.Nested(WorkersEngine),
        required=True,
        metadata={"description": "of all workers that are alive: several while one engine takes another's place"},
    )
    buffer = fields.Nested(Buffer, required=True)
    subscription = fields.Nested(Subscription, required=True)
    scheduler = fields.Nested(Scheduler, required=True)
    runs = fields.Nested(RunCounts, required=True)
    publish = fields.Nested(Publish, required=True)


class EngineConfig(Schema):
    """An accepted configuration. It never changes; runs name the one that they were planned under."""

    version = fields.Integer(required=True)
    digest = fields.String(required=True, metadata={"description": "SHA-256 of its canonical JSON"})
    accepted_at = fields.String(required=True, metadata=DATE_TIME)
    accepted_by = fields.String(required=True)
    config = Json(required=True)


class ConfigDraft(Schema):
    """A configuration to be accepted: the keys of the TOML file. What is wrong is named key by key."""

    class Meta:
        unknown = INCLUDE
