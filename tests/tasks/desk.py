"""Asks for operations over many tickets, and carries them out in the test's own process."""

from __future__ import annotations

from typing import Any

from models.kernel import bulk
from models.kernel.bulk import Run
from models.kernel.clients import Caller
from models.kernel.session import statement
from models.tickets import operations
from orchestrator_tasks.kernel import bulk as worker
from tests.tasks.owed import rows

SCAN = {
    "command": "scan",
    "params": {},
    "priority": "normal",
    "timeout_seconds": 30,
    "metadata": {},
    "target": "rover",
}


class Desk:
    """Where operations are asked for, taken and carried out."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    def create(self, count: int, **draft: Any) -> list[str]:
        with statement() as connection:
            made = operations.create_tickets(connection, [{**SCAN, **draft}] * count, self.caller)
        return [row["id"] for row in made]

    def ask(self, act: str, **selection: Any) -> str:
        with statement() as connection:
            return str(bulk.ask_operation(connection, act, self.caller, **selection)["id"])

    def job(self, operation_id: str) -> int:
        return int(rows("SELECT id FROM jobs WHERE subject_id = :id", id=operation_id)[0]["id"])

    def run(self, operation_id: str) -> dict[str, Any]:
        """The operation after a worker has done with it."""
        worker.run(self.job(operation_id), operation_id)
        return self.operation(operation_id)

    def do(self, act: str, **selection: Any) -> dict[str, Any]:
        return self.run(self.ask(act, **selection))

    def operation(self, operation_id: str) -> dict[str, Any]:
        with statement() as connection:
            return dict(bulk.get_operation(connection, operation_id))

    def take(self, operation_id: str) -> Run:
        with statement() as connection:
            taken = bulk.take_operation(connection, self.job(operation_id), "worker:test")
        assert taken is not None
        return taken


def states() -> dict[str, int]:
    return {row["state"]: row["n"] for row in rows("SELECT state, count(*) AS n FROM tickets GROUP BY state")}
