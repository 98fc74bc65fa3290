"""The real statements of the kernel on a real database whose clock is moved by hand.

`clock_timestamp()` of Postgres is shadowed by a function of the same name that reads a setting of the session, so that
the statements stay as they are, nothing happens by itself, and a bound can be met to the microsecond.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, text

from models.kernel import backlog, jobs
from models.kernel.jobs import Held, Spec
from models.kernel.transition import Transition
from tests.kernel import parcel
from tests.simulation.selection_rules import NEVER, Job

BEGINNING = 4_102_444_800.0  # the year 2100: the server has long been up
QUEUES = ("vans", "bikes")
CLOCK = (
    "CREATE SCHEMA simulated",
    """
    CREATE FUNCTION simulated.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql
    AS $$ SELECT to_timestamp(current_setting('simulated.now')::float8) $$
    """,
    "ALTER TABLE jobs ALTER COLUMN run_at SET DEFAULT simulated.clock_timestamp()",
    "SET search_path = simulated, pg_catalog, public",
)
ROWS = text(
    """
    SELECT id, waits, attempt, dispatches, fence,
           extract(epoch FROM run_at)::float8 - :zero AS run_at,
           extract(epoch FROM dispatched_at)::float8 - :zero AS dispatched_at,
           extract(epoch FROM lease_until)::float8 - :zero AS lease_until
      FROM jobs ORDER BY id
    """
)


def asking(queue: str, keeps_turn: bool, sends: bool) -> Transition:
    def carriage(of: Any) -> Spec:
        sends_to = queue if sends else None
        return replace(parcel.carriage(of), queue=queue, keeps_turn=keeps_turn, sends_to=sends_to)

    return parcel.move("packed", "queued", owes=carriage)


KINDS = tuple(itertools.product(QUEUES, (False, True), (False, True)))
ASKS = {kind: asking(*kind) for kind in KINDS}


class Kernel:
    """One connection, one clock. Each method is one act, as the dispatcher, a worker or a domain calls it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        for line in CLOCK:
            connection.execute(text(line))

    def begin(self) -> None:
        """An empty backlog at the beginning of time."""
        self.connection.execute(text("DELETE FROM jobs"))
        self.set_clock(0.0)

    def set_clock(self, now: float) -> None:
        self.connection.execute(text("SELECT set_config('simulated.now', :now, false)"), {"now": repr(BEGINNING + now)})

    def rows(self) -> dict[int, Mapping[str, Any]]:
        return {row["id"]: row for row in self.connection.execute(ROWS, {"zero": BEGINNING}).mappings()}

    def owe(self, kind: tuple[str, bool, bool], born: Sequence[Job]) -> list[tuple[int, int]]:
        """Parcels packed in one statement and asked for in another; their jobs have ids then.

        Answers ids and priorities of the messages that fall to whoever asked.
        """
        parcel.PACK(self.connection, [parcel_of(job) for job in born], actor="test", correlation_id="c-1")
        asked = ASKS[kind](self.connection, [{"id": job.name} for job in born], actor="test")
        for job in born:
            job.id = parcel.job_of(self.connection, job.name)["id"]
        messages = [row["sent"] for row in asked if row.get("sent")]
        return sorted((message["id"], message["priority"]) for message in messages)

    # the dispatcher

    def pick(self, queue: str, slots: int, aging: float, aged_slots: int) -> list[tuple[int, int]]:
        return [(job.id, job.priority) for job in backlog.pick_jobs(self.connection, queue, slots, aging, aged_slots)]

    def count_sent(self, queue: str, within: float, most: int) -> int:
        return backlog.count_sent(self.connection, queue, within, most)

    def send_again(self, queue: str, slots: int, patience: float) -> int:
        return backlog.send_again(self.connection, queue, slots, patience)

    def send_passed_over(self, queue: str, slots: int, aging: float) -> int:
        return backlog.send_passed_over(self.connection, queue, slots, aging)

    def wake_lanes(self) -> int:
        return backlog.wake_lanes(self.connection)

    def lost(self) -> list[Held]:
        return jobs.list_lost(self.connection).get(parcel.TASK, [])

    def expired(self) -> list[Held]:
        return jobs.list_expired(self.connection).get(parcel.TASK, [])

    def lose(self, lost: Sequence[Held]) -> int:
        return parcel.lose(self.connection, lost)

    def expire(self, late: Sequence[Held]) -> int:
        return parcel.expire(self.connection, late)

    # the workers

    def take(self, job_id: int) -> Mapping[str, Any] | None:
        """None when there is nothing to take; raises LaneBusy."""
        taken = parcel.take(self.connection, job_id)
        return taken[0] if taken else None

    def park(self, job_id: int) -> None:
        backlog.park_job(self.connection, job_id)

    def hand_back(self, job_ids: Sequence[int]) -> None:
        backlog.hand_back_jobs(self.connection, job_ids)

    def put_off(self, job_id: int) -> None:
        backlog.put_off_job(self.connection, job_id)

    def renew(self, taken: Mapping[str, Any]) -> bool:
        return bool(jobs.renew(self.connection, [(taken["job_id"], taken["fence"])]))

    def deliver(self, taken: Mapping[str, Any]) -> bool:
        return bool(parcel.deliver(self.connection, taken))

    def release(self, taken: Mapping[str, Any]) -> bool:
        return bool(parcel.release(self.connection, taken))

    def stumble(self, taken: Mapping[str, Any]) -> bool:
        try:
            return bool(parcel.stumble(self.connection, taken))
        except parcel.LeaseLost:
            return False

    def cancel(self, subject: Mapping[str, Any]) -> bool:
        return bool(parcel.cancel(self.connection, subject["id"]))


def parcel_of(job: Job) -> dict[str, Any]:
    """What is packed, for a job that has no id yet."""
    expires_at = None if job.expires_at == NEVER else datetime.fromtimestamp(BEGINNING + job.expires_at, UTC)
    return {
        **{"id": job.name, "van": job.lane, "tenant": job.tenant, "priority": job.priority},
        **{"tries": job.max_attempts, "expires_at": expires_at.isoformat() if expires_at else None},
    }


def facts_of(job: Job) -> dict[str, Any]:
    """What the row of a job must say."""
    return {
        **{"id": job.id, "waits": job.waits, "attempt": job.attempt, "dispatches": job.sendings, "fence": job.fence},
        **{"run_at": job.run_at, "dispatched_at": job.sent_at, "lease_until": job.lease_until},
    }
