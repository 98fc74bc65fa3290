"""The kernel: ledger, jobs, dead letters, clients, processes, schedules, tallies."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

UP = r"""
CREATE SEQUENCE ledger_seq CACHE 1;
CREATE SEQUENCE fence_seq;

CREATE TABLE ledger (
    seq BIGINT DEFAULT nextval('ledger_seq') NOT NULL,
    subject_kind TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    revision INTEGER NOT NULL,
    from_state TEXT,
    to_state TEXT,
    topic TEXT NOT NULL,
    label TEXT DEFAULT '' NOT NULL,
    elapsed_ms double precision,
    actor TEXT NOT NULL,
    reason TEXT,
    correlation_id TEXT NOT NULL,
    body JSONB DEFAULT '{}' NOT NULL,
    at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT ledger_pkey PRIMARY KEY (seq),
    CONSTRAINT ledger_note_moves_nothing_check CHECK (to_state IS NOT NULL OR from_state IS NULL),
    CONSTRAINT ledger_elapsed_check CHECK (elapsed_ms >= 0)
)
 PARTITION BY RANGE (seq);
CREATE INDEX ledger_kind_ix ON ledger (subject_kind, seq);
CREATE INDEX ledger_subject_ix ON ledger (subject_kind, subject_id, seq);
COMMENT ON COLUMN ledger.to_state IS 'null: nothing changed, a note';
COMMENT ON COLUMN ledger.label IS 'what is counted apart: a command, an engine';
COMMENT ON COLUMN ledger.elapsed_ms IS 'how long what ended here took';

CREATE TABLE jobs (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    task TEXT NOT NULL,
    subject_kind TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    queue TEXT NOT NULL,
    priority SMALLINT DEFAULT 2 NOT NULL,
    tenant TEXT DEFAULT 'default' NOT NULL,
    lane TEXT,
    waits BOOLEAN DEFAULT false NOT NULL,
    args JSONB DEFAULT '{}' NOT NULL,
    correlation_id TEXT NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    run_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamptz,
    attempt INTEGER DEFAULT 0 NOT NULL,
    max_attempts INTEGER DEFAULT 1 NOT NULL,
    timeout_seconds double precision NOT NULL,
    dispatched_at timestamptz,
    dispatches INTEGER DEFAULT 0 NOT NULL,
    lease_until timestamptz,
    fence BIGINT,
    CONSTRAINT jobs_pkey PRIMARY KEY (id),
    CONSTRAINT jobs_subject_kind_subject_id_task_key UNIQUE (subject_kind, subject_id, task),
    CONSTRAINT jobs_priority_check CHECK (priority BETWEEN 0 AND 3),
    CONSTRAINT jobs_attempt_check CHECK (attempt BETWEEN 0 AND max_attempts),
    CONSTRAINT jobs_timeout_check CHECK (timeout_seconds > 0),
    CONSTRAINT jobs_lease_has_fence_check CHECK ((fence IS NULL) = (lease_until IS NULL)),
    CONSTRAINT jobs_waits_in_lane_check CHECK (NOT waits OR (lane IS NOT NULL AND fence IS NULL))
)
 WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
CREATE INDEX jobs_expiry_ix ON jobs (expires_at) WHERE fence IS NULL AND expires_at IS NOT NULL;
CREATE INDEX jobs_lane_ix ON jobs (lane, priority, id) WHERE lane IS NOT NULL;
CREATE UNIQUE INDEX jobs_lane_leased_ix ON jobs (lane) WHERE fence IS NOT NULL AND lane IS NOT NULL;
CREATE INDEX jobs_leased_ix ON jobs (id) WHERE fence IS NOT NULL;
CREATE INDEX jobs_ready_ix ON jobs (queue, priority, tenant, run_at, id) WHERE fence IS NULL
        AND dispatched_at IS NULL AND NOT waits;
CREATE INDEX jobs_sent_ix ON jobs (queue, dispatched_at) WHERE fence IS NULL AND dispatched_at IS NOT NULL;
COMMENT ON COLUMN jobs.lane IS 'what must run one at a time: a robot, a symbol';
COMMENT ON COLUMN jobs.waits IS 'behind another of its lane';
COMMENT ON COLUMN jobs.lease_until IS 'unindexed, so that renewals stay HOT';

CREATE TABLE dead_letters (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    task TEXT NOT NULL,
    subject_kind TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    code TEXT NOT NULL,
    error TEXT NOT NULL,
    correlation_id TEXT NOT NULL,
    died_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    replayed_at timestamptz,
    replayed_by TEXT,
    CONSTRAINT dead_letters_pkey PRIMARY KEY (id)
);
CREATE INDEX dead_letters_subject_ix ON dead_letters (subject_kind, subject_id);
CREATE INDEX dead_letters_waiting_ix ON dead_letters (task, id) WHERE replayed_at IS NULL;

