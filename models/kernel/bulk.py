"""Operations over many subjects: asked for at once, carried out chunk by chunk, followed by their counts.

The kernel knows no domain: each registers its acts, one for each thing that may be done to
many of its subjects. An operation names its subjects by ids or by a filter. A worker takes it
as any job and advances it; each chunk is one transaction that holds what the domain did, the
operation's new position and its counts, under the fence. So a worker that dies loses no chunk
and doubles none: whoever takes the operation next goes on from the position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, func, select, tuple_, update

from models.kernel import bulk_moves
from models.kernel.backoff import backoff_seconds
from models.kernel.bulk_acts import REGISTRY, Act, Order, Outcome, Page
from models.kernel.bulk_moves import OPERATION, bulk_operations
from models.kernel.clients import Caller
from models.kernel.errors import Conflict, IllegalTransition, LeaseLost, NotFound
from models.kernel.ids import new_uuid
from models.kernel.jobs import Held, jobs
from models.kernel.transition import Rows

CHUNK = 250  # subjects in one transaction: what it locks, a stop has to wait for
MOST_EXAMPLES = 20
BASE_SECONDS, CAP_SECONDS = 1.0, 30.0
DEFAULT_EXPIRY_SECONDS = 3600.0
CONTENDED_TRIES = 5

LOST = "The worker fell silent; what it had committed stands"
EXPIRED = "The operation was not done in time; what it had done stands"

FACTS = [column for column in bulk_operations.c if column.name != "ids"]
Row = Mapping[str, Any]
Position = tuple[datetime, str]


class OperationExpired(Conflict):
    """The time of an operation is over."""

    code = "expired"


@dataclass(frozen=True)
class Run:
    """One leased try at one operation."""

    job_id: int
    fence: int
    operation_id: str
    attempt: int
    max_attempts: int
    timeout_seconds: float


@dataclass(frozen=True)
class Progress:
    """What one chunk came to; `over` when there was nothing left to do."""

    over: bool
    ended: Sequence[str] = ()


def ask_operation(
    connection: Connection,
    act: str,
    caller: Caller,
    *,
    ids: Sequence[str] | None = None,
    filter: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    expires_in_seconds: float = DEFAULT_EXPIRY_SECONDS,
) -> Row:
    """Ask for an act on distinct ids, or on all that a filter matches; a worker owes it from now on.

    What is not done `expires_in_seconds` from now is not done at all.
    """
    row = {
        "id": new_uuid(),
        "act": act,
        "ids": ids,
        "filter": filter,
        "total": None if ids is None else len(ids),
        "options": options or {},
        "expires_in_seconds": expires_in_seconds,
        "tenant": caller.tenant,
        "created_by": caller.name,
    }
    return bulk_moves.ASK(connection, [row], actor=caller.name, correlation_id=caller.correlation_id)[0]


def take_operation(connection: Connection, job_id: int, worker: str) -> Run | None:
    """Lease the job and start, or go on with, its operation; None when it is no longer to be had."""
    rows = bulk_moves.TAKE(connection, [{"job_id": job_id}], actor=worker)
    if not rows:
        return None
    row = rows[0]
    return Run(row["job_id"], row["fence"], row["id"], row["attempt"], row["max_attempts"], row["job_timeout_seconds"])


def advance_operation(connection: Connection, run: Run) -> Progress:
    """Carry the next chunk out, in the caller's transaction.

    The job's row is shared for its length: whoever wants to end the lease waits for the commit, a renewal does not.
    Raises LeaseLost when the run no longer owns the operation, OperationExpired when its time is over.
    """
    operation = find_held(connection, run)
    if operation is None:
        raise LeaseLost(f"The run under fence {run.fence} no longer owns {run.operation_id}")
    if operation["seconds_left"] <= 0:
        raise OperationExpired(EXPIRED)
    act = REGISTRY[operation["act"]]
    page = next_page(connection, act, operation)
    if not page.ids:
        return Progress(over=True)
    outcome = act.carry_out(connection, page.ids, order_of(operation))
    mine = bulk_operations.c.id == run.operation_id
    connection.execute(update(bulk_operations).where(mine).values(counted(operation, page, outcome)))
    return Progress(over=False, ended=outcome.ended)


def find_held(connection: Connection, run: Run) -> Row | None:
    """The operation, if the run still owns it, which then nobody else can take until the transaction ends."""
    passed = func.extract("epoch", func.clock_timestamp() - bulk_operations.c.asked_at)
    left = (bulk_operations.c.expires_in_seconds - passed).label("seconds_left")
    held = (
        select(bulk_operations, left)
        .join(jobs, jobs.c.subject_id == bulk_operations.c.id)
        .where(jobs.c.id == run.job_id, jobs.c.fence == run.fence, bulk_operations.c.id == run.operation_id)
        .with_for_update(of=jobs, read=True, key_share=True)
    )
    row = connection.execute(held).mappings().one_or_none()
    return None if row is None else dict(row)


def next_page(connection: Connection, act: Act, operation: Row) -> Page:
    position = operation["position"]
    if operation["ids"] is None:
        return act.list_next(connection, operation["filter"], operation["created_at"], position, CHUNK)
    begin = position or 0
    return Page(operation["ids"][begin : begin + CHUNK], begin + CHUNK)


def order_of(operation: Row) -> Order:
    caller = Caller(operation["created_by"], operation["tenant"], frozenset(), operation["correlation_id"])
    named, left = operation["ids"] is not None, float(operation["seconds_left"])
    return Order(operation["options"], named, left, operation["asked_at"], caller)


def counted(operation: Row, page: Page, outcome: Outcome) -> dict[str, Any]:
    """The operation's columns after a chunk."""
    refused: Counter[str] = Counter(operation["refused"])
    refused.update(outcome.refused.values())
    examples = [{"id": name, "code": code} for name, code in outcome.refused.items()]
    return {
        "position": page.position,
        "matched": operation["matched"] + outcome.done + len(outcome.refused),
        "done": operation["done"] + outcome.done,
        "refused": dict(refused),
        "examples": [*operation["examples"], *examples][:MOST_EXAMPLES],
        "updated_at": func.clock_timestamp(),
    }


