"""A domain of the tests' own: parcels that vans carry. Retryable, in lanes, for several tenants.

It stands where tickets, runs and tasks stand, so that what holds here holds for whatever is built on the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, DateTime, Integer, MetaData, Table, Text, and_, func, literal, select, text

from models.kernel.backoff import backoff_seconds
from models.kernel.dead_letters import letter_for
from models.kernel.errors import LeaseLost
from models.kernel.jobs import Held, Spec, jobs
from models.kernel.ledger import ledger
from models.kernel.machine import Machine
from models.kernel.transition import Birth, Job, Subject, Told, Transition

PARCEL = Machine(
    kind="parcel",
    initial="packed",
    terminal=frozenset({"delivered", "failed", "cancelled"}),
    edges={
        "packed": frozenset({"queued", "cancelled"}),
        "queued": frozenset({"moving", "failed", "cancelled"}),
        "moving": frozenset({"delivered", "failed", "cancelled", "queued"}),
        "delivered": frozenset({"queued"}),
        "failed": frozenset({"queued"}),
        "cancelled": frozenset({"queued"}),
    },
)

parcels = Table(
    "parcels",
    MetaData(),
    Column("id", Text, primary_key=True),
    Column("van", Text),
    Column("tenant", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    Column("error", Text),
    Column("error_code", Text),
    Column("state", Text, nullable=False),
    Column("revision", Integer, nullable=False, server_default=text("1")),
    Column("correlation_id", Text, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
)

TASK = "parcels.move"
QUEUE = "vans"
BASE_SECONDS, CAP_SECONDS = 2.0, 10.0
SUBJECT = Subject(PARCEL, parcels)


def told(topic: str) -> Told:
    return Told(topic=lambda _p: literal(topic), body=lambda p: {"parcel": p.id}, reason=lambda p: p.error_code)


def carriage(parcel: Any) -> Spec:
    return Spec(
        task=TASK,
        queue=QUEUE,
        priority=parcel.priority,
        timeout_seconds=30.0,
        lane=parcel.van,
        tenant=parcel.tenant,
        expires_at=parcel.expires_at,
        max_attempts=parcel.tries,
    )


def letter(moved: Any) -> list[Any]:
    return [letter_for(moved, task=TASK, kind=PARCEL.kind, when=and_(moved.c.state == "failed"))]


def move(source: str, target: str, **parts: Any) -> Transition:
    """A transition between states, each given as words: `queued moving`."""
    ends = {"sources": frozenset(source.split()), "targets": frozenset(target.split())}
    return Transition(subject=SUBJECT, told=told(f"parcel_{target.split(maxsplit=1)[0]}"), **ends, **parts)


PACK = Birth(
    subject=SUBJECT,
    given={
        "id": Text,
        "van": Text,
        "tenant": Text,
        "priority": Integer,
        "tries": Integer,
        "expires_at": DateTime(True),
    },
    told=told("parcel_packed"),
)
ASK = move("packed", "queued", owes=carriage)
ASK_AGAIN = move("packed delivered failed cancelled", "queued", owes=carriage)
TAKE = move("queued", "moving", job=Job.LEASE)
ENDS: dict[str, Any] = {
    "given": {"error": Text, "error_code": Text},
    "set": lambda _p, given: {"error": given.error, "error_code": given.error_code},
    "also": letter,
}
SETTLE = move("moving", "delivered failed", job=Job.END, **ENDS)
RETRY = move("moving", "queued", job=Job.RETRY)
RELEASE = move("moving", "queued", job=Job.RETURN)
CANCEL = move("packed queued moving", "cancelled", job=Job.END_ANY)
EXPIRE = move("queued", "failed", job=Job.END_UNSTARTED, **ENDS)

Rows = list[Mapping[str, Any]]


def pack(connection: Connection, *ids: str, **columns: Any) -> Rows:
    whole = {"van": None, "tenant": "default", "priority": 2, "tries": 3, "expires_at": None, **columns}
    return PACK(connection, [{"id": name, **whole} for name in ids], actor="test", correlation_id="c-1")


def ask(connection: Connection, *ids: str, again: bool = False) -> Rows:
    act = ASK_AGAIN if again else ASK
    return act(connection, [{"id": name} for name in ids], actor="test")


def send(connection: Connection, *ids: str, **columns: Any) -> list[int]:
    """Parcels that are packed and asked for; answers their jobs' ids in order."""
    pack(connection, *ids, **columns)
    ask(connection, *ids)
    return [job_of(connection, name)["id"] for name in ids]


