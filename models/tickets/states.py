"""The states of a ticket, and what may follow what."""

from __future__ import annotations

from models.kernel.machine import Machine

PENDING = "pending"
QUEUED = "queued"
EXECUTING = "executing"
COMPLETED = "completed"
FAILED = "failed"
CANCELLED = "cancelled"

TERMINAL = frozenset({COMPLETED, FAILED, CANCELLED})

TICKET = Machine(
    kind="ticket",
    initial=PENDING,
    terminal=TERMINAL,
    edges={
        PENDING: frozenset({QUEUED, CANCELLED}),
        QUEUED: frozenset({EXECUTING, FAILED, CANCELLED}),
        EXECUTING: frozenset({COMPLETED, FAILED, CANCELLED, QUEUED}),
        COMPLETED: frozenset({QUEUED}),
        FAILED: frozenset({QUEUED}),
        CANCELLED: frozenset({QUEUED}),
    },
)