def settle_operation(connection: Connection, run: Run, worker: str, error: Conflict | None = None) -> None:
    """Record the end: completed, or failed by an error. Raises LeaseLost."""
    end = {"to": bulk_moves.FAILED, "error": error.message, "error_code": error.code} if error else {"to": "completed"}
    held = {"job_id": run.job_id, "fence": run.fence}
    if not bulk_moves.SETTLE(connection, [{**held, **end}], actor=worker):
        raise LeaseLost(f"The run under fence {run.fence} no longer owns {run.operation_id}")


def release_operation(connection: Connection, run: Run, worker: str) -> bool:
    """Give the operation back as it stands; it costs no attempt. False when the lease was lost."""
    return bool(bulk_moves.RETURN(connection, [{"job_id": run.job_id, "fence": run.fence}], actor=worker))


def retry_operation(connection: Connection, run: Run, worker: str, error: Conflict) -> None:
    """Let another attempt go on from the position, after a pause; the last one's failure is the operation's.

    Raises LeaseLost.
    """
    if run.attempt >= run.max_attempts:
        return settle_operation(connection, run, worker, error)
    pause = backoff_seconds(run.attempt, BASE_SECONDS, CAP_SECONDS)
    row = {"job_id": run.job_id, "fence": run.fence, "delay_seconds": pause}
    if not bulk_moves.RETRY(connection, [row], actor=worker, reason=error.code):
        raise LeaseLost(f"The run under fence {run.fence} no longer owns {run.operation_id}")
    return None


def lose_operations(connection: Connection, held: Sequence[Held]) -> int:
    """The workers of these fell silent: others go on, unless it was the last attempt."""
    again = [job for job in held if job.attempt < job.max_attempts]
    over = [job for job in held if job.attempt >= job.max_attempts]
    verdict = {"to": bulk_moves.FAILED, "error": LOST, "error_code": "worker_lost"}
    tries = [
        {"job_id": j.id, "fence": j.fence, "delay_seconds": backoff_seconds(j.attempt, BASE_SECONDS, CAP_SECONDS)}
        for j in again
    ]
    ends = [{"job_id": job.id, "fence": job.fence, **verdict} for job in over]
    tried = bulk_moves.RETRY(connection, tries, actor="reaper", reason="worker_lost") if tries else []
    ended = bulk_moves.SETTLE(connection, ends, actor="reaper") if ends else []
    return len(tried) + len(ended)


def expire_operations(connection: Connection, held: Sequence[Held]) -> int:
    """Nobody could go on with these in time."""
    rows = [{"job_id": job.id, "error": EXPIRED, "error_code": OperationExpired.code} for job in held]
    return len(bulk_moves.EXPIRE(connection, rows, actor="reaper"))


def cancel_operation(connection: Connection, operation_id: str, caller: Caller) -> Row:
    """End an operation where it stands; what it has done stays done.

    Raises NotFound; IllegalTransition when it has ended; Conflict when it keeps changing meanwhile.
    """
    row = {"id": operation_id, "error": f"Cancelled by {caller.name}", "error_code": "cancelled"}
    for _ in range(CONTENDED_TRIES):
        moved = bulk_moves.CANCEL(connection, [row], actor=caller.name, correlation_id=caller.correlation_id)
        if moved:
            return moved[0]
        state = get_operation(connection, operation_id)["state"]
        if state in OPERATION.terminal:
            raise IllegalTransition(f"The operation is already {state}", state=state, code="operation_terminal")
    raise Conflict("The operation keeps changing; try again", code="contended")


def resume_operations(connection: Connection, operation_ids: Sequence[str], order: Order) -> Mapping[str, str]:
    """Let failed operations go on from where they stood; answers why the others do not."""
    rows = [{"id": operation_id} for operation_id in operation_ids]
    who = order.caller
    moved: Rows = bulk_moves.RESUME(connection, rows, actor=who.name, correlation_id=who.correlation_id)
    return dict.fromkeys(set(operation_ids) - {row["id"] for row in moved}, "operation_not_failed")


def get_operation(connection: Connection, operation_id: str) -> RowMapping:
    """One operation. Raises NotFound."""
    query = select(*FACTS).where(bulk_operations.c.id == operation_id)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound(f"Operation '{operation_id}' not found", code="operation_not_found")
    return row


def list_operations(
    connection: Connection, *, state: str | None, after: Position | None, limit: int
) -> Sequence[RowMapping]:
    """Operations newest first. `after` is the (created_at, id) of the last one seen."""
    query = select(*FACTS)
    if state is not None:
        query = query.where(bulk_operations.c.state == state)
    if after is not None:
        query = query.where(tuple_(bulk_operations.c.created_at, bulk_operations.c.id) < after)
    newest_first = query.order_by(bulk_operations.c.created_at.desc(), bulk_operations.c.id.desc())
    return connection.execute(newest_first.limit(limit)).mappings().all()
