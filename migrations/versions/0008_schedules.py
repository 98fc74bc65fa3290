"""What the management of schedules shows, and who holds a schedule while it runs."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

UP = r"""
ALTER TABLE schedules
    ADD COLUMN source TEXT DEFAULT 'service' NOT NULL,
    ADD COLUMN running_until timestamptz,
    ADD COLUMN last_duration_ms double precision,
    DROP CONSTRAINT schedules_every_check,
    ADD CONSTRAINT schedules_name_check CHECK (name ~ '^[A-Za-z0-9._:-]{1,64}$'),
    ADD CONSTRAINT schedules_every_check CHECK (every_seconds >= 1 AND every_seconds <= 31536000),
    ADD CONSTRAINT schedules_running_check CHECK (running_until IS NULL OR last_started_at IS NOT NULL),
    ADD CONSTRAINT schedules_duration_check CHECK (last_duration_ms >= 0),
    ADD CONSTRAINT schedules_counts_check CHECK (runs >= 0 AND misses >= 0);

COMMENT ON COLUMN schedules.source IS 'who declares it, and may remove it';
COMMENT ON COLUMN schedules.running_until IS 'null: nobody runs it; past: whoever did counts as dead';
"""

DOWN = """
ALTER TABLE schedules
    DROP CONSTRAINT schedules_counts_check,
    DROP CONSTRAINT schedules_duration_check,
    DROP CONSTRAINT schedules_running_check,
    DROP CONSTRAINT schedules_every_check,
    DROP CONSTRAINT schedules_name_check,
    ADD CONSTRAINT schedules_every_check CHECK (every_seconds > 0),
    DROP COLUMN last_duration_ms,
    DROP COLUMN running_until,
    DROP COLUMN source;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP.replace("%", "%%"))


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