def take(connection: Connection, *job_ids: int) -> Rows:
    return TAKE(connection, [{"job_id": job_id} for job_id in job_ids], actor="driver")


def take_one(connection: Connection, job_id: int) -> Mapping[str, Any]:
    (taken,) = take(connection, job_id)
    return taken


def held(taken: Mapping[str, Any]) -> dict[str, Any]:
    return {"job_id": taken["job_id"], "fence": taken["fence"]}


def deliver(connection: Connection, taken: Mapping[str, Any]) -> Rows:
    return SETTLE(connection, [{**held(taken), "to": "delivered"}], actor="driver")


def fail(connection: Connection, taken: Mapping[str, Any], code: str = "dropped") -> Rows:
    end = {"to": "failed", "error": "It fell", "error_code": code}
    return SETTLE(connection, [{**held(taken), **end}], actor="driver")


def retry(connection: Connection, taken: Mapping[str, Any], delay_seconds: float = 0.0) -> Rows:
    return RETRY(connection, [{**held(taken), "delay_seconds": delay_seconds}], actor="driver")


def release(connection: Connection, taken: Mapping[str, Any]) -> Rows:
    return RELEASE(connection, [held(taken)], actor="driver")


def cancel(connection: Connection, *ids: str) -> Rows:
    return CANCEL(connection, [{"id": name} for name in ids], actor="test")


def stumble(connection: Connection, taken: Mapping[str, Any]) -> str:
    """The policy of this domain: try again with backoff, at last fail and leave a dead letter."""
    if taken["attempt"] < taken["max_attempts"]:
        moved = retry(connection, taken, backoff_seconds(taken["attempt"], BASE_SECONDS, CAP_SECONDS))
    else:
        moved = fail(connection, taken)
    if not moved:
        raise LeaseLost("somebody else has it")
    return str(moved[0]["state"])


def lose(connection: Connection, lost: Sequence[Held]) -> int:
    """Workers fell silent: the same policy, as the reaper applies it."""
    again = [job for job in lost if job.attempt < job.max_attempts]
    over = [job for job in lost if job.attempt >= job.max_attempts]
    tried = RETRY(
        connection,
        [
            {
                "job_id": job.id,
                "fence": job.fence,
                "delay_seconds": backoff_seconds(job.attempt, BASE_SECONDS, CAP_SECONDS),
            }
            for job in again
        ],
        actor="reaper",
    )
    end = {"to": "failed", "error": "The driver is gone", "error_code": "lost"}
    ended = SETTLE(connection, [{"job_id": job.id, "fence": job.fence, **end} for job in over], actor="reaper")
    return len(tried) + len(ended)


def expire(connection: Connection, late: Sequence[Held]) -> int:
    end = {"error": "Too late", "error_code": "expired"}
    return len(EXPIRE(connection, [{"job_id": job.id, **end} for job in late], actor="reaper"))


def state_of(connection: Connection, parcel_id: str) -> str:
    return str(connection.scalar(select(parcels.c.state).where(parcels.c.id == parcel_id)))


def job_of(connection: Connection, parcel_id: str) -> Mapping[str, Any]:
    query = select(jobs).where(jobs.c.subject_kind == "parcel", jobs.c.subject_id == parcel_id)
    return connection.execute(query).mappings().one()


def count_jobs(connection: Connection) -> int:
    return int(connection.scalar(select(func.count()).select_from(jobs)) or 0)


def topics_of(connection: Connection, parcel_id: str) -> list[str]:
    query = select(ledger.c.topic).where(ledger.c.subject_id == parcel_id).order_by(ledger.c.seq)
    return list(connection.scalars(query))


def set_job(connection: Connection, job_id: int, assignments: str) -> None:
    """Move a job's times instead of waiting for them."""
    connection.execute(text(f"UPDATE jobs SET {assignments} WHERE id = :id"), {"id": job_id})
