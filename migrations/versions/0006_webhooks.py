"""Webhook subscriptions and their deliveries."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

UP = r"""
CREATE TABLE webhooks (
    id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    created_by TEXT NOT NULL,
    url TEXT NOT NULL,
    topics TEXT[] NOT NULL,
    description TEXT NOT NULL,
    secret TEXT,
    previous_secret TEXT,
    previous_until timestamptz,
    after_seq BIGINT NOT NULL,
    failures INTEGER DEFAULT 0 NOT NULL,
    disabled_reason TEXT,
    state TEXT NOT NULL,
    revision INTEGER DEFAULT 1 NOT NULL,
    correlation_id TEXT NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    updated_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT webhooks_pkey PRIMARY KEY (id),
    CONSTRAINT webhooks_state_check CHECK (state IN ('deleted', 'disabled', 'enabled')),
    CONSTRAINT webhooks_id_check CHECK (id ~ '^wh_[0-9a-f]{12}$'),
    CONSTRAINT webhooks_url_check CHECK (url ~ '^https?://' AND length(url) <= 2048),
    CONSTRAINT webhooks_topics_check CHECK (cardinality(topics) BETWEEN 1 AND 32),
    CONSTRAINT webhooks_overlap_check CHECK ((previous_secret IS NULL) = (previous_until IS NULL)),
    CONSTRAINT webhooks_secret_check CHECK ((state = 'deleted') = (secret IS NULL)),
    CONSTRAINT webhooks_disabled_has_reason_check CHECK (state <> 'disabled' OR disabled_reason IS NOT NULL),
    CONSTRAINT webhooks_counts_check CHECK (failures >= 0 AND after_seq >= 0)
);
CREATE INDEX webhooks_enabled_ix ON webhooks (tenant) WHERE state = 'enabled';
CREATE INDEX webhooks_newest_ix ON webhooks (created_at DESC, id DESC) WHERE state <> 'deleted';
COMMENT ON COLUMN webhooks.secret IS 'in clear: signing needs it';
COMMENT ON COLUMN webhooks.previous_until IS 'until then both secrets sign';
COMMENT ON COLUMN webhooks.after_seq IS 'events up to this one are not for it';
COMMENT ON COLUMN webhooks.failures IS 'failed deliveries in a row';

CREATE TABLE webhook_deliveries (
    id TEXT NOT NULL,
    webhook_id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    seq BIGINT,
    topic TEXT NOT NULL,
    payload JSONB NOT NULL,
    tries INTEGER DEFAULT 0 NOT NULL,
    max_attempts INTEGER NOT NULL,
    next_at timestamptz,
    status_code INTEGER,
    error TEXT,
    error_code TEXT,
    state TEXT NOT NULL,
    revision INTEGER DEFAULT 1 NOT NULL,
    correlation_id TEXT NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    updated_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    ended_at timestamptz,
    CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (id),
    CONSTRAINT webhook_deliveries_webhook_id_seq_key UNIQUE (webhook_id, seq),
    CONSTRAINT webhook_deliveries_state_check CHECK (state IN ('delivered', 'delivering', 'failed', 'pending')),
    CONSTRAINT webhook_deliveries_id_check CHECK (id ~ '^msg_[0-9a-f_]{12,40}$'),
    CONSTRAINT webhook_deliveries_tries_check CHECK (tries >= 0 AND max_attempts >= 1),
    CONSTRAINT webhook_deliveries_ended_check CHECK ((state IN ('delivered', 'failed')) = (ended_at IS NOT NULL)),
    CONSTRAINT webhook_deliveries_failed_has_error_check CHECK (state <> 'failed' OR error_code IS NOT NULL),
    CONSTRAINT webhook_deliveries_status_code_check CHECK (status_code BETWEEN 100 AND 999),
    CONSTRAINT webhook_deliveries_webhook_id_fkey FOREIGN KEY(webhook_id) REFERENCES webhooks (id)
)
 WITH (fillfactor = 85);
CREATE INDEX webhook_deliveries_ended_ix ON webhook_deliveries (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX webhook_deliveries_newest_ix ON webhook_deliveries (webhook_id, created_at DESC, id DESC);
CREATE INDEX webhook_deliveries_state_ix ON webhook_deliveries (webhook_id, state, created_at DESC, id DESC);
COMMENT ON COLUMN webhook_deliveries.id IS 'the receiver''s webhook-id, the same at every try';
COMMENT ON COLUMN webhook_deliveries.seq IS 'of the event; null: a test';
COMMENT ON COLUMN webhook_deliveries.next_at IS 'of a retry';
COMMENT ON COLUMN webhook_deliveries.status_code IS 'what the receiver answered last';

CREATE TABLE webhook_position (
    singleton TEXT DEFAULT 'row' NOT NULL,
    seq BIGINT NOT NULL,
    CONSTRAINT webhook_position_pkey PRIMARY KEY (singleton),
    CONSTRAINT webhook_position_singleton_check CHECK (singleton = 'row')
);

-- Whoever subscribes wants what happens from then on: what was told so far is read already.
INSERT INTO webhook_position (seq) SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM ledger_seq;
"""

DOWN = """
DROP TABLE webhook_position;
DROP TABLE webhook_deliveries;
DROP TABLE webhooks;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP.replace("%", "%%"))


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
