"""Operations over many subjects."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

UP = """
CREATE TABLE bulk_operations (
    id TEXT NOT NULL,
    act TEXT NOT NULL,
    ids JSONB,
    filter JSONB,
    total INTEGER,
    options JSONB NOT NULL,
    expires_in_seconds double precision NOT NULL,
    position JSONB,
    matched INTEGER DEFAULT 0 NOT NULL,
    done INTEGER DEFAULT 0 NOT NULL,
    refused JSONB DEFAULT '{}' NOT NULL,
    examples JSONB DEFAULT '[]' NOT NULL,
    tenant TEXT NOT NULL,
    created_by TEXT NOT NULL,
    state TEXT NOT NULL,
    revision INTEGER DEFAULT 1 NOT NULL,
    correlation_id TEXT NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    updated_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    asked_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    started_at timestamptz,
    completed_at timestamptz,
    error TEXT,
    error_code TEXT,
    CONSTRAINT bulk_operations_pkey PRIMARY KEY (id),
    CONSTRAINT bulk_operations_state_check CHECK (state IN ('cancelled', 'completed', 'failed', 'queued', 'running')),
    CONSTRAINT bulk_operations_selection_check CHECK (num_nonnulls(ids, filter) = 1
        AND (ids IS NULL) = (total IS NULL)),
    CONSTRAINT bulk_operations_expiry_check CHECK (expires_in_seconds > 0),
    CONSTRAINT bulk_operations_counts_check CHECK (done BETWEEN 0 AND matched),
    CONSTRAINT bulk_operations_ended_check CHECK ((state IN ('completed', 'failed',
        'cancelled')) = (completed_at IS NOT NULL)),
    CONSTRAINT bulk_operations_failed_has_error_check CHECK (state <> 'failed' OR error IS NOT NULL),
    CONSTRAINT bulk_operations_running_has_start_check CHECK (state <> 'running' OR started_at IS NOT NULL)
)
 WITH (fillfactor = 70);
CREATE INDEX bulk_operations_newest_ix ON bulk_operations (created_at DESC, id DESC);
CREATE INDEX bulk_operations_state_ix ON bulk_operations (state, created_at DESC, id DESC);
COMMENT ON COLUMN bulk_operations.ids IS 'what it is about by name, or';
COMMENT ON COLUMN bulk_operations.filter IS 'by what it is like';
COMMENT ON COLUMN bulk_operations.total IS 'how many ids; null: a filter finds out on the way';
COMMENT ON COLUMN bulk_operations.expires_in_seconds IS 'counted from asked_at; nothing is done later';
COMMENT ON COLUMN bulk_operations.position IS 'what lies behind it is done; null: nothing yet';
COMMENT ON COLUMN bulk_operations.refused IS 'how many, by code';
COMMENT ON COLUMN bulk_operations.examples IS 'the first that were refused';
"""

DOWN = """
DROP TABLE bulk_operations;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP.replace("%", "%%"))


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
