"""The e-stop's latches, what it sweeps, and stops that are repeated."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

UP = r"""
CREATE TABLE latches (
    scope TEXT NOT NULL,
    engaged_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    engaged_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    correlation_id TEXT NOT NULL,
    released_at timestamptz,
    released_by TEXT,
    release_reason TEXT,
    CONSTRAINT latches_pkey PRIMARY KEY (scope),
    CONSTRAINT latches_scope_check CHECK (scope ~ '^[A-Za-z0-9._:-]{1,64}$'),
    CONSTRAINT latches_reason_check CHECK (length(reason) BETWEEN 1 AND 500),
    CONSTRAINT latches_released_check CHECK (num_nulls(released_at, released_by, release_reason) IN (0, 3)),
    CONSTRAINT latches_order_check CHECK (released_at >= engaged_at)
);
CREATE INDEX latches_engaged_ix ON latches (engaged_at, scope) WHERE released_at IS NULL;

-- `all` is the scope of an e-stop over every robot; a robot that was called that gets another name.
UPDATE tickets SET target = target || '-robot' WHERE lower(target) = 'all';
ALTER TABLE tickets ADD CONSTRAINT tickets_target_check CHECK (lower(target) <> 'all');
CREATE INDEX tickets_live_ix ON tickets (state, target) WHERE state IN ('executing', 'queued');

ALTER TABLE stop_orders
    ADD COLUMN execution INTEGER,
    ADD COLUMN not_after timestamptz,
    ADD COLUMN settled_at timestamptz;
COMMENT ON COLUMN stop_orders.execution IS 'of the ticket: which attempt was revoked';
COMMENT ON COLUMN stop_orders.not_after IS 'the revoked attempt begins nothing later';
COMMENT ON COLUMN stop_orders.settled_at IS 'its worker has let go of the robot';
"""

DOWN = """
ALTER TABLE stop_orders DROP COLUMN execution, DROP COLUMN not_after, DROP COLUMN settled_at;
DROP INDEX tickets_live_ix;
ALTER TABLE tickets DROP CONSTRAINT tickets_target_check;
DROP TABLE latches;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP.replace("%", "%%"))


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
