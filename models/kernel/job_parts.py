"""The parts of a transition's statement that touch jobs; see `transition` for the whole."""

from __future__ import annotations

import enum
from typing import Any

from sqlalchemy import (
    CTE,
    Double,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy import update as update_
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from models.kernel.expressions import among, seconds
from models.kernel.jobs import Spec, fence_seq, jobs

LANE_INDEX = "jobs_lane_leased_ix"
TEXTS: ARRAY[str] = ARRAY(Text)
LAST_WORDS = (jobs.c.id, jobs.c.subject_id, jobs.c.lane, jobs.c.fence, jobs.c.lease_until)
GONE = literal(False).label("rests")
LATELY_SECONDS = 1.0
FEW_MESSAGES = 8
SENT = [
    part
    for name in ("id", "task", "subject_id", "queue", "priority", "correlation_id")
    for part in (name, jobs.c[name])
]
"""What a message says of a job, as name and value in turn."""


class Job(enum.Enum):
    """What a transition does to the jobs of its subjects."""

    NONE = "the act knows no job"
    LEASE = "take: the fence is drawn, the attempt counted"
    END = "settle: the job under the given fence is gone"
    END_ANY = "cancel: the subject's job is gone, whoever holds it"
    END_UNSTARTED = "expire: the job is gone, unless somebody has it"
    RETURN = "release: ready again, the attempt not counted"
    RETRY = "retry: ready again after the given delay"


BY_FENCE = frozenset({Job.END, Job.RETURN, Job.RETRY})
BY_JOB = BY_FENCE | {Job.LEASE, Job.END_UNSTARTED}


def as_column(value: Any, kind: Any) -> Any:
    return value if hasattr(value, "label") else cast(literal(value), kind)


def guard_of(job: Job, given: CTE) -> Any:
    """Which of the given jobs an act may touch. A retry needs an attempt that is left: nobody could take it else."""
    unstarted = jobs.c.fence.is_(None)
    has_attempts = jobs.c.attempt < jobs.c.max_attempts
    now = func.clock_timestamp()
    expires_at = func.coalesce(jobs.c.expires_at, func.to_timestamp(cast("infinity", Double)))
    guards = {
        Job.LEASE: and_(unstarted, has_attempts, jobs.c.run_at <= now, expires_at > now),
        Job.END_UNSTARTED: unstarted,
    }
    if job in guards:
        return guards[job]
    under_fence = jobs.c.fence == given.c.fence
    return and_(under_fence, has_attempts) if job is Job.RETRY else under_fence


def held(kind: str, given: CTE, job: Job) -> CTE:
    """The given jobs that the act may touch, locked in id order."""
    return (
        select(jobs.c.id.label("job_id"), jobs.c.subject_id)
        .where(among(jobs.c.id, given.c.job_id), jobs.c.id == given.c.job_id)
        .where(jobs.c.subject_kind.is_not_distinct_from(kind), guard_of(job, given))
        .order_by(jobs.c.id)
        .with_for_update(of=jobs)
        .cte("held")
    )


def held_by_subject(kind: str, given: CTE) -> CTE:
    """Every job of the given subjects, locked in id order."""
    return (
        select(jobs.c.id.label("job_id"))
        .where(jobs.c.subject_kind == kind, among(jobs.c.subject_id, given.c.id))
        .order_by(jobs.c.id)
        .with_for_update(of=jobs)
        .cte("held")
    )


def owed(kind: str, moved: CTE, spec: Spec) -> CTE:
    """The jobs that the moved subjects owe from now on.

    A job waits when its lane, or this very batch, holds one of equal or better priority that comes before it;
    the lane's index has the last word.
    """
    priority = as_column(spec.priority, jobs.c.priority.type)
    values: dict[str, Any] = {
        "task": literal(spec.task),
        "subject_kind": literal(kind),
        "subject_id": moved.c.id,
        "queue": as_column(spec.queue, Text),
        "priority": priority,
        "tenant": as_column(spec.tenant, Text),
        "args": as_column(spec.args if spec.args is not None else "{}", JSONB),
        "correlation_id": moved.c.correlation_id,
        "timeout_seconds": as_column(spec.timeout_seconds, Double),
        "expires_at": spec.expires_at if spec.expires_at is not None else cast(null(), jobs.c.expires_at.type),
        "max_attempts": as_column(spec.max_attempts, jobs.c.max_attempts.type),
    }
    order = [moved.c.id] if spec.turn is None else [spec.turn, moved.c.id]
    if spec.lane is not None:
        lane = as_column(spec.lane, Text)
        others = jobs.alias("others")
        # what rests until it is tried again holds nobody up, unless it keeps its turn
        due = or_(others.c.run_at <= func.clock_timestamp(), others.c.keeps_turn)
        ahead = select(others.c.id).where(others.c.lane == lane, others.c.priority <= priority, due).exists()
        turn = func.row_number().over(partition_by=lane, order_by=(priority, *order))
        values |= {"lane": lane, "waits": and_(lane.is_not(None), or_(turn > 1, ahead))}
        values |= {"keeps_turn": and_(literal(spec.keeps_turn), lane.is_not(None))}
    source = select(*(value.label(name) for name, value in values.items())).order_by(*order)
    answer: list[Any] = [jobs.c.id.label("job_id")]
    if spec.sends_to is not None:
        source = sent_if_calm(source.subquery("owes"), spec.sends_to)
        sent = case((jobs.c.dispatched_at.is_not(None), func.jsonb_build_object(*SENT)))
        answer += [jobs.c.subject_id, sent.label("sent")]
    return insert(jobs).from_select(source.selected_columns.keys(), source).returning(*answer).cte("job")


def sent_if_calm(owes: Any, queue: str) -> Any:
    """The jobs that are owed, marked as sent if nobody waits before them and few messages are on their way.

    So nothing is overtaken, and what is sent past the dispatcher is bounded.
    """
    mine = and_(jobs.c.queue == queue, jobs.c.fence.is_(None))
    ready = select(jobs.c.id).where(mine, jobs.c.dispatched_at.is_(None), ~jobs.c.waits)
    lately = func.clock_timestamp() - seconds(LATELY_SECONDS)
    on_their_way = select(jobs.c.id).where(mine, jobs.c.dispatched_at > lately).limit(FEW_MESSAGES).subquery()
    few = select(func.count() < FEW_MESSAGES).select_from(on_their_way).scalar_subquery()
    calm = select(and_(~ready.exists(), few).label("it_is")).cte("calm").prefix_with("MATERIALIZED")
    goes = and_(calm.c.it_is, owes.c.queue == queue, ~owes.c.waits if "waits" in owes.c else true())
    sent = {"dispatched_at": case((goes, func.clock_timestamp())), "dispatches": case((goes, 1), else_=0)}
    return select(owes, *(value.label(name) for name, value in sent.items())).select_from(owes.join(calm, true()))


def leased(moved: CTE) -> CTE:
    """Lease the jobs of the moved subjects: a new fence, one attempt more."""
    return (
        update_(jobs)
        .where(among(jobs.c.id, moved.c.job_id))
        .values(
            fence=fence_seq.next_value(),
            lease_until=func.clock_timestamp() + seconds(bindparam("lease", None, type_=Double)),
            attempt=jobs.c.attempt + 1,
            waits=False,
        )
        .returning(
            jobs.c.id.label("job_id"),
            jobs.c.fence,
            jobs.c.attempt,
            jobs.c.max_attempts,
            jobs.c.timeout_seconds.label("job_timeout_seconds"),
            jobs.c.args,
            (func.clock_timestamp() + seconds(jobs.c.timeout_seconds)).label("not_after"),
        )
        .cte("job")
    )


def ended(moved: CTE) -> CTE:
    """Their last words: what was under lease, and until when."""
    return delete(jobs).where(among(jobs.c.id, moved.c.job_id)).returning(*LAST_WORDS, GONE).cte("job")


def ended_by_subject(kind: str, moved: CTE) -> CTE:
    mine = and_(jobs.c.subject_kind == kind, among(jobs.c.subject_id, moved.c.id))
    return delete(jobs).where(mine).returning(*LAST_WORDS, GONE).cte("job")


def returned(moved: CTE, *, attempts: int, delay_seconds: Any = 0.0) -> CTE:
    """Ready again: nobody's, unsent, after a delay."""
    return (
        update_(jobs)
        .where(among(jobs.c.id, moved.c.job_id), jobs.c.id == moved.c.job_id)
        .values(
            fence=null(),
            lease_until=null(),
            dispatched_at=null(),
            dispatches=0,
            attempt=jobs.c.attempt + attempts,
            run_at=func.clock_timestamp() + seconds(as_column(delay_seconds, Double)),
        )
        .returning(jobs.c.id, jobs.c.lane, jobs.c.fence, jobs.c.keeps_turn.label("rests"))
        .cte("job")
    )


def next_in_lane(job: CTE) -> CTE:
    """Wake the head of each lane that the ended jobs leave free, unless it is behind one that keeps its turn.

    SKIP LOCKED: a waiter that somebody is changing is woken by the dispatcher's sweep instead.
    """
    lanes = select(job.c.lane).where(job.c.lane.is_not(None)).distinct().subquery("lanes")
    head = (
        select(jobs.c.id, jobs.c.lane, jobs.c.priority)
        .where(jobs.c.lane == lanes.c.lane, jobs.c.waits, jobs.c.id.not_in(select(job.c.id)))
        .order_by(jobs.c.priority, jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .lateral("head")
    )
    ahead = jobs.alias("ahead")
    keeps = and_(ahead.c.lane == head.c.lane, ahead.c.keeps_turn)
    before = tuple_(ahead.c.priority, ahead.c.id) < tuple_(head.c.priority, head.c.id)
    gone = select(job.c.id).where(~job.c.rests)
    # Asked of the head alone: as EXISTS it would be joined, which reads the lane whole
    resting = select(ahead.c.id).where(keeps, before, ahead.c.id.not_in(gone)).order_by(ahead.c.priority, ahead.c.id)
    free = resting.limit(1).scalar_subquery().is_(None)
    # A CTE, asked once: as a subquery some plans ask it again after each row that the update changed, and since it
    # passes over changed rows it then yields the next waiter, and the next.
    heads = select(head.c.id).select_from(lanes.join(head, literal(True))).where(free).cte("heads")
    return (
        update_(jobs)
        .where(among(jobs.c.id, heads.c.id), jobs.c.waits)
        .values(waits=False, dispatched_at=null())
        .returning(jobs.c.id)
        .cte("woken")
    )
