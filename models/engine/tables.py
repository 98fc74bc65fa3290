"""The engine's tables: the log of inputs, what is planned from it, and what came of it.

The log (`engine_inputs`) is written under one row lock, that of `engine_head`, which is held
until the commit: numbers are gapless, in commit order, and their time never goes back. So the
answer to "which records had come by then" can never gain a record once that time has passed.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from models.engine.states import ENGINE, RUN
from models.kernel.metadata import metadata

MODES = ("truth", "hysteresis")
CUT_KINDS = ("timer", "boundary")
MISSING_INPUTS = "missing_snapshot_inputs"
ENGINE_FAILURE = "engine_failure"
ENGINE_TIMEOUT = "engine_timeout"
SNAPSHOT_FAILURE = "snapshot_build_failure"
STATE_FAILURE = "hysteresis_state_failure"
PUBLISH_FAILURE = "publish_failure"
ERROR_KINDS = (MISSING_INPUTS, ENGINE_FAILURE, ENGINE_TIMEOUT, SNAPSHOT_FAILURE, STATE_FAILURE, PUBLISH_FAILURE)
SINGLETON = "row"


def one_of(column: str, values: object) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"  # type: ignore[attr-defined]


engine_head = Table(
    "engine_head",
    metadata,
    Column("singleton", Text, primary_key=True, server_default=SINGLETON),
    Column("first_seq", BigInteger, nullable=False, server_default=text("1"), comment="the first record that is kept"),
    Column("last_seq", BigInteger, nullable=False, server_default=text("0"), comment="the last record appended"),
    Column("last_ts_ms", BigInteger, nullable=False, server_default=text("0"), comment="no later append is older"),
    Column("beyond_seq", BigInteger, nullable=False, server_default=text("1"), comment="the first without a partition"),
    CheckConstraint("singleton = 'row'", name="singleton"),
    CheckConstraint("first_seq BETWEEN 1 AND last_seq + 1", name="order"),
    postgresql_with={"fillfactor": 10},
)

engine_inputs = Table(
    "engine_inputs",
    metadata,
    Column("ingest_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("ingest_ts_ms", BigInteger, nullable=False),
    Column("source_id", Text, nullable=False),
    Column("symbol", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("snapshot_ts_ms", BigInteger, comment="normalized.timestamp_ms of SnapshotInputs"),
    Column("event", Text, nullable=False, comment="the JSON text as it was received"),
    CheckConstraint("ingest_seq > 0", name="seq"),
    Index(
        "engine_inputs_snapshot_ix",
        "symbol",
        "snapshot_ts_ms",
        "ingest_seq",
        postgresql_where=text("snapshot_ts_ms IS NOT NULL"),
    ),
    postgresql_partition_by="RANGE (ingest_seq)",
)

engine_appends = Table(
    "engine_appends",
    metadata,
    Column("last_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("ingest_ts_ms", BigInteger, nullable=False),
    Column("counts", JSONB, nullable=False, comment="records by symbol, then by event type"),
    CheckConstraint("first_seq BETWEEN 1 AND last_seq", name="order"),
    Index("engine_appends_time_ix", "ingest_ts_ms", "last_seq"),
)

engine_totals = Table(
    "engine_totals",
    metadata,
    Column("source_id", Text, primary_key=True),
    Column("event_type", Text, primary_key=True),
    Column("events", BigInteger, nullable=False, comment="ever ingested; written under the append lock"),
    postgresql_with={"fillfactor": 50},
)

engine_symbols = Table(
    "engine_symbols",
    metadata,
    Column("symbol", Text, primary_key=True),
    Column("first_seq", BigInteger, nullable=False, comment="its first record"),
    Column("cut_end_ingest_seq", BigInteger, comment="the end of its last cut"),
    Column("engine_timestamp_ms", BigInteger, comment="of its last run"),
    CheckConstraint("cut_end_ingest_seq >= first_seq", name="cut"),
    postgresql_with={"fillfactor": 50},
)

engine_configs = Table(
    "engine_configs",
    metadata,
    Column("version", Integer, Identity(always=True), primary_key=True),
    Column("digest", Text, nullable=False, unique=True, comment="SHA-256 of the canonical body"),
    Column("body", JSONB, nullable=False),
    Column("accepted_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("accepted_by", Text, nullable=False),
    CheckConstraint("digest ~ '^[0-9a-f]{64}$'", name="digest"),
)

engine_control = Table(
    "engine_control",
    metadata,
    Column("id", Text, primary_key=True, server_default="engine"),
    Column("state", Text, nullable=False, server_default="init"),
    Column("revision", Integer, nullable=False, server_default=text("1")),
    Column("correlation_id", Text, nullable=False, server_default="migration"),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("config_version", Integer, ForeignKey("engine_configs.version"), comment="which runs are planned under"),
    Column("config_error", Text, comment="why the file was refused that beat found last; null: it was accepted"),
    Column("next_tick_ms", BigInteger, comment="null: the cadence begins with the next pass of the planner"),
    Column("last_tick_ms", BigInteger),
    Column("lag_ms", BigInteger, comment="of the last tick, against its intended time"),
    Column("ticks", BigInteger, nullable=False, server_default=text("0")),
    Column("skipped_ticks", BigInteger, nullable=False, server_default=text("0"), comment="nothing new, or repeated"),
    Column("missed_ticks", BigInteger, nullable=False, server_default=text("0"), comment="beyond the catch-up bound"),
    Column("ingestion_paused", Boolean, nullable=False, server_default=text("false")),
    Column("scheduling_paused", Boolean, nullable=False, server_default=text("false")),
    Column("paused_why", Text),
    Column("blocked_at", DateTime(timezone=True), comment="since when publishing is blocked"),
    Column("blocked_ms", BigInteger, nullable=False, server_default=text("0"), comment="publishing was blocked, ever"),
    Column("blocks", BigInteger, nullable=False, server_default=text("0"), comment="how often"),
    CheckConstraint("id = 'engine'", name="singleton"),
    CheckConstraint(one_of("state", sorted(ENGINE.states)), name="state"),
    CheckConstraint("state <> 'running' OR config_version IS NOT NULL", name="running_has_config"),
    CheckConstraint("ticks >= 0 AND skipped_ticks >= 0 AND missed_ticks >= 0", name="counts"),
    postgresql_with={"fillfactor": 20},
)

engine_runs = Table(
    "engine_runs",
    metadata,
    Column("id", Text, primary_key=True, comment="run_id: SHA-256 of symbol|engine_timestamp_ms|cut_end|mode"),
    Column("number", BigInteger, Identity(always=True), nullable=False, unique=True, comment="in the order planned"),
    Column("symbol", Text, nullable=False),
    Column("engine_timestamp_ms", BigInteger, nullable=False),
    Column("engine_mode", Text, nullable=False),
    Column("cut_kind", Text, nullable=False),
    Column("cut_start_ingest_seq", BigInteger, nullable=False),
    Column("cut_end_ingest_seq", BigInteger, nullable=False),
    Column("counts_by_event_type", JSONB, nullable=False),
    Column("planned_ts_ms", BigInteger, nullable=False),
    Column("started_ts_ms", BigInteger),
    Column("completed_ts_ms", BigInteger),
    Column("attempts", Integer, nullable=False, server_default=text("0"), comment="that the engine answered or failed"),
    Column("max_attempts", Integer, nullable=False),
    Column("timeout_seconds", Integer, nullable=False, comment="of a lease: one attempt and its bookkeeping"),
    Column("snapshot_ingest_seq", BigInteger, comment="the SnapshotInputs record that was selected"),
    Column("error_kind", Text),
    Column("error_detail", Text),
    Column("config_version", Integer, ForeignKey("engine_configs.version"), nullable=False),
    Column("state_epoch", Integer, nullable=False, server_default=text("0"), comment="its configuration's"),
    Column("engine_module", Text, comment="that answered or failed last; null: none was called"),
    Column("engine_version", Text, comment="its __version__"),
    Column("tenant", Text, nullable=False, server_default="default"),
    Column("state", Text, nullable=False),
    Column("revision", Integer, nullable=False, server_default=text("1")),
    Column("correlation_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    CheckConstraint("id ~ '^[0-9a-f]{64}$'", name="id"),
    CheckConstraint(one_of("state", sorted(RUN.states)), name="state"),
    CheckConstraint(one_of("engine_mode", MODES), name="mode"),
    CheckConstraint(one_of("cut_kind", CUT_KINDS), name="kind"),
    CheckConstraint(one_of("error_kind", ERROR_KINDS), name="error_kind"),
    CheckConstraint("cut_start_ingest_seq BETWEEN 1 AND cut_end_ingest_seq", name="cut"),
    CheckConstraint("attempts BETWEEN 0 AND max_attempts", name="attempts"),
    CheckConstraint("timeout_seconds > 0", name="timeout"),
    CheckConstraint("(state IN ('completed', 'failed')) = (completed_ts_ms IS NOT NULL)", name="ended"),
    CheckConstraint("(state = 'failed') = (error_kind IS NOT NULL)", name="failed_has_error"),
    CheckConstraint("state = 'planned' OR started_ts_ms IS NOT NULL", name="started"),
    Index("engine_runs_symbol_ix", "symbol", text("number DESC")),
    Index("engine_runs_state_ix", "state", text("number DESC")),
    Index("engine_runs_mode_ix", "engine_mode", text("number DESC")),
    Index("engine_runs_time_ix", "engine_timestamp_ms"),
    Index(
        "engine_runs_needed_ix",
        "cut_start_ingest_seq",
        postgresql_where=text("state IN ('planned', 'started', 'waiting')"),
    ),
    postgresql_with={"fillfactor": 80},
)

engine_states = Table(
    "engine_states",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("number", BigInteger, nullable=False, comment="the run's, so that states have its order"),
    Column("symbol", Text, nullable=False),
    Column("engine_timestamp_ms", BigInteger, nullable=False),
    Column("state", Text, nullable=False, comment="canonical JSON of the symbol's hysteresis state after the run"),
    Column("state_epoch", Integer, nullable=False, server_default=text("0"), comment="the run's: others go by it"),
    Index("engine_states_epoch_ix", "symbol", "state_epoch", text("number DESC")),
)

engine_outputs = Table(
    "engine_outputs",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False, comment="the ledger's, of the same event"),
    Column("run_id", Text, nullable=False),
    Column("symbol", Text, nullable=False),
    Column("engine_timestamp_ms", BigInteger, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("event", Text, nullable=False, comment="the OrchestratorEvent, canonical JSON"),
    Index("engine_outputs_symbol_ix", "symbol", "seq"),
    Index("engine_outputs_run_ix", "run_id", "seq"),
)

engine_publications = Table(
    "engine_publications",
    metadata,
    Column("name", Text, primary_key=True, comment="where to: `stream`"),
    Column("seq", BigInteger, nullable=False, server_default=text("0"), comment="published up to here"),
    Column("published", BigInteger, nullable=False, server_default=text("0"), comment="how many, ever"),
    Column("published_at", DateTime(timezone=True)),
    Column("latency_ms", Double, nullable=False, server_default=text("0"), comment="of all of them, summed"),
    Column("last_error", Text, comment="null: the last attempt succeeded"),
    postgresql_with={"fillfactor": 50},
)

engine_workers = Table(
    "engine_workers",
    metadata,
    Column("id", Text, primary_key=True, comment="the process, as in processes"),
    Column("engine_module", Text, nullable=False),
    Column("engine_version", Text, comment="its __version__"),
    Column(
        "options",
        JSONB(none_as_null=True),
        comment="what it takes as engine.hysteresis: by name whether it is required; null: anything",
    ),
    Column("announced_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
)

engine_marks = Table(
    "engine_marks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("ingest_seq", BigInteger, nullable=False, comment="records from here on are kept"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("created_by", Text, nullable=False),
    CheckConstraint("name ~ '^[A-Za-z0-9._:-]{1,64}$'", name="name"),
    CheckConstraint("ingest_seq > 0", name="seq"),
)
