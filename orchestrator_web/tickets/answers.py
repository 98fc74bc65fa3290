"""Rows as the contract's objects. Plain functions: marshmallow describes them, the hot path builds them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from models.tickets.states import CANCELLED, COMPLETED

Row = Mapping[str, Any]


def moment(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()


def ticket(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "command": row["command"],
        "params": row["params"],
        "priority": row["priority"],
        "status": row["state"],
        "timeout_seconds": row["timeout_seconds"],
        "metadata": row["metadata"],
        "target": row["target"],
        "created_at": moment(row["created_at"]),
        "updated_at": moment(row["updated_at"]),
        "started_at": moment(row["started_at"]),
        "completed_at": moment(row["completed_at"]),
        "result": row["result"],
        "error": row["error"],
        "error_code": row["error_code"],
    }


def accepted(row: Row) -> dict[str, Any]:
    """The answer to an execution that nobody waits for."""
    return {
        "ticket_id": row["id"],
        "status": row["state"],
        "result": None,
        "error": None,
        "error_code": None,
        "execution_time_ms": 0.0,
        "message": "Execution accepted",
    }


def outcome(body: Row) -> dict[str, Any]:
    """The answer to an execution, from the ledger's record of how it ended."""
    return {
        "ticket_id": body["ticket_id"],
        "status": body["status"],
        "result": body["result"],
        "error": body["error"],
        "error_code": body["error_code"],
        "execution_time_ms": body["execution_time_ms"] or 0.0,
        "message": message(body["status"], body["error"]),
    }


def message(status: str, error: str | None) -> str:
    if status == COMPLETED:
        return "Execution completed successfully"
    if status == CANCELLED:
        return f"Execution cancelled: {error}"
    return f"Execution failed: {error}"
