"""The engine's past: epochs of its states, which engine made a run, and which engines the workers have."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

UP = """
ALTER TABLE engine_runs
    ADD COLUMN state_epoch INTEGER DEFAULT 0 NOT NULL,
    ADD COLUMN engine_module TEXT,
    ADD COLUMN engine_version TEXT;
COMMENT ON COLUMN engine_runs.state_epoch IS 'its configuration''s';
COMMENT ON COLUMN engine_runs.engine_module IS 'that answered or failed last; null: none was called';
COMMENT ON COLUMN engine_runs.engine_version IS 'its __version__';

-- A column with a constant default changes no row, so that the states stay as they were written.
ALTER TABLE engine_states ADD COLUMN state_epoch INTEGER DEFAULT 0 NOT NULL;
COMMENT ON COLUMN engine_states.state_epoch IS 'the run''s: others go by it';
CREATE INDEX engine_states_epoch_ix ON engine_states (symbol, state_epoch, number DESC);
DROP INDEX engine_states_symbol_ix;

CREATE TABLE engine_workers (
    id TEXT NOT NULL,
    engine_module TEXT NOT NULL,
    engine_version TEXT,
    options JSONB,
    announced_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT engine_workers_pkey PRIMARY KEY (id)
);
COMMENT ON COLUMN engine_workers.id IS 'the process, as in processes';
COMMENT ON COLUMN engine_workers.engine_version IS 'its __version__';
COMMENT ON COLUMN engine_workers.options
    IS 'what it takes as engine.hysteresis: by name whether it is required; null: anything';
"""

DOWN = """
DROP TABLE engine_workers;
DROP INDEX engine_states_epoch_ix;
CREATE INDEX engine_states_symbol_ix ON engine_states (symbol, number DESC);
ALTER TABLE engine_states DROP COLUMN state_epoch;
ALTER TABLE engine_runs DROP COLUMN state_epoch, DROP COLUMN engine_module, DROP COLUMN engine_version;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
