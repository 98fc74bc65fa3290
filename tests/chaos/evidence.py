"""What the checker looks at: the history of a run beside the rows that it left, as plain values.

Rows are the dictionaries of `recorder.QUESTIONS`; times are seconds since the epoch. Indexes over them are built once.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from models.tickets import events
from tests.chaos.history import Call

Row = dict[str, Any]
Execution = tuple[str, int]


class Violation(NamedTuple):
    """A promise that was broken, and what shows it."""

    promise: str
    shown_by: str


@dataclass
class Heard:
    """What one reader of events heard, in the order in which it came, over all its connections."""

    name: str
    target: str | None = None
    events: list[Row] = field(default_factory=list)
    connections: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Evidence:
    """One run. `settled_after` is how long after the last fault everything accepted had ended; None: it never did.

    `listeners` are the readers of outputs, whose events are texts; `pushed` are the numbers in the stream of outputs.
    `replayed` is what the replay of everything said.
    """

    calls: list[Call] = field(default_factory=list)
    readers: list[Heard] = field(default_factory=list)
    ledger: list[Row] = field(default_factory=list)
    tickets: list[Row] = field(default_factory=list)
    motions: list[Row] = field(default_factory=list)
    jobs: list[Row] = field(default_factory=list)
    stops: list[Row] = field(default_factory=list)
    schedules: list[Row] = field(default_factory=list)
    leases: list[Row] = field(default_factory=list)
    fires: list[Row] = field(default_factory=list)
    latches: list[Row] = field(default_factory=list)
    listeners: list[Heard] = field(default_factory=list)
    records: list[Row] = field(default_factory=list)
    appends: list[Row] = field(default_factory=list)
    totals: list[Row] = field(default_factory=list)
    runs: list[Row] = field(default_factory=list)
    outputs: list[Row] = field(default_factory=list)
    told_outputs: list[Row] = field(default_factory=list)
    cadences: list[Row] = field(default_factory=list)
    engine: list[Row] = field(default_factory=list)
    pushed: list[int] | None = None
    replayed: Row | None = None
    counted: dict[str, int] | None = None
    now: float = 0.0
    settled_after: float | None = 0.0
    low_within: float | None = None

    @functools.cached_property
    def ticket(self) -> dict[str, Row]:
        return {row["id"]: row for row in self.tickets}

    @functools.cached_property
    def of_tickets(self) -> list[Row]:
        return [row for row in self.ledger if row["subject_kind"] == "ticket"]

    @functools.cached_property
    def queued(self) -> dict[Execution, Row]:
        """When each execution was accepted."""
        return {pair(row): row for row in self.of_tickets if row["topic"] == events.QUEUED}

    @functools.cached_property
    def outcomes(self) -> dict[Execution, list[Row]]:
        """How each execution ended; execution 0 is a ticket that was cancelled before it was set going."""
        return grouped((row for row in self.of_tickets if row["topic"] in events.OUTCOME_TOPICS), pair)

    @functools.cached_property
    def started(self) -> dict[str, list[Row]]:
        """The starts of each ticket, in order; an execution that was given back starts again."""
        return grouped(
            (row for row in self.of_tickets if row["topic"] == events.STARTED), lambda row: row["subject_id"]
        )

    @functools.cached_property
    def taken(self) -> dict[str, list[Row]]:
        """The leases of each ticket's jobs, in order."""
        mine = (row for row in self.leases if row["act"] == "taken" and row["subject_kind"] == "ticket")
        return grouped(mine, lambda row: row["subject_id"])

    @functools.cached_property
    def start_of_fence(self) -> dict[int, Row]:
        """The start under each fence: the k-th lease of a ticket is its k-th start, for both are one statement."""
        found = {}
        for ticket_id, leases in self.taken.items():
            for lease, start in zip(leases, self.started.get(ticket_id, []), strict=False):
                found[lease["fence"]] = start
        return found

    @functools.cached_property
    def execution_of(self) -> dict[int, Execution]:
        """Which execution a motion belonged to, by its fence."""
        return {fence: pair(start) for fence, start in self.start_of_fence.items()}

    @functools.cached_property
    def of_runs(self) -> list[Row]:
        return [row for row in self.ledger if row["subject_kind"] == "engine_run"]

    @functools.cached_property
    def outputs_of(self) -> dict[str, list[Row]]:
        """The outputs of each run, in order."""
        return grouped(self.outputs, lambda row: row["run_id"])

    @functools.cached_property
    def requests(self) -> dict[str, Call]:
        return {call.correlation_id: call for call in self.calls}

    def calls_of(self, *kinds: str) -> list[Call]:
        return [call for call in self.calls if call.kind in kinds]


def pair(row: Row) -> Execution:
    return row["subject_id"], int(row["body"].get("execution", 0))


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)
