"""The service's own I/O worker with a driver whose time is noted: the first line, the last line, nothing else changes.

A `scan` does nothing, or only waits when its robot is called `pause-<milliseconds>`; every other command is the
simulated robot's. Used as `celery --app benchmarks.systems.stopwatch worker`.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.systems.marks import mark
from models.kernel.settings import Settings
from orchestrator_tasks.app import app
from orchestrator_tasks.tickets.drivers import registry
from orchestrator_tasks.tickets.drivers.base import Command, Interrupt
from orchestrator_tasks.tickets.drivers.sim import SimDriver

__all__ = ["app"]

PAUSE = "pause-"


class Stopwatch(SimDriver):
    """A simulated robot that notes when it was called."""

    def carry_out(self, command: Command, interrupt: Interrupt) -> dict[str, Any]:
        began = time.monotonic_ns()
        try:
            if command.name != "scan":
                return super().carry_out(command, interrupt)
            if command.target.startswith(PAUSE):
                time.sleep(int(command.target.removeprefix(PAUSE)) / 1000)
            return {"executed": True}
        finally:
            mark(command.ticket_id, began)


def stopwatch(chosen: Settings) -> Stopwatch:
    return Stopwatch(chosen.sim_time_scale)


registry.DRIVERS["sim"] = stopwatch
