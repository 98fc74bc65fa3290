"""The engine: its log of inputs, plans, runs, states and outputs; jobs that keep their lane's order while they rest."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

UP = r"""
ALTER TABLE jobs
    ADD COLUMN keeps_turn BOOLEAN DEFAULT false NOT NULL,
    ADD CONSTRAINT jobs_keeps_turn_in_lane_check CHECK (NOT keeps_turn OR lane IS NOT NULL);
COMMENT ON COLUMN jobs.keeps_turn IS 'nobody of its lane overtakes it, not even while it rests until it is tried again';

CREATE TABLE engine_head (
    singleton TEXT DEFAULT 'row' NOT NULL,
    first_seq BIGINT DEFAULT 1 NOT NULL,
    last_seq BIGINT DEFAULT 0 NOT NULL,
    last_ts_ms BIGINT DEFAULT 0 NOT NULL,
    beyond_seq BIGINT DEFAULT 1 NOT NULL,
    CONSTRAINT engine_head_pkey PRIMARY KEY (singleton),
    CONSTRAINT engine_head_singleton_check CHECK (singleton = 'row'),
    CONSTRAINT engine_head_order_check CHECK (first_seq BETWEEN 1 AND last_seq + 1)
)
 WITH (fillfactor = 10);
COMMENT ON COLUMN engine_head.first_seq IS 'the first record that is kept';
COMMENT ON COLUMN engine_head.last_seq IS 'the last record appended';
COMMENT ON COLUMN engine_head.last_ts_ms IS 'no later append is older';
COMMENT ON COLUMN engine_head.beyond_seq IS 'the first without a partition';

CREATE TABLE engine_inputs (
    ingest_seq BIGINT NOT NULL,
    ingest_ts_ms BIGINT NOT NULL,
    source_id TEXT NOT NULL,
    symbol TEXT NOT NULL,
    event_type TEXT NOT NULL,
    snapshot_ts_ms BIGINT,
    event TEXT NOT NULL,
    CONSTRAINT engine_inputs_pkey PRIMARY KEY (ingest_seq),
    CONSTRAINT engine_inputs_seq_check CHECK (ingest_seq > 0)
)
 PARTITION BY RANGE (ingest_seq);
CREATE INDEX engine_inputs_snapshot_ix ON engine_inputs (symbol, snapshot_ts_ms, ingest_seq)
    WHERE snapshot_ts_ms IS NOT NULL;
COMMENT ON COLUMN engine_inputs.snapshot_ts_ms IS 'normalized.timestamp_ms of SnapshotInputs';
COMMENT ON COLUMN engine_inputs.event IS 'the JSON text as it was received';

CREATE TABLE engine_appends (
    last_seq BIGINT NOT NULL,
    first_seq BIGINT NOT NULL,
    ingest_ts_ms BIGINT NOT NULL,
    counts JSONB NOT NULL,
    CONSTRAINT engine_appends_pkey PRIMARY KEY (last_seq),
    CONSTRAINT engine_appends_order_check CHECK (first_seq BETWEEN 1 AND last_seq)
);
CREATE INDEX engine_appends_time_ix ON engine_appends (ingest_ts_ms, last_seq);
COMMENT ON COLUMN engine_appends.counts IS 'records by symbol, then by event type';

CREATE TABLE engine_totals (
    source_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    events BIGINT NOT NULL,
    CONSTRAINT engine_totals_pkey PRIMARY KEY (source_id, event_type)
)
 WITH (fillfactor = 50);
COMMENT ON COLUMN engine_totals.events IS 'ever ingested; written under the append lock';

CREATE TABLE engine_symbols (
    symbol TEXT NOT NULL,
    first_seq BIGINT NOT NULL,
    cut_end_ingest_seq BIGINT,
    engine_timestamp_ms BIGINT,
    CONSTRAINT engine_symbols_pkey PRIMARY KEY (symbol),
    CONSTRAINT engine_symbols_cut_check CHECK (cut_end_ingest_seq >= first_seq)
)
 WITH (fillfactor = 50);
