"""Tickets, the stops owed to robots, and the simulated robots."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

UP = r"""
CREATE SEQUENCE ticket_number AS bigint MINVALUE 0 MAXVALUE 4294967295 CYCLE;

-- tick-YYYYMMDD-xxxxxxxx (UTC). The eight hex digits are a fixed permutation of a 32-bit counter: each step
-- (xor with the upper half, product with an odd number modulo 2^32) is a bijection, so ids repeat only
-- after 2^32 tickets, where random digits would collide within days.
CREATE FUNCTION new_ticket_id() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    n bigint := nextval('ticket_number') # 2654435769;
BEGIN
    n := ((n # (n >> 16)) * 73244475) & 4294967295;
    n := ((n # (n >> 16)) * 73244475) & 4294967295;
    n := n # (n >> 16);
    RETURN 'tick-' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYYMMDD') || '-' || lpad(to_hex(n), 8, '0');
END $$;

CREATE TABLE tickets (
    id TEXT DEFAULT new_ticket_id() NOT NULL,
    command TEXT NOT NULL,
    params JSONB NOT NULL,
    priority TEXT NOT NULL,
    timeout_seconds INTEGER NOT NULL,
    metadata JSONB NOT NULL,
    target TEXT NOT NULL,
    tenant TEXT NOT NULL,
    created_by TEXT NOT NULL,
    state TEXT NOT NULL,
    revision INTEGER DEFAULT 1 NOT NULL,
    correlation_id TEXT NOT NULL,
    execution INTEGER DEFAULT 0 NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    updated_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamptz,
    started_at timestamptz,
    completed_at timestamptz,
    execution_time_ms double precision,
    result JSONB,
    error TEXT,
    error_code TEXT,
    CONSTRAINT tickets_pkey PRIMARY KEY (id),
    CONSTRAINT tickets_state_check CHECK (state IN ('cancelled', 'completed', 'executing', 'failed',
        'pending', 'queued')),
    CONSTRAINT tickets_priority_check CHECK (priority IN ('critical', 'high', 'normal', 'low')),
    CONSTRAINT tickets_timeout_check CHECK (timeout_seconds BETWEEN 1 AND 3600),
    CONSTRAINT tickets_id_check CHECK (id ~ '^tick-[0-9]{8}-[0-9a-f]{8}$'),
    CONSTRAINT tickets_objects_check CHECK (jsonb_typeof(params) = 'object'
        AND jsonb_typeof(metadata) = 'object'),
    CONSTRAINT tickets_ended_check CHECK ((state IN ('completed', 'failed',
        'cancelled')) = (completed_at IS NOT NULL)),
    CONSTRAINT tickets_completed_has_result_check CHECK (state <> 'completed' OR result IS NOT NULL),
    CONSTRAINT tickets_failed_has_error_check CHECK (state <> 'failed' OR error IS NOT NULL),
    CONSTRAINT tickets_executing_has_start_check CHECK (state <> 'executing' OR started_at IS NOT NULL)
)
 WITH (fillfactor = 85);
CREATE INDEX tickets_command_ix ON tickets (command, created_at DESC, id DESC);
CREATE INDEX tickets_newest_ix ON tickets (created_at DESC, id DESC);
CREATE INDEX tickets_priority_ix ON tickets (priority, created_at DESC, id DESC) WHERE priority <> 'normal';
CREATE INDEX tickets_state_ix ON tickets (state, created_at DESC, id DESC);
CREATE INDEX tickets_target_ix ON tickets (target, created_at DESC, id DESC) WHERE target <> 'default';
COMMENT ON COLUMN tickets.correlation_id IS 'of the request that last set it going';
COMMENT ON COLUMN tickets.execution IS 'how often it was set going';
COMMENT ON COLUMN tickets.expires_at IS 'an accepted motion may not start later';

CREATE TABLE stop_orders (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    target TEXT NOT NULL,
    ticket_id TEXT NOT NULL,
    fence BIGINT NOT NULL,
    reason TEXT NOT NULL,
    correlation_id TEXT NOT NULL,
    ordered_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    tries INTEGER DEFAULT 0 NOT NULL,
    next_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    done_at timestamptz,
    error TEXT,
    CONSTRAINT stop_orders_pkey PRIMARY KEY (id),
    CONSTRAINT stop_orders_tries_check CHECK (tries >= 0)
);
CREATE INDEX stop_orders_due_ix ON stop_orders (next_at) WHERE done_at IS NULL;
COMMENT ON COLUMN stop_orders.fence IS 'drawn after the revoked command''s, so that it prevails';

CREATE TABLE sim_robots (
    target TEXT NOT NULL,
    x double precision NOT NULL,
    y double precision NOT NULL,
    heading double precision NOT NULL,
    speed double precision DEFAULT 0 NOT NULL,
    direction double precision,
    seconds double precision,
    time_scale double precision,
    started_at timestamptz,
    until timestamptz,
    ticket_id TEXT,
    fence BIGINT DEFAULT 0 NOT NULL,
    updated_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT sim_robots_pkey PRIMARY KEY (target),
    CONSTRAINT sim_robots_pose_check CHECK (x >= 0 AND x <= 1000 AND y >= 0 AND y <= 1000
        AND heading >= 0 AND heading < 360),
    CONSTRAINT sim_robots_fence_check CHECK (fence >= 0),
    CONSTRAINT sim_robots_motion_check CHECK ((num_nonnulls(direction, seconds, time_scale, started_at,
        until, ticket_id) = 0 AND speed = 0) OR (num_nulls(direction, seconds, time_scale, started_at, until,
        ticket_id) = 0 AND until >= started_at AND speed >= 0 AND speed <= 3 AND direction >= 0
        AND direction < 360 AND seconds >= 0 AND seconds <= 300 AND time_scale > 0 AND time_scale <= 1000))
);

CREATE TABLE sim_motions (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    target TEXT NOT NULL,
    fence BIGINT NOT NULL,
    command TEXT NOT NULL,
    ticket_id TEXT NOT NULL,
    speed double precision NOT NULL,
    direction double precision NOT NULL,
    seconds double precision NOT NULL,
    time_scale double precision NOT NULL,
    from_x double precision NOT NULL,
    from_y double precision NOT NULL,
    began_at timestamptz NOT NULL,
    until timestamptz NOT NULL,
    ended_at timestamptz,
    ended_by BIGINT,
    end_reason TEXT,
    to_x double precision,
    to_y double precision,
    distance double precision,
    collided BOOLEAN,
    CONSTRAINT sim_motions_pkey PRIMARY KEY (id),
    CONSTRAINT sim_motions_target_fence_key UNIQUE (target, fence),
    CONSTRAINT sim_motions_motion_check CHECK (fence > 0 AND until >= began_at AND speed >= 0
        AND speed <= 3 AND direction >= 0 AND direction < 360 AND seconds >= 0 AND seconds <= 300
        AND time_scale > 0 AND time_scale <= 1000),
    CONSTRAINT sim_motions_end_check CHECK (num_nulls(ended_at, ended_by, end_reason, to_x, to_y, distance,
        collided) = 7 OR (num_nulls(ended_at, ended_by, end_reason, to_x, to_y, distance, collided) = 0
        AND ended_at >= began_at AND ended_at <= until AND ended_by >= fence AND distance >= 0
        AND distance <= speed * seconds + 0.000001)),
    CONSTRAINT sim_motions_target_fkey FOREIGN KEY(target) REFERENCES sim_robots (target)
);
CREATE UNIQUE INDEX sim_motions_one_at_a_time ON sim_motions (target) WHERE ended_at IS NULL;
"""

DOWN = """
DROP TABLE sim_motions;
DROP TABLE sim_robots;
DROP TABLE stop_orders;
DROP TABLE tickets;
DROP FUNCTION new_ticket_id;
DROP SEQUENCE ticket_number;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP.replace("%", "%%"))


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
