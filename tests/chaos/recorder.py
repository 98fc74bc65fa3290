"""Triggers that write down what the tables themselves forget, and the reading of all evidence at the end.

They belong to the run and not to the product: a job's row is gone when it is settled, a schedule and a latch keep only
their last state, so each lease, firing and latch leaves a row in a table of the recorder's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

INSTALL = """
CREATE TABLE chaos_leases (
    n bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), act text NOT NULL,
    job_id bigint NOT NULL, subject_kind text NOT NULL, subject_id text NOT NULL, lane text, fence bigint NOT NULL
);
CREATE FUNCTION chaos_note_lease() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.fence IS NOT NULL THEN
        INSERT INTO chaos_leases (act, job_id, subject_kind, subject_id, lane, fence)
        VALUES ('ended', OLD.id, OLD.subject_kind, OLD.subject_id, OLD.lane, OLD.fence);
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.fence IS NOT NULL THEN
        INSERT INTO chaos_leases (act, job_id, subject_kind, subject_id, lane, fence)
        VALUES ('taken', NEW.id, NEW.subject_kind, NEW.subject_id, NEW.lane, NEW.fence);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_lease_moves AFTER UPDATE OF fence ON jobs FOR EACH ROW
    WHEN (OLD.fence IS DISTINCT FROM NEW.fence) EXECUTE FUNCTION chaos_note_lease();
CREATE TRIGGER chaos_lease_ends AFTER DELETE ON jobs FOR EACH ROW
    WHEN (OLD.fence IS NOT NULL) EXECUTE FUNCTION chaos_note_lease();

CREATE TABLE chaos_fires (
    n bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    name text NOT NULL, number bigint NOT NULL, due_at timestamptz NOT NULL, paused boolean NOT NULL
);
CREATE FUNCTION chaos_note_fire() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_fires (name, number, due_at, paused) VALUES (NEW.name, NEW.runs, OLD.next_at, OLD.paused);
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_fires_of AFTER UPDATE OF runs ON schedules FOR EACH ROW EXECUTE FUNCTION chaos_note_fire();

CREATE TABLE chaos_latches (
    n bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), scope text NOT NULL,
    correlation_id text NOT NULL, released boolean NOT NULL
);
CREATE FUNCTION chaos_note_latch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_latches (scope, correlation_id, released)
    VALUES (NEW.scope, NEW.correlation_id, NEW.released_at IS NOT NULL);
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_latch_moves AFTER INSERT OR UPDATE ON latches FOR EACH ROW EXECUTE FUNCTION chaos_note_latch();

CREATE TABLE chaos_cadences (
    n bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), first_tick_ms bigint NOT NULL
);
CREATE FUNCTION chaos_note_cadence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_cadences (first_tick_ms) VALUES (NEW.next_tick_ms);
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_cadence_begins AFTER UPDATE OF next_tick_ms ON engine_control FOR EACH ROW
    WHEN (OLD.next_tick_ms IS NULL AND NEW.next_tick_ms IS NOT NULL) EXECUTE FUNCTION chaos_note_cadence();

CREATE TABLE chaos_outputs (seq bigint PRIMARY KEY, event text NOT NULL);
CREATE FUNCTION chaos_note_output() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_outputs (seq, event) VALUES (NEW.seq, NEW.event);
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_output_is_told AFTER INSERT ON engine_outputs FOR EACH ROW EXECUTE FUNCTION chaos_note_output();
"""

EPOCH = "extract(epoch FROM {})::float8 AS {}"


def times(*names: str) -> str:
    return ", ".join(EPOCH.format(name, name) for name in names)


QUESTIONS = {
    "ledger": "SELECT seq, subject_kind, subject_id, revision, from_state, to_state, topic, actor, reason,"
    f" correlation_id, body, {times('at')} FROM ledger ORDER BY seq",
    "tickets": "SELECT id, command, params, priority, target, state, revision, execution, timeout_seconds, metadata,"
    f" error_code, {times('created_at', 'expires_at', 'completed_at')} FROM tickets ORDER BY id",
    "motions": "SELECT id, target, fence, ticket_id, end_reason,"
    f" {times('began_at', 'until', 'ended_at')} FROM sim_motions ORDER BY id",
    "jobs": f"SELECT id, task, subject_kind, subject_id, fence, waits, {times('lease_until')} FROM jobs ORDER BY id",
    "stops": "SELECT id, target, ticket_id, fence, tries, error,"
    f" {times('ordered_at', 'done_at')} FROM stop_orders ORDER BY id",
    "schedules": f"SELECT name, every_seconds, runs, misses, paused, {times('next_at')} FROM schedules ORDER BY name",
    "leases": f"SELECT n, act, job_id, subject_kind, subject_id, lane, fence, {times('at')} FROM chaos_leases"
    " ORDER BY n",
    "fires": f"SELECT n, name, number, due_at::text AS due, paused, {times('at')} FROM chaos_fires ORDER BY n",
    "latches": f"SELECT n, scope, correlation_id, released, {times('at')} FROM chaos_latches ORDER BY n",
    "records": "SELECT ingest_seq, ingest_ts_ms, source_id, symbol, event_type, snapshot_ts_ms, event"
    " FROM engine_inputs ORDER BY ingest_seq",
    "appends": "SELECT first_seq, last_seq, ingest_ts_ms FROM engine_appends ORDER BY last_seq",
    "totals": "SELECT source_id, event_type, events FROM engine_totals ORDER BY source_id, event_type",
    "runs": "SELECT id, number, symbol, engine_timestamp_ms, engine_mode, cut_start_ingest_seq, cut_end_ingest_seq,"
    " counts_by_event_type, planned_ts_ms, attempts, snapshot_ingest_seq, error_kind, error_detail, state, revision"
    " FROM engine_runs ORDER BY number",
    "outputs": "SELECT seq, run_id, symbol, engine_timestamp_ms, event_type, event FROM engine_outputs ORDER BY seq",
    "told_outputs": "SELECT seq, event FROM chaos_outputs ORDER BY seq",
    "cadences": f"SELECT n, first_tick_ms, {times('at')} FROM chaos_cadences ORDER BY n",
    "engine": "SELECT c.state, c.next_tick_ms, c.last_tick_ms, c.ticks, c.skipped_ticks, c.missed_ticks, c.blocks,"
    " h.first_seq, h.last_seq, v.body AS config FROM engine_head h, engine_control c"
    " JOIN engine_configs v ON v.version = c.config_version",
}


def read_evidence(ask: Callable[[str], list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Every row that the checks look at; times are seconds since the epoch."""
    return {name: ask(question) for name, question in QUESTIONS.items()}