COMMENT ON COLUMN engine_symbols.first_seq IS 'its first record';
COMMENT ON COLUMN engine_symbols.cut_end_ingest_seq IS 'the end of its last cut';
COMMENT ON COLUMN engine_symbols.engine_timestamp_ms IS 'of its last run';

CREATE TABLE engine_configs (
    version INTEGER GENERATED ALWAYS AS IDENTITY,
    digest TEXT NOT NULL,
    body JSONB NOT NULL,
    accepted_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    accepted_by TEXT NOT NULL,
    CONSTRAINT engine_configs_pkey PRIMARY KEY (version),
    CONSTRAINT engine_configs_digest_check CHECK (digest ~ '^[0-9a-f]{64}$'),
    CONSTRAINT engine_configs_digest_key UNIQUE (digest)
);
COMMENT ON COLUMN engine_configs.digest IS 'SHA-256 of the canonical body';

CREATE TABLE engine_control (
    id TEXT DEFAULT 'engine' NOT NULL,
    state TEXT DEFAULT 'init' NOT NULL,
    revision INTEGER DEFAULT 1 NOT NULL,
    correlation_id TEXT DEFAULT 'migration' NOT NULL,
    updated_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    config_version INTEGER,
    config_error TEXT,
    next_tick_ms BIGINT,
    last_tick_ms BIGINT,
    lag_ms BIGINT,
    ticks BIGINT DEFAULT 0 NOT NULL,
    skipped_ticks BIGINT DEFAULT 0 NOT NULL,
    missed_ticks BIGINT DEFAULT 0 NOT NULL,
    ingestion_paused BOOLEAN DEFAULT false NOT NULL,
    scheduling_paused BOOLEAN DEFAULT false NOT NULL,
    paused_why TEXT,
    blocked_at timestamptz,
    blocked_ms BIGINT DEFAULT 0 NOT NULL,
    blocks BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT engine_control_pkey PRIMARY KEY (id),
    CONSTRAINT engine_control_singleton_check CHECK (id = 'engine'),
    CONSTRAINT engine_control_state_check CHECK (state IN ('degraded', 'drained', 'init', 'running', 'stopped')),
    CONSTRAINT engine_control_running_has_config_check CHECK (state <> 'running' OR config_version IS NOT NULL),
    CONSTRAINT engine_control_counts_check CHECK (ticks >= 0 AND skipped_ticks >= 0 AND missed_ticks >= 0),
    CONSTRAINT engine_control_config_version_fkey FOREIGN KEY(config_version) REFERENCES engine_configs (version)
)
 WITH (fillfactor = 20);
COMMENT ON COLUMN engine_control.config_version IS 'which runs are planned under';
COMMENT ON COLUMN engine_control.config_error
    IS 'why the file was refused that beat found last; null: it was accepted';
COMMENT ON COLUMN engine_control.next_tick_ms IS 'null: the cadence begins with the next pass of the planner';
COMMENT ON COLUMN engine_control.lag_ms IS 'of the last tick, against its intended time';
COMMENT ON COLUMN engine_control.skipped_ticks IS 'nothing new, or repeated';
COMMENT ON COLUMN engine_control.missed_ticks IS 'beyond the catch-up bound';
COMMENT ON COLUMN engine_control.blocked_at IS 'since when publishing is blocked';
COMMENT ON COLUMN engine_control.blocked_ms IS 'publishing was blocked, ever';
COMMENT ON COLUMN engine_control.blocks IS 'how often';

