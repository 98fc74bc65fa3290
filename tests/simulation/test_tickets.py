"""Tickets in any order of acts, live and ghostly, on a real database beside a model of a dozen lines.

Time is moved by hand: a lease runs out and an expiry passes when a rule says so. After each act the rows are what the
model says; at the end the checker of the chaos runs reads the whole ledger.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule, run_state_machine_as_test

from models.kernel.errors import Conflict, IllegalTransition, LeaseLost
from models.kernel.jobs import Held
from models.kernel.session import statement
from models.kernel.transition import LaneBusy
from models.tickets import estop, operations
from models.tickets.operations import Attempt, Outcome
from models.tickets.states import TERMINAL
from tests.chaos.check_kernel import check_leases, check_ledgers
from tests.chaos.conftest import Stage, stage  # noqa: F401 - a fixture
from tests.tasks.owed import change, rows

ROBOTS = ("r1", "r2")
SOME = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@dataclass
class Ticket:
    """What the model knows of one ticket."""

    id: str
    command: str
    target: str
    state: str = "pending"
    execution: int = 0
    live: Attempt | None = None
    attempts: list[Attempt] = field(default_factory=list)

    def end(self, state: str) -> None:
        self.state, self.live = state, None


class Life(RuleBasedStateMachine):
    """Two robots, any number of tickets, workers that may be dead without knowing it."""

    tickets = Bundle("tickets")

    def __init__(self, stage: Stage, number: list[int]) -> None:  # noqa: F811
        super().__init__()
        number[0] += 1
        self.number = number[0]
        self.stage = stage
        self.known: list[Ticket] = []
        self.stopped: set[str] = set()
        self.caller = stage.caller(f"life-{self.number}")

    def robot(self, name: str) -> str:
        return f"{name}-{self.number}"

    @rule(target=tickets, command=st.sampled_from(["drive", "scan"]), robot=st.sampled_from(ROBOTS))
    def create(self, command: str, robot: str) -> Ticket:
        target = self.robot(robot)
        params = {"speed": 1.0, "duration_seconds": 1} if command == "drive" else {}
        ticket = Ticket(self.stage.create(command=command, params=params, target=target), command, target)
        self.known.append(ticket)
        self.compare()
        return ticket

    @rule(ticket=tickets, force=st.booleans())
    def accept(self, ticket: Ticket, force: bool) -> None:
        may = ticket.state == "pending" or (force and ticket.state in TERMINAL)
        held_back = may and ticket.target in self.stopped
        try:
            with statement() as connection:
                operations.accept_execution(
                    connection, ticket.id, expires_in_seconds=600, force=force, caller=self.caller
                )
        except IllegalTransition:
            assert not may
        except Conflict:
            assert held_back
        else:
            assert may
            assert not held_back
            ticket.state, ticket.execution = "queued", ticket.execution + 1
        self.compare()

    @rule(ticket=tickets)
    def take(self, ticket: Ticket) -> None:
        jobs = rows("SELECT id FROM jobs WHERE subject_id = :id", id=ticket.id)
        assert len(jobs) == (ticket.state in ("queued", "executing"))
        if not jobs:
            return
        others = [t for t in self.known if t.live and t.command == "drive" and t.target == ticket.target]
        owed = ticket.command == "drive" and self.owed(ticket.target)
        is_busy = ticket.command == "drive" and bool(others) and ticket.state == "queued" and not owed
        try:
            with statement() as connection:
                attempt = operations.take_ticket(connection, jobs[0]["id"], "worker:test")
        except LaneBusy:
            assert is_busy
        else:
            assert not is_busy
            assert (attempt is not None) == (ticket.state == "queued" and not owed)
            if attempt is not None:
                assert all(attempt.fence > other.fence for t in self.known for other in t.attempts)
                ticket.state, ticket.live = "executing", attempt
                ticket.attempts.append(attempt)
        self.compare()

    @rule(ticket=tickets, which=st.integers(0, 3), to=st.sampled_from(["completed", "failed"]))
    def settle(self, ticket: Ticket, which: int, to: str) -> None:
        """By whoever holds the lease, or by a ghost of an earlier attempt."""
        if not ticket.attempts:
            return
        attempt = ticket.attempts[-1 - which % len(ticket.attempts)]
        outcome = Outcome(to, result={}) if to == "completed" else Outcome(to, error="e", error_code="lease_lost")
        try:
            with statement() as connection:
                operations.settle_ticket(connection, attempt, outcome, "worker:test")
        except LeaseLost:
            assert attempt is not ticket.live
        else:
            assert attempt is ticket.live
            ticket.end(to)
        self.compare()

    @rule(ticket=tickets, which=st.integers(0, 3))
    def give_back(self, ticket: Ticket, which: int) -> None:
        if not ticket.attempts:
            return
        attempt = ticket.attempts[-1 - which % len(ticket.attempts)]
        with statement() as connection:
            given = operations.release_ticket(connection, attempt, "worker:test")
        assert given == (attempt is ticket.live)
        if given:
            ticket.state, ticket.live = "queued", None
        self.compare()

    @rule(ticket=tickets, which=st.integers(0, 3))
    def lose(self, ticket: Ticket, which: int) -> None:
        """The reaper ends the attempt that it saw, which may have ended meanwhile."""
        if not ticket.attempts:
            return
        attempt = ticket.attempts[-1 - which % len(ticket.attempts)]
        with statement() as connection:
            lost = operations.lose_tickets(connection, [Held(attempt.job_id, ticket.id, attempt.fence, 1, 1)])
        assert lost == (attempt is ticket.live)
        if lost:
            ticket.end("failed")
        self.compare()

    @rule(ticket=tickets)
    def expire(self, ticket: Ticket) -> None:
        """Its time to start is over; one that has started goes on."""
        held = [Held(row["id"], ticket.id, None, 0, 1) for row in self.jobs(ticket)]
        with statement() as connection:
            expired = operations.expire_tickets(connection, held) if held else 0
        assert expired == (ticket.state == "queued")
        if expired:
            ticket.end("failed")
        self.compare()

    @rule(ticket=tickets)
    def cancel(self, ticket: Ticket) -> None:
        try:
            with statement() as connection:
                operations.cancel_ticket(connection, ticket.id, self.caller)
        except IllegalTransition:
            assert ticket.state in TERMINAL
        else:
            ticket.end("cancelled")
        self.compare()

    @rule(robot=st.sampled_from(ROBOTS))
    def engage(self, robot: str) -> None:
        target = self.robot(robot)
        with statement() as connection:
            assert estop.engage_estop(connection, target, "test", self.caller) == (target not in self.stopped)
            estop.sweep_tickets(connection, "test")
        self.stopped.add(target)
        for ticket in self.known:
            if ticket.target == target and ticket.state in ("queued", "executing"):
                ticket.end("failed")
        self.compare()

    @rule(robot=st.sampled_from(ROBOTS))
    def release(self, robot: str) -> None:
        """Refused while the robot has not taken its stop."""
        target = self.robot(robot)
        owed = target in self.stopped and self.owed(target)
        try:
            with statement() as connection:
                released, _ = estop.release_estop(connection, target, "test", self.caller)
        except Conflict:
            assert owed
            return
        assert not owed
        assert released == (target in self.stopped)
        self.stopped.discard(target)
        self.compare()

    @rule(robot=st.sampled_from(ROBOTS))
    def take_stop(self, robot: str) -> None:
        """The guardian delivers what the robot is owed."""
        change("UPDATE stop_orders SET done_at = clock_timestamp() WHERE target = :t", t=self.robot(robot))

    def owed(self, target: str) -> bool:
        return bool(rows("SELECT FROM stop_orders WHERE done_at IS NULL AND target = :t", t=target))

    def jobs(self, ticket: Ticket) -> list[dict[str, Any]]:
        return rows("SELECT id FROM jobs WHERE subject_id = :id", id=ticket.id)

    def compare(self) -> None:
        """The rows are what the model says, and each live ticket owes exactly one job under its live fence."""
        ids = [ticket.id for ticket in self.known]
        question = """
            SELECT tickets.id, state, execution, jobs.fence, jobs.id IS NOT NULL AS owes
              FROM tickets LEFT JOIN jobs ON jobs.subject_id = tickets.id WHERE tickets.id = ANY(:ids)
        """
        found = {row["id"]: row for row in rows(question, ids=ids)}
        for ticket in self.known:
            row = found[ticket.id]
            fence = ticket.live.fence if ticket.live else None
            owes = ticket.state in ("queued", "executing")
            said = (row["state"], row["execution"], row["fence"], row["owes"])
            assert said == (ticket.state, ticket.execution, fence, owes)

    def teardown(self) -> None:
        for target in list(self.stopped):
            with statement() as connection:
                estop.release_estop(connection, target, "over", self.caller, force=True)


def test_any_order_of_acts_keeps_rows_jobs_and_fences_together(stage: Stage) -> None:  # noqa: F811
    run_state_machine_as_test(functools.partial(Life, stage, [0]), settings=SOME)
    evidence = stage.evidence()
    assert [*check_ledgers(evidence), *check_leases(evidence)] == []
    assert all(len(ends) == 1 or execution == 0 for (_, execution), ends in evidence.outcomes.items())
    assert evidence.outcomes
