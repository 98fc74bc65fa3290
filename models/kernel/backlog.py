"""The backlog as the dispatcher works it: which jobs go to a Celery queue next.

Order: priority, then fair share between tenants, then age. A tenant's share is what it has on its way or at work: who
has least of it comes next, however few slots a pick has. One slot in AGING_SHARE, and no more, goes
to the oldest job that has waited beyond the aging bound, so that nothing starves. Its message
goes out as a critical one: behind a queue of urgent messages no worker would ever come to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from models.kernel.prepared import prepare

AGING_SHARE = 8
DOUBLINGS = 3  # how often the patience with a silent message doubles


@dataclass(frozen=True)
class Ready:
    """A job chosen to be sent, with what its message says."""

    id: int
    task: str
    subject_id: str
    queue: str
    priority: int
    correlation_id: str


class AgedShare:
    """Which slots go to what has aged: one in AGING_SHARE, also where a pick has fewer than so many."""

    def __init__(self) -> None:
        self.offered = 0

    def take(self, slots: int) -> int:
        """How many of the next so many slots."""
        before = self.offered // AGING_SHARE
        self.offered += max(0, slots)
        return self.offered // AGING_SHARE - before


# Loose index scans over (priority, tenant) pairs that have ready jobs, then the heads of each.
# SKIP LOCKED: a job that somebody is changing is looked at again next time; one of them must not hold the others up.
# No commit is waited for: a pick that a crash of the database forgets is a message that is sent twice.
_PICK = text(
    """
    WITH RECURSIVE gate AS MATERIALIZED (
        SELECT pg_try_advisory_xact_lock(hashtext('orchestrator dispatch'), hashtext(:queue)) AS mine,
               set_config('synchronous_commit', 'off', true)
    ), pairs AS (
        (SELECT priority, tenant FROM jobs
          WHERE (SELECT mine FROM gate) AND queue = :queue AND fence IS NULL AND dispatched_at IS NULL AND NOT waits
          ORDER BY priority, tenant LIMIT 1)
        UNION ALL
        SELECT following.priority, following.tenant FROM pairs, LATERAL (
            SELECT priority, tenant FROM jobs
             WHERE queue = :queue AND fence IS NULL AND dispatched_at IS NULL AND NOT waits
               AND (priority, tenant) > (pairs.priority, pairs.tenant)
             ORDER BY priority, tenant LIMIT 1) AS following
    ), places AS (
        SELECT tenant, count(*) AS taken FROM (
            SELECT tenant FROM jobs WHERE queue = :queue AND fence IS NULL AND dispatched_at IS NOT NULL
            UNION ALL
            SELECT tenant FROM jobs WHERE queue = :queue AND fence IS NOT NULL) AS away
         WHERE (SELECT count(DISTINCT tenant) > 1 FROM pairs)
         GROUP BY tenant
    ), heads AS (
        SELECT head.id, pairs.priority, head.run_at, coalesce(places.taken, 0)
               + row_number() OVER (PARTITION BY pairs.priority, pairs.tenant ORDER BY head.run_at, head.id) AS turn
          FROM pairs LEFT JOIN places USING (tenant), LATERAL (
            SELECT id, run_at FROM jobs
             WHERE queue = :queue AND fence IS NULL AND dispatched_at IS NULL AND NOT waits
               AND priority = pairs.priority AND tenant = pairs.tenant AND run_at <= clock_timestamp()
             ORDER BY run_at, id LIMIT :slots) AS head
    ), aged AS (
        SELECT id FROM heads WHERE run_at < clock_timestamp() - make_interval(secs => :aging)
         ORDER BY run_at, id LIMIT :aged_slots
    ), chosen AS (
        SELECT id FROM aged
        UNION
        (SELECT id FROM heads ORDER BY priority, turn, run_at, id LIMIT :slots)
    ), fitting AS (
        SELECT heads.id, heads.priority, heads.turn, heads.run_at FROM heads JOIN chosen USING (id)
         ORDER BY heads.id NOT IN (SELECT id FROM aged), heads.priority, heads.turn, heads.run_at, heads.id
         LIMIT :slots
    ), free AS (  -- from here on jobs by their keys alone, joined with nothing: BY_INDEX in session.py
        SELECT id FROM jobs
         WHERE id = ANY (ARRAY(SELECT id FROM fitting))
           AND (fence IS NULL AND dispatched_at IS NULL AND NOT waits) IS TRUE
         ORDER BY id FOR UPDATE SKIP LOCKED
    ), sent AS (
        UPDATE jobs SET dispatched_at = clock_timestamp(), dispatches = dispatches + 1
         WHERE id = ANY (ARRAY(SELECT id FROM free))
        RETURNING id, task, subject_id, queue, correlation_id,
                  CASE WHEN id IN (SELECT id FROM aged) OR dispatches > 1
                            AND run_at < clock_timestamp() - make_interval(secs => :aging)  -- passed over before
                       THEN 0 ELSE priority END AS priority
    )
    SELECT id, task, subject_id, queue, priority, correlation_id FROM sent
     ORDER BY priority, array_position(ARRAY(SELECT id FROM fitting ORDER BY turn, run_at, id), id)
    """
)

PICK = prepare(_PICK, {"queue": "text", "slots": "int", "aging": "float8", "aged_slots": "int"})

SENT = prepare(
    text(
        """
        SELECT count(*)::int AS sent FROM (
            SELECT FROM jobs WHERE queue = :queue AND fence IS NULL AND dispatched_at IS NOT NULL
               AND dispatched_at > clock_timestamp() - make_interval(secs => :within) LIMIT :most) AS lately
        """
    ),
    {"queue": "text", "within": "float8", "most": "int"},
)

_SEND_AGAIN = text(
    """
    WITH silent AS (
        SELECT id FROM jobs
         WHERE queue = :queue AND fence IS NULL AND dispatched_at IS NOT NULL
           AND dispatched_at < clock_timestamp()
               - make_interval(secs => :patience * power(2, least(dispatches - 1, :doublings)))
         ORDER BY dispatched_at, id LIMIT :slots FOR UPDATE SKIP LOCKED
    )
    UPDATE jobs SET dispatched_at = NULL WHERE id = ANY (ARRAY(SELECT id FROM silent))
    """
)

# Somebody whose message was sent later is at work: whoever waits for longer than the aging bound is passed over.
_SEND_PASSED_OVER = text(
    """
    WITH passed AS (
        SELECT id FROM jobs
         WHERE queue = :queue AND fence IS NULL AND dispatches <= :doublings
           AND dispatched_at < clock_timestamp() - make_interval(secs => :aging)
           AND EXISTS (SELECT FROM jobs AS other WHERE other.fence IS NOT NULL AND other.queue = :queue
                          AND other.priority < jobs.priority AND other.dispatched_at > jobs.dispatched_at)
         ORDER BY dispatched_at, id LIMIT :slots FOR UPDATE OF jobs SKIP LOCKED
    )
    UPDATE jobs SET dispatched_at = NULL WHERE id = ANY (ARRAY(SELECT id FROM passed))
    """
)

_PARK = text(
    """
    UPDATE jobs SET waits = true, dispatched_at = NULL, dispatches = 0
     WHERE id = :id AND fence IS NULL AND lane IS NOT NULL
    """
)

_HAND_BACK = text(
    """
    WITH mine AS (
        SELECT id FROM jobs WHERE id = ANY(:ids) AND fence IS NULL ORDER BY id FOR UPDATE SKIP LOCKED
    )
    UPDATE jobs SET dispatched_at = NULL, dispatches = 0 WHERE id = ANY (ARRAY(SELECT id FROM mine))
    """
)

# The lane keeps its order, since the job is still its head; among those that are ready it is now the youngest.
_PUT_OFF = text(
    """
    UPDATE jobs SET waits = true, dispatched_at = NULL, dispatches = 0, run_at = clock_timestamp()
     WHERE id = :id AND fence IS NULL AND lane IS NOT NULL AND run_at <= clock_timestamp()
    """
)

# Lanes that have waiters and nobody ready or at work: woken here when a race let the settle pass them by.
# What rests until it is tried again is not ready, and holds nobody up, unless it keeps its turn.
_WAKE = text(
    """
    WITH RECURSIVE lanes AS (
        (SELECT lane FROM jobs WHERE lane IS NOT NULL ORDER BY lane LIMIT 1)
        UNION ALL
        SELECT (SELECT lane FROM jobs WHERE lane > lanes.lane ORDER BY lane LIMIT 1)
          FROM lanes WHERE lanes.lane IS NOT NULL
    ), heads AS (
        SELECT head.id FROM lanes, LATERAL (
            SELECT id, waits FROM jobs
             WHERE jobs.lane = lanes.lane AND (waits OR keeps_turn OR run_at <= clock_timestamp())
             ORDER BY priority, id LIMIT 1) AS head
         WHERE lanes.lane IS NOT NULL AND head.waits
           AND NOT EXISTS (SELECT FROM jobs WHERE jobs.lane = lanes.lane AND fence IS NOT NULL)
    ), free AS (
        SELECT jobs.id FROM jobs JOIN heads USING (id)
         WHERE jobs.waits AND jobs.fence IS NULL
         ORDER BY jobs.id FOR UPDATE OF jobs SKIP LOCKED
    )
    UPDATE jobs SET waits = false, dispatched_at = NULL WHERE id = ANY (ARRAY(SELECT id FROM free))
    """
)


def pick_jobs(
    connection: Connection, queue: str, slots: int, aging_seconds: float, aged_slots: int = 1
) -> Sequence[Ready]:
    """Mark up to `slots` ready jobs of a queue as sent and answer them in the order to send.

    `aged_slots` of them go to the oldest that have waited for longer than the aging bound. One dispatcher picks per
    queue at a time; the others get nothing.
    """
    if slots <= 0:
        return []
    call = {"queue": queue, "slots": slots, "aging": aging_seconds, "aged_slots": aged_slots}
    return [Ready(**row) for row in PICK.run(connection, call)]


def count_sent(connection: Connection, queue: str, within_seconds: float, most: int) -> int:
    """How many jobs of a queue were sent lately and not taken yet, counted up to `most`."""
    return int(SENT.run(connection, {"queue": queue, "within": within_seconds, "most": most})[0]["sent"])


def send_again(connection: Connection, queue: str, slots: int, patience_seconds: float) -> int:
    """Make jobs ready again whose message nobody took; only called while their Celery queue is empty."""
    parameters = {"queue": queue, "slots": slots, "patience": patience_seconds, "doublings": DOUBLINGS}
    return connection.execute(_SEND_AGAIN, parameters).rowcount


def send_passed_over(connection: Connection, queue: str, slots: int, aging_seconds: float) -> int:
    """Make jobs ready again that urgent ones keep passing over in the Celery queue; the next pick sends them first."""
    parameters = {"queue": queue, "slots": max(1, slots // AGING_SHARE), "aging": aging_seconds, "doublings": DOUBLINGS}
    return connection.execute(_SEND_PASSED_OVER, parameters).rowcount


def park_job(connection: Connection, job_id: int) -> None:
    """The job's lane is busy: it waits until the lane wakes it."""
    connection.execute(_PARK, {"id": job_id})


def hand_back_jobs(connection: Connection, job_ids: Sequence[int]) -> None:
    """Nobody could begin with these yet: they are as ready as if they had never been sent."""
    connection.execute(_HAND_BACK, {"ids": list(job_ids)})


def put_off_job(connection: Connection, job_id: int) -> None:
    """The job's turn passes to others of its tenant: it waits for the next sweep and is ready last then."""
    connection.execute(_PUT_OFF, {"id": job_id})


def wake_lanes(connection: Connection) -> int:
    """Wake the heads of lanes in which nobody is ready or at work."""
    return connection.execute(_WAKE).rowcount
