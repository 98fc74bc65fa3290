"""The verdict on a run: every promise looked for in its evidence. Pure functions over plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.chaos import check_kernel, check_log, check_motions, check_runs, check_tickets
from tests.chaos.evidence import Evidence, Violation

Check = Callable[[Evidence], Iterator[Violation]]

CHECKS: tuple[Check, ...] = (
    check_tickets.check_creates,
    check_tickets.check_acceptances,
    check_tickets.check_outcomes,
    check_tickets.check_answers,
    check_tickets.check_keys,
    check_tickets.check_settled,
    check_tickets.check_counts,
    check_tickets.check_aging,
    check_tickets.check_evidence_of_ghosts,
    check_motions.check_motions_are_owed,
    check_motions.check_motions_come_in_time,
    check_motions.check_robots_do_one_thing,
    check_motions.check_completed_drives,
    check_motions.check_estops,
    check_motions.check_everything_came_to_rest,
    check_kernel.check_ledgers,
    check_kernel.check_leases,
    check_kernel.check_schedules,
    check_kernel.check_readers,
    check_log.check_numbers,
    check_log.check_batches,
    check_log.check_nothing_else,
    check_log.check_pushes,
    check_runs.check_plan,
    check_runs.check_runs_follow_from_the_log,
    check_runs.check_ends,
    check_runs.check_turns,
    check_runs.check_outputs,
    check_runs.check_listeners,
    check_runs.check_stream,
    check_runs.check_replay,
)


def check(evidence: Evidence) -> list[Violation]:
    """Every promise that the evidence shows broken; none means that the run held."""
    return [violation for one in CHECKS for violation in one(evidence)]
