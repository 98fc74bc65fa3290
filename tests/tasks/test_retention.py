"""Housekeeping drops old history, and keeps what belongs to a ticket that has not ended."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from models.kernel.clients import Caller
from models.kernel.retention import READERS, get_earliest_seq
from models.kernel.session import statement
from models.tickets import operations
from orchestrator_tasks.schedules import housekeeping
from tests.conftest import forget

SCAN = {
    "command": "scan",
    "params": {},
    "priority": "normal",
    "timeout_seconds": 5,
    "metadata": {},
    "target": "default",
}


def test_the_history_of_a_ticket_goes_only_after_the_ticket_has_ended(
    database: str, writer: Caller, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("ORCHESTRATOR_LEDGER_KEEP_DAYS", "1")
    forget()
    with statement() as connection:
        (ticket,) = operations.create_tickets(connection, [SCAN], writer)
        # the database refuses to change what was written: it is made to look old by a trigger that is taken away
        connection.execute(text("ALTER TABLE ledger DISABLE TRIGGER ledger_append_only"))
        connection.execute(text("UPDATE ledger SET at = at - interval '2 days'"))
        connection.execute(text("SELECT setval('ledger_seq', 5000001)"))
        for reader in READERS:
            connection.execute(text(f"UPDATE {reader.name} SET seq = 5000001"))
        housekeeping()
        assert get_earliest_seq(connection) == 1
        operations.cancel_ticket(connection, ticket["id"], writer)
        housekeeping()
        assert get_earliest_seq(connection) == 5_000_001
