"""What may be done to a ticket, where the kernel's own tests do not reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Connection

from models.kernel.clients import Caller
from models.kernel.dead_letters import list_letters
from models.kernel.errors import IllegalTransition, LeaseLost
from models.kernel.ledger import list_history
from models.kernel.session import statement
from models.tickets import operations, queries, transitions
from models.tickets.operations import Attempt, Outcome
from models.tickets.stops import list_due_stops

pytestmark = pytest.mark.usefixtures("database")

DRIVE = {
    "command": "drive",
    "params": {"speed": 1, "duration_seconds": 5},
    "priority": "normal",
    "timeout_seconds": 300,
    "metadata": {},
    "target": "default",
}
DONE = Outcome("completed", result={"executed": True})


def born(connection: Connection, caller: Caller, **changed: Any) -> str:
    return str(operations.create_tickets(connection, [DRIVE | changed], caller)[0]["id"])


def accepted(connection: Connection, ticket_id: str, caller: Caller, *, force: bool = False) -> None:
    operations.accept_execution(connection, ticket_id, expires_in_seconds=300, force=force, caller=caller)


def taken(connection: Connection, ticket_id: str) -> Attempt:
    job = connection.exec_driver_sql("SELECT id FROM jobs WHERE subject_id = %s", (ticket_id,)).scalar_one()
    attempt = operations.take_ticket(connection, job, "worker")
    assert attempt is not None
    return attempt


def driving(connection: Connection, caller: Caller) -> Attempt:
    ticket_id = born(connection, caller)
    accepted(connection, ticket_id, caller)
    return taken(connection, ticket_id)


def test_a_forced_run_that_meets_the_end_of_the_last_one_goes_on(
    writer: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    with statement() as connection:
        attempt = driving(connection, writer)
        real = transitions.ACCEPT_FORCED

        class SettledMeanwhile:
            sources = real.sources
            calls = 0

            def __call__(self, *arguments: Any, **named: Any) -> Sequence[Any]:
                moved = real(*arguments, **named)
                if not self.calls:
                    operations.settle_ticket(connection, attempt, DONE, "worker")
                self.calls += 1
                return moved

        monkeypatch.setattr(transitions, "ACCEPT_FORCED", SettledMeanwhile())
        accepted(connection, attempt.ticket_id, writer, force=True)
        assert queries.get_ticket(connection, attempt.ticket_id)["execution"] == 2


def test_a_cancelled_drive_orders_a_stop_that_prevails_over_it(writer: Caller) -> None:
    with statement() as connection:
        attempt = driving(connection, writer)
        assert operations.cancel_ticket(connection, attempt.ticket_id, writer)["state"] == "cancelled"
        (stop,) = list_due_stops(connection)
        assert (stop["target"], stop["reason"]) == ("default", "cancelled")
        assert stop["fence"] > attempt.fence
        with pytest.raises(LeaseLost):
            operations.settle_ticket(connection, attempt, DONE, "worker")
        assert list_history(connection, "ticket", attempt.ticket_id)[-1]["topic"] == "late_outcome"
        assert queries.get_ticket(connection, attempt.ticket_id)["state"] == "cancelled"


@pytest.mark.parametrize("command", ["scan", "stop", "brake"])
def test_what_does_not_move_is_cancelled_without_a_stop(writer: Caller, command: str) -> None:
    with statement() as connection:
        ticket_id = born(connection, writer, command=command)
        accepted(connection, ticket_id, writer)
        taken(connection, ticket_id)
        operations.cancel_ticket(connection, ticket_id, writer)
        assert list_due_stops(connection) == []


def test_a_pending_ticket_is_cancelled_and_stays_so(writer: Caller) -> None:
    with statement() as connection:
        ticket_id = born(connection, writer)
        operations.cancel_ticket(connection, ticket_id, writer)
        with pytest.raises(IllegalTransition, match="terminal state: cancelled"):
            operations.cancel_ticket(connection, ticket_id, writer)
        with pytest.raises(IllegalTransition, match="Use force=true"):
            accepted(connection, ticket_id, writer)


def test_a_refusal_for_safety_leaves_no_dead_letter_and_an_unknown_outcome_does(writer: Caller) -> None:
    with statement() as connection:
        refused = driving(connection, writer)
        unsafe = Outcome("failed", error="too fast", error_code=transitions.REFUSED)
        operations.settle_ticket(connection, refused, unsafe, "worker")
        assert list_letters(connection) == []
        unknown = driving(connection, writer)
        lost = Outcome("failed", error="nobody knows", error_code=transitions.OUTCOME_UNKNOWN)
        operations.settle_ticket(connection, unknown, lost, "worker")
        (letter,) = list_letters(connection, code="outcome_unknown")
        assert letter["subject_id"] == unknown.ticket_id


def test_a_released_attempt_is_taken_again_without_counting(writer: Caller) -> None:
    with statement() as connection:
        attempt = driving(connection, writer)
        assert operations.release_ticket(connection, attempt, "worker")
        assert queries.get_ticket(connection, attempt.ticket_id)["started_at"] is None
        again = taken(connection, attempt.ticket_id)
        assert again.fence > attempt.fence
        assert not operations.release_ticket(connection, attempt, "worker")
