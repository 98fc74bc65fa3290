"""Tickets whose execution is owed, and what the rows say about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from models.kernel.clients import Caller
from models.kernel.session import statement, transaction
from models.tickets import operations
from models.tickets.operations import Attempt

DRIVE = {"speed": 1.0, "duration_seconds": 5}


def rows(sql: str, **values: Any) -> list[dict[str, Any]]:
    with statement() as connection:
        return [dict(row) for row in connection.execute(text(sql), values).mappings()]


def change(sql: str, **values: Any) -> None:
    with transaction() as connection:
        connection.execute(text(sql), values)


def run_out(*attempts: Attempt) -> None:
    """Their leases end a moment ago."""
    for attempt in attempts:
        change("UPDATE jobs SET lease_until = clock_timestamp() - interval '1 ms' WHERE id = :id", id=attempt.job_id)


@dataclass(frozen=True)
class Job:
    id: int
    ticket_id: str

    def take(self) -> Attempt:
        with statement() as connection:
            attempt = operations.take_ticket(connection, self.id, "worker:test")
        assert attempt is not None
        return attempt

    @property
    def ticket(self) -> dict[str, Any]:
        return rows("SELECT * FROM tickets WHERE id = :id", id=self.ticket_id)[0]

    def topics(self) -> list[str]:
        found = rows("SELECT topic FROM ledger WHERE subject_id = :id ORDER BY seq", id=self.ticket_id)
        return [row["topic"] for row in found]


class Owed:
    """Creates a ticket, accepts its execution, answers its job."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    def __call__(self, command: str = "scan", params: Any = None, *, expires: float = 300, **draft: Any) -> Job:
        ticket = {"priority": "normal", "timeout_seconds": 30, "metadata": {}, "target": "rover", **draft}
        if params is None:
            params = DRIVE if command == "drive" else {}
        with statement() as connection:
            made = operations.create_tickets(
                connection, [{"command": command, "params": params, **ticket}], self.caller
            )
            ticket_id = made[0]["id"]
            operations.accept_execution(
                connection, ticket_id, expires_in_seconds=expires, force=False, caller=self.caller
            )
        (job,) = rows("SELECT id FROM jobs WHERE subject_id = :id", id=ticket_id)
        return Job(job["id"], ticket_id)

    def cancel(self, ticket_id: str) -> None:
        with statement() as connection:
            operations.cancel_ticket(connection, ticket_id, self.caller)
