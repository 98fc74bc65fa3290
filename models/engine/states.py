"""The states of an engine run and of the engine's service as a whole, and what may follow what."""

from __future__ import annotations

from models.kernel.machine import Machine

PLANNED = "planned"
STARTED = "started"
WAITING = "waiting"
COMPLETED = "completed"
FAILED = "failed"

ENDED = frozenset({COMPLETED, FAILED})

RUN = Machine(
    kind="engine_run",
    initial=PLANNED,
    terminal=ENDED,
    edges={
        PLANNED: frozenset({STARTED}),
        STARTED: frozenset({COMPLETED, FAILED, WAITING}),
        WAITING: frozenset({STARTED}),
        COMPLETED: frozenset(),
        FAILED: frozenset(),
    },
)

INIT = "init"
RUNNING = "running"
DRAINED = "drained"
STOPPED = "stopped"
DEGRADED = "degraded"

ENGINE = Machine(
    kind="engine",
    initial=INIT,
    terminal=frozenset({STOPPED}),
    edges={
        INIT: frozenset({RUNNING, STOPPED}),
        RUNNING: frozenset({DRAINED, DEGRADED, STOPPED}),
        DRAINED: frozenset({RUNNING, STOPPED}),
        DEGRADED: frozenset({RUNNING, STOPPED}),
        STOPPED: frozenset({INIT}),
    },
)
