"""Bulk operations: asked for, then followed until they end."""

from __future__ import annotations

import time
from typing import Any

import click

from orchestrator_cli.errors import Unsuccessful
from orchestrator_cli.output import facts, show
from orchestrator_cli.service import Service

ENDED = {"completed", "failed", "cancelled"}
LOOK_AGAIN_SECONDS = 0.2
SLOWEST_SECONDS = 2.0
PATIENCE_SECONDS = 600.0


def follow(service: Service, operation: dict[str, Any], wait: bool) -> None:
    """Show an operation, at its end if `wait`.

    Raises Unsuccessful when it failed or was cancelled, or has not ended within PATIENCE_SECONDS.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    pause = LOOK_AGAIN_SECONDS
    while wait and state_of(operation) not in ENDED:
        if time.monotonic() >= until:
            raise Unsuccessful(
                f"operation {operation['id']} has not ended after {PATIENCE_SECONDS:.0f} s",
                next_step=f"it goes on; GET /operations/{operation['id']} tells how far it is",
            )
        time.sleep(pause)
        pause = min(pause * 1.5, SLOWEST_SECONDS)
        operation = service.get(f"/operations/{operation['id']}")
    show(operation, facts(operation))
    if state_of(operation) in ENDED - {"completed"}:
        raise Unsuccessful(f"operation {operation['id']} ended as {state_of(operation)}")
    if refused := operation.get("refused"):
        click.echo(f"refused: {refused}", err=True)


def state_of(operation: dict[str, Any]) -> str:
    return str(operation.get("status") or operation.get("state"))
