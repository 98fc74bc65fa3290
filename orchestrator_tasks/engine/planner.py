"""The planner as a duty: within a second it plans what is due, and what becomes due."""

from __future__ import annotations

import logging

from models.engine import transitions
from models.engine.planning import Pass, plan_runs
from models.kernel import clock
from models.kernel.errors import Conflict
from orchestrator_tasks import hints
from orchestrator_tasks.engine.publish import watch_outputs
from orchestrator_tasks.keeper import keeper

log = logging.getLogger(__name__)

WAITS_SECONDS = 0.8
"""How long it stays for a tick that is about to be due, so that ticks are planned when they are, not a second later."""
LONGEST_SECONDS = 8.0
"""Less than the bound after which another planner takes over."""


def plan() -> None:
    """Plan until nothing is due, and nothing will be within the second."""
    try:
        watch_outputs()
        plan_while_due()
    except Conflict as error:
        log.warning("the planner comes again: somebody held on for too long", extra={"error": error.message})


def plan_while_due() -> None:
    began = clock.monotonic()
    while not keeper.is_shutting_down():
        done = plan_runs()
        report(done)
        passed = clock.monotonic() - began
        if done.more and passed < LONGEST_SECONDS:
            continue
        wait = seconds_until_due(done)
        if wait is None or passed + wait > WAITS_SECONDS:
            return
        clock.pause(wait)


def seconds_until_due(done: Pass) -> float | None:
    """A tick is due once its millisecond is over."""
    return max(0, done.next_tick_ms + 1 - done.now_ms) / 1000 if done.next_tick_ms else None


def report(done: Pass) -> None:
    if done.runs:
        hints.owed(transitions.QUEUE)
    if done.ticks or done.missed:
        counts = {"ticks": done.ticks, "runs": done.runs, "skipped": done.skipped, "missed": done.missed}
        level = logging.WARNING if done.missed else logging.INFO if done.runs else logging.DEBUG
        log.log(level, "orchestrator.scheduler", extra={**counts, "lag_ms": done.lag_ms})