CREATE TABLE clients (
    name TEXT NOT NULL,
    tenant TEXT DEFAULT 'default' NOT NULL,
    permissions TEXT[] NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    disabled_at timestamptz,
    CONSTRAINT clients_pkey PRIMARY KEY (name),
    CONSTRAINT clients_permissions_check CHECK (permissions <@ ARRAY['read', 'write', 'admin']),
    CONSTRAINT clients_name_check CHECK (name ~ '^[A-Za-z0-9._:@-]{1,64}$')
);

CREATE TABLE api_keys (
    id TEXT NOT NULL,
    client TEXT NOT NULL,
    secret_sha256 TEXT NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT api_keys_pkey PRIMARY KEY (id),
    CONSTRAINT api_keys_hash_check CHECK (length(secret_sha256) = 64),
    CONSTRAINT api_keys_client_fkey FOREIGN KEY(client) REFERENCES clients (name)
);
CREATE INDEX api_keys_client_ix ON api_keys (client);

CREATE TABLE processes (
    id TEXT NOT NULL,
    role TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    beat_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT processes_pkey PRIMARY KEY (id)
)
 WITH (fillfactor = 50);
COMMENT ON COLUMN processes.id IS 'role@host:pid';

CREATE TABLE schedules (
    name TEXT NOT NULL,
    every_seconds double precision NOT NULL,
    next_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    paused BOOLEAN DEFAULT false NOT NULL,
    last_started_at timestamptz,
    last_finished_at timestamptz,
    last_error TEXT,
    runs BIGINT DEFAULT 0 NOT NULL,
    misses BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT schedules_pkey PRIMARY KEY (name),
    CONSTRAINT schedules_every_check CHECK (every_seconds > 0)
);

CREATE TABLE tallies (
    kind TEXT NOT NULL,
    measure TEXT NOT NULL,
    name TEXT NOT NULL,
    label TEXT DEFAULT '' NOT NULL,
    bucket TEXT DEFAULT '' NOT NULL,
    value double precision NOT NULL,
    CONSTRAINT tallies_pkey PRIMARY KEY (kind, measure, name, label, bucket)
);

CREATE TABLE tally_position (
    singleton TEXT DEFAULT 'row' NOT NULL,
    seq BIGINT NOT NULL,
    CONSTRAINT tally_position_pkey PRIMARY KEY (singleton)
);

CREATE TABLE installation (
    singleton TEXT DEFAULT 'row' NOT NULL,
    cursor_key TEXT DEFAULT concat(gen_random_uuid(), gen_random_uuid()) NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT installation_pkey PRIMARY KEY (singleton),
    CONSTRAINT installation_singleton_check CHECK (singleton = 'row')
);

INSERT INTO tally_position (seq) VALUES (0);
INSERT INTO installation DEFAULT VALUES;

-- The ledger takes no change but a new row.
CREATE FUNCTION ledger_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE ON ledger
    FOR EACH ROW EXECUTE FUNCTION ledger_refuse_change();
CREATE TRIGGER ledger_no_truncate BEFORE TRUNCATE ON ledger
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();

-- Makes the next partition, of so many rows, and answers its first seq. It is made apart and then
-- attached: CREATE TABLE ... PARTITION OF would lock every writer out.
CREATE FUNCTION ledger_make_partition(rows bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    first bigint;
    name text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ledger_make_partition'));
    SELECT coalesce(max(substring(pg_get_expr(c.relpartbound, c.oid) FROM $re$TO \('(\d+)'\)$re$)::bigint), 1)
      INTO first
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'ledger'::regclass;
    name := 'ledger_' || lpad(first::text, 19, '0');
    EXECUTE format('CREATE TABLE %I (LIKE ledger INCLUDING ALL)', name);
    EXECUTE format('ALTER TABLE ledger ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', name, first, first + rows);
    -- Row triggers come with the attachment, statement triggers do not.
    EXECUTE format('CREATE TRIGGER ledger_no_truncate BEFORE TRUNCATE ON %I
        FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change()', name);
    RETURN first;
END $$;

-- The first partitions; the schedule `partitions` makes the others ahead of need.
SELECT ledger_make_partition(5000000) FROM generate_series(1, 4);
"""

DOWN = """
DROP TABLE installation;
DROP TABLE tally_position;
DROP TABLE tallies;
DROP TABLE schedules;
DROP TABLE processes;
DROP TABLE api_keys;
DROP TABLE clients;
DROP TABLE dead_letters;
DROP TABLE jobs;
DROP TABLE ledger;
DROP FUNCTION ledger_make_partition;
DROP FUNCTION ledger_refuse_change;
DROP SEQUENCE ledger_seq;
DROP SEQUENCE fence_seq;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP.replace("%", "%%"))


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