CREATE TABLE engine_runs (
    id TEXT NOT NULL,
    number BIGINT GENERATED ALWAYS AS IDENTITY,
    symbol TEXT NOT NULL,
    engine_timestamp_ms BIGINT NOT NULL,
    engine_mode TEXT NOT NULL,
    cut_kind TEXT NOT NULL,
    cut_start_ingest_seq BIGINT NOT NULL,
    cut_end_ingest_seq BIGINT NOT NULL,
    counts_by_event_type JSONB NOT NULL,
    planned_ts_ms BIGINT NOT NULL,
    started_ts_ms BIGINT,
    completed_ts_ms BIGINT,
    attempts INTEGER DEFAULT 0 NOT NULL,
    max_attempts INTEGER NOT NULL,
    timeout_seconds INTEGER NOT NULL,
    snapshot_ingest_seq BIGINT,
    error_kind TEXT,
    error_detail TEXT,
    config_version INTEGER NOT NULL,
    tenant TEXT DEFAULT 'default' NOT NULL,
    state TEXT NOT NULL,
    revision INTEGER DEFAULT 1 NOT NULL,
    correlation_id TEXT NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    updated_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT engine_runs_pkey PRIMARY KEY (id),
    CONSTRAINT engine_runs_id_check CHECK (id ~ '^[0-9a-f]{64}$'),
    CONSTRAINT engine_runs_state_check CHECK (state IN ('completed', 'failed', 'planned', 'started', 'waiting')),
    CONSTRAINT engine_runs_mode_check CHECK (engine_mode IN ('truth', 'hysteresis')),
    CONSTRAINT engine_runs_kind_check CHECK (cut_kind IN ('timer', 'boundary')),
    CONSTRAINT engine_runs_error_kind_check CHECK (error_kind IN (
        'missing_snapshot_inputs', 'engine_failure', 'engine_timeout',
        'snapshot_build_failure', 'hysteresis_state_failure', 'publish_failure')),
    CONSTRAINT engine_runs_cut_check CHECK (cut_start_ingest_seq BETWEEN 1 AND cut_end_ingest_seq),
    CONSTRAINT engine_runs_attempts_check CHECK (attempts BETWEEN 0 AND max_attempts),
    CONSTRAINT engine_runs_timeout_check CHECK (timeout_seconds > 0),
    CONSTRAINT engine_runs_ended_check CHECK ((state IN ('completed', 'failed')) = (completed_ts_ms IS NOT NULL)),
    CONSTRAINT engine_runs_failed_has_error_check CHECK ((state = 'failed') = (error_kind IS NOT NULL)),
    CONSTRAINT engine_runs_started_check CHECK (state = 'planned' OR started_ts_ms IS NOT NULL),
    CONSTRAINT engine_runs_number_key UNIQUE (number),
    CONSTRAINT engine_runs_config_version_fkey FOREIGN KEY(config_version) REFERENCES engine_configs (version)
)
 WITH (fillfactor = 80);
CREATE INDEX engine_runs_mode_ix ON engine_runs (engine_mode, number DESC);
CREATE INDEX engine_runs_needed_ix ON engine_runs (cut_start_ingest_seq)
    WHERE state IN ('planned', 'started', 'waiting');
CREATE INDEX engine_runs_state_ix ON engine_runs (state, number DESC);
CREATE INDEX engine_runs_symbol_ix ON engine_runs (symbol, number DESC);
CREATE INDEX engine_runs_time_ix ON engine_runs (engine_timestamp_ms);
COMMENT ON COLUMN engine_runs.id IS 'run_id: SHA-256 of symbol|engine_timestamp_ms|cut_end|mode';
COMMENT ON COLUMN engine_runs.number IS 'in the order planned';
COMMENT ON COLUMN engine_runs.attempts IS 'that the engine answered or failed';
COMMENT ON COLUMN engine_runs.timeout_seconds IS 'of a lease: one attempt and its bookkeeping';
COMMENT ON COLUMN engine_runs.snapshot_ingest_seq IS 'the SnapshotInputs record that was selected';

CREATE TABLE engine_states (
    run_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    symbol TEXT NOT NULL,
    engine_timestamp_ms BIGINT NOT NULL,
    state TEXT NOT NULL,
    CONSTRAINT engine_states_pkey PRIMARY KEY (run_id)
);
CREATE INDEX engine_states_symbol_ix ON engine_states (symbol, number DESC);
COMMENT ON COLUMN engine_states.number IS 'the run''s, so that states have its order';
COMMENT ON COLUMN engine_states.state IS 'canonical JSON of the symbol''s hysteresis state after the run';

CREATE TABLE engine_outputs (
    seq BIGINT NOT NULL,
    run_id TEXT NOT NULL,
    symbol TEXT NOT NULL,
    engine_timestamp_ms BIGINT NOT NULL,
    event_type TEXT NOT NULL,
    event TEXT NOT NULL,
    CONSTRAINT engine_outputs_pkey PRIMARY KEY (seq)
);
CREATE INDEX engine_outputs_run_ix ON engine_outputs (run_id, seq);
CREATE INDEX engine_outputs_symbol_ix ON engine_outputs (symbol, seq);
COMMENT ON COLUMN engine_outputs.seq IS 'the ledger''s, of the same event';
COMMENT ON COLUMN engine_outputs.event IS 'the OrchestratorEvent, canonical JSON';

