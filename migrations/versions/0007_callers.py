"""Idempotency keys, and what clients may ask for."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

UP = """
CREATE TABLE idempotency_keys (
    client TEXT NOT NULL,
    scope_sha256 TEXT NOT NULL,
    body_sha256 TEXT NOT NULL,
    status SMALLINT,
    headers JSONB,
    answer BYTEA,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (client, scope_sha256),
    CONSTRAINT idempotency_keys_hashes_check CHECK (length(scope_sha256) = 64 AND length(body_sha256) = 64),
    CONSTRAINT idempotency_keys_whole_answer_check CHECK (num_nonnulls(status, headers, answer) IN (0, 3)),
    CONSTRAINT idempotency_keys_success_check CHECK (status BETWEEN 200 AND 299)
)
 WITH (fillfactor = 50);
CREATE INDEX idempotency_keys_age_ix ON idempotency_keys (created_at);
COMMENT ON COLUMN idempotency_keys.scope_sha256 IS 'of method, path and key';
COMMENT ON COLUMN idempotency_keys.answer IS 'null only until the transaction of the work commits';

ALTER TABLE clients ADD COLUMN rate_limit INTEGER;
ALTER TABLE clients ADD CONSTRAINT clients_rate_limit_check CHECK (rate_limit BETWEEN 0 AND 1000000);
ALTER TABLE clients ADD CONSTRAINT clients_tenant_check CHECK (tenant ~ '^[A-Za-z0-9._:@-]{1,64}$');
COMMENT ON COLUMN clients.rate_limit IS 'requests a second; null: the setting, 0: no limit';

DROP INDEX api_keys_client_ix;
CREATE INDEX api_keys_client_ix ON api_keys (client, created_at, id);
"""

DOWN = """
DROP INDEX api_keys_client_ix;
CREATE INDEX api_keys_client_ix ON api_keys (client);
ALTER TABLE clients DROP CONSTRAINT clients_tenant_check;
ALTER TABLE clients DROP COLUMN rate_limit;
DROP TABLE idempotency_keys;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP.replace("%", "%%"))


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
