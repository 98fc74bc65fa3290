"""Taking, looking at, settling and giving back several runs in one statement each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.engine import control, operations
from models.engine.canonical import NotSerialisable
from models.engine.config import HYSTERESIS, Config
from models.engine.delays import retry_delays
from models.engine.inputs import find_snapshots
from models.engine.operations import NO_ENGINE, Attempt, End, EngineName
from models.engine.queries import find_states
from models.engine.tables import MISSING_INPUTS, SNAPSHOT_FAILURE
from models.kernel.errors import LeaseLost
from models.kernel.session import statement, transaction
from orchestrator_tasks.kernel.worker import worker

FINAL = frozenset({MISSING_INPUTS, SNAPSHOT_FAILURE})
"""What another attempt would only find again."""


@dataclass(frozen=True)
class Given:
    """What an attempt starts from: its configuration, the selected record, the state before the run."""

    config: Config
    snapshot: tuple[int, str] | None
    state: str | None


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: with what the engine answered, or with an error."""

    result: Mapping[str, Any] | None = None
    error_kind: str = ""
    error_detail: str = ""
    snapshot_ingest_seq: int | None = None
    elapsed_ms: float | None = None
    engine: EngineName = NO_ENGINE

    @property
    def facts(self) -> dict[str, Any]:
        names = ("snapshot_ingest_seq", "elapsed_ms", "engine")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Made:
    """An attempt that was made and is not recorded yet."""

    attempt: Attempt
    config: Config
    outcome: Outcome

    @property
    def retry_delay_ms(self) -> int | None:
        """How long the run waits for its next attempt; None when this was the last."""
        delays = retry_delays(self.config.engine_retry)
        is_last = self.outcome.error_kind in FINAL or self.attempt.number >= len(delays)
        return None if self.outcome.result is not None or is_last else delays[self.attempt.number - 1]


def take(job_ids: Sequence[int]) -> list[Attempt | None]:
    """Raises LaneBusy when two of them are of one symbol: they go one after the other."""
    with statement() as connection:
        taken = operations.take_runs(connection, sorted(set(job_ids)), worker())
    return [taken.pop(job_id, None) for job_id in job_ids]  # of two that want the same, one gets it


def look(attempts: Sequence[Attempt]) -> list[Given]:
    """The state before a run cannot change any more: whoever has taken it has its symbol's lane."""
    runs = [attempt.run for attempt in attempts]
    with statement() as connection:
        configs = [control.get_version(connection, run["config_version"]) for run in runs]
        snapshots = find_snapshots(connection, runs)
        restored = [run for run in runs if run["engine_mode"] == HYSTERESIS and run["id"] in snapshots]
        states = find_states(connection, restored) if restored else {}
    whole = zip(configs, (run["id"] for run in runs), strict=True)
    return [Given(config, snapshots.get(run_id), states.get(run_id)) for config, run_id in whole]


def settle(made: Sequence[Made]) -> list[Mapping[str, Any] | LeaseLost | None]:
    """Record how attempts ended; None for one that is to be recorded by itself: it is tried again, or has no JSON."""
    ends = [end_of(each) for each in made]
    rows = [(each.attempt, end) for each, end in zip(made, ends, strict=True) if end is not None]
    if not rows:
        return [None] * len(made)
    door = transaction if any(end.decision is not None for _, end in rows) else statement
    with door() as connection:
        settled = iter(operations.settle_runs(connection, rows, worker()))
    return [None if end is None else next(settled) for end in ends]


def end_of(made: Made) -> End | None:
    outcome = made.outcome
    if outcome.result is None:
        if made.retry_delay_ms is not None:
            return None
        return operations.failing(outcome.error_kind, outcome.error_detail, **outcome.facts)
    try:
        return operations.completion(outcome.result, **outcome.facts)
    except NotSerialisable:
        return None


def give_back(attempts: Sequence[Attempt]) -> None:
    """Attempts that were never begun: they do not count."""
    with statement() as connection:
        operations.release_runs(connection, attempts, worker())
