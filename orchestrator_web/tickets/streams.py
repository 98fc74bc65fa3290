"""What callers of /execute wait for, and what they are told when it is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.kernel.session import statement
from models.tickets.queries import list_outcomes
from orchestrator_web.json import dumps
from orchestrator_web.tickets import answers


def read_outcomes(executions: list[tuple[str, int]]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """The recorded outcomes of these executions, in one statement."""
    with statement() as connection:
        return list_outcomes(connection, executions)


def render_outcome(outcome: Mapping[str, Any]) -> bytes:
    """The body that answers the waiting caller."""
    return dumps(answers.outcome(outcome))
