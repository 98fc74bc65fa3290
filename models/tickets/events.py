"""What the ledger is told of tickets: topics, bodies, the dimensions they are counted by."""

from __future__ import annotations

from typing import Any

from sqlalchemy import case, func

CREATED = "ticket_created"
QUEUED = "ticket_queued"
STARTED = "execution_started"
COMPLETED = "execution_completed"
FAILED = "execution_failed"
CANCELLED = "ticket_cancelled"
RELEASED = "execution_released"
EVIDENCE = "late_outcome"
ESTOP_ENGAGED = "estop_engaged"
ESTOP_RELEASED = "estop_released"

OUTCOME_TOPICS = (COMPLETED, FAILED, CANCELLED)
PUBLIC_TOPICS = (CREATED, QUEUED, STARTED, COMPLETED, FAILED, CANCELLED, RELEASED, EVIDENCE)
"""What event streams tell. The ledger's other notes on tickets, such as refusals, are for an audit."""

KNOWN_COMMANDS = ("drive", "stop", "brake", "scan")


def label(ticket: Any) -> Any:
    """The command if it is one of ours: any text is accepted at creation, and labels must stay few."""
    return case((ticket.command.in_(KNOWN_COMMANDS), ticket.command), else_="other")


def topic_of_end(ticket: Any) -> Any:
    return case((ticket.state == "completed", COMPLETED), (ticket.state == "failed", FAILED), else_=CANCELLED)


def about(ticket: Any) -> dict[str, Any]:
    return {"ticket_id": ticket.id, "command": ticket.command, "target": ticket.target}


def created(ticket: Any) -> dict[str, Any]:
    return {**about(ticket), "priority": ticket.priority}


def execution(ticket: Any) -> dict[str, Any]:
    return {**about(ticket), "execution": ticket.execution}


def ended(ticket: Any) -> dict[str, Any]:
    """The outcome of one execution, whole: a later forced run changes the ticket, never this."""
    return {
        **execution(ticket),
        "execution_time_ms": ticket.execution_time_ms,
        "error": ticket.error,
        "error_code": ticket.error_code,
        "result": ticket.result,
    }


def elapsed_ms(ticket: Any) -> Any:
    """How long the execution took; nothing when it never started, so that latencies count executions only."""
    return case((ticket.from_state == "executing", ticket.execution_time_ms))


def milliseconds_since(moment: Any) -> Any:
    return func.round(func.extract("epoch", func.clock_timestamp() - moment) * 1000, 3)