CREATE TABLE engine_publications (
    name TEXT NOT NULL,
    seq BIGINT DEFAULT 0 NOT NULL,
    published BIGINT DEFAULT 0 NOT NULL,
    published_at timestamptz,
    latency_ms DOUBLE PRECISION DEFAULT 0 NOT NULL,
    last_error TEXT,
    CONSTRAINT engine_publications_pkey PRIMARY KEY (name)
)
 WITH (fillfactor = 50);
COMMENT ON COLUMN engine_publications.name IS 'where to: `stream`';
COMMENT ON COLUMN engine_publications.seq IS 'published up to here';
COMMENT ON COLUMN engine_publications.published IS 'how many, ever';
COMMENT ON COLUMN engine_publications.latency_ms IS 'of all of them, summed';
COMMENT ON COLUMN engine_publications.last_error IS 'null: the last attempt succeeded';

CREATE TABLE engine_marks (
    name TEXT NOT NULL,
    ingest_seq BIGINT NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    created_by TEXT NOT NULL,
    CONSTRAINT engine_marks_pkey PRIMARY KEY (name),
    CONSTRAINT engine_marks_name_check CHECK (name ~ '^[A-Za-z0-9._:-]{1,64}$'),
    CONSTRAINT engine_marks_seq_check CHECK (ingest_seq > 0)
);
COMMENT ON COLUMN engine_marks.ingest_seq IS 'records from here on are kept';

INSERT INTO engine_head DEFAULT VALUES;
INSERT INTO engine_control DEFAULT VALUES;

-- What was received, decided and told takes no change but a new row; whole parts of the inputs go by retention.
CREATE FUNCTION engine_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER engine_inputs_append_only BEFORE UPDATE OR DELETE ON engine_inputs
    FOR EACH ROW EXECUTE FUNCTION engine_refuse_change();
CREATE TRIGGER engine_inputs_no_truncate BEFORE TRUNCATE ON engine_inputs
    FOR EACH STATEMENT EXECUTE FUNCTION engine_refuse_change();
CREATE TRIGGER engine_configs_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON engine_configs
    FOR EACH STATEMENT EXECUTE FUNCTION engine_refuse_change();
CREATE TRIGGER engine_states_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON engine_states
    FOR EACH STATEMENT EXECUTE FUNCTION engine_refuse_change();
CREATE TRIGGER engine_outputs_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON engine_outputs
    FOR EACH STATEMENT EXECUTE FUNCTION engine_refuse_change();

-- Makes the next partition of the inputs, of so many rows, and answers its first number.
CREATE FUNCTION engine_make_partition(rows bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    first bigint;
    name text;
BEGIN
    -- The append lock: an append that reaches beyond what there is makes partitions while it holds it.
    UPDATE engine_head SET beyond_seq = beyond_seq + rows RETURNING beyond_seq - rows INTO first;
    name := 'engine_inputs_' || lpad(first::text, 19, '0');
    EXECUTE format('CREATE TABLE %I (LIKE engine_inputs INCLUDING ALL)', name);
    EXECUTE format('ALTER TABLE engine_inputs ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)',
                   name, first, first + rows);
    EXECUTE format('CREATE TRIGGER engine_inputs_no_truncate BEFORE TRUNCATE ON %I
        FOR EACH STATEMENT EXECUTE FUNCTION engine_refuse_change()', name);
    RETURN first;
END $$;
"""

DOWN = """
DROP TABLE engine_marks, engine_publications, engine_outputs, engine_states, engine_runs, engine_control,
    engine_configs, engine_symbols, engine_totals, engine_appends, engine_inputs, engine_head;
DROP FUNCTION engine_make_partition;
DROP FUNCTION engine_refuse_change;
ALTER TABLE jobs DROP COLUMN keeps_turn;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP.replace("%", "%%"))


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
