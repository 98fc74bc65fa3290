"""Taking, looking at and settling several tickets in one statement each.

What threads of this process ask for one at a time goes together too, when they ask at the same moment (`company`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from models.kernel import clock
from models.kernel.company import Company
from models.kernel.errors import LeaseLost
from models.kernel.session import statement
from models.tickets import operations, transitions
from models.tickets.operations import Attempt, Outcome
from models.tickets.queries import Clearance, find_clearances
from orchestrator_tasks import hints
from orchestrator_tasks.kernel.worker import worker

End = tuple[Attempt, Outcome]


class Sight(NamedTuple):
    """What was seen of an attempt; None once its lease is gone. `at`: monotonic seconds when it was asked for."""

    at: float
    clearance: Clearance | None


def take(job_ids: Sequence[int]) -> list[Attempt | None]:
    with statement() as connection:
        taken = operations.take_tickets(connection, sorted(set(job_ids)), worker())
    return [taken.pop(job_id, None) for job_id in job_ids]  # of two that want the same, one gets it


def look(attempts: Sequence[Attempt]) -> list[Sight]:
    with statement() as connection:
        at = clock.monotonic()
        found = find_clearances(connection, [(each.job_id, each.fence, each.target) for each in attempts])
    return [Sight(at, found.get(attempt.job_id)) for attempt in attempts]


def settle(ends: Sequence[End]) -> list[Mapping[str, Any] | LeaseLost]:
    with statement() as connection:
        settled = operations.settle_tickets(connection, ends, worker())
    leaves_lane = any(attempt.command in transitions.MOVING for attempt, _ in ends)
    hints.ended(*(attempt.ticket_id for attempt, _ in ends), queue=transitions.QUEUE if leaves_lane else None)
    return settled


TAKES = Company(take)
LOOKS = Company(look)
SETTLES = Company(settle)
