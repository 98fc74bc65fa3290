"""Which engines the workers have: each says so when it starts, and is believed for as long as it beats.

The web and whoever looks at the service know the engine only from here: what their own environment names may be
another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from models.engine.sections import near, shown
from models.engine.tables import engine_workers
from models.kernel.errors import InvalidSettings
from models.kernel.expressions import seconds
from models.kernel.processes import FORGET_SECONDS, FRESH_SECONDS, processes

OPTIONS = "engine.hysteresis."


@dataclass
class Running:
    """One engine, and how many workers have it. `options`: what it takes, by name whether it is required; None: any."""

    module: str
    version: str | None
    options: Mapping[str, bool] | None
    workers: int = 0

    @property
    def name(self) -> str:
        return f"{self.module} {self.version}" if self.version else self.module

    def misfits(self, options: Mapping[str, Any]) -> list[str]:
        """A line for each of these options that it does not take, or that it lacks."""
        if self.options is None:
            return []
        unknown = [each for each in options if each not in self.options]
        lacking = [each for each, required in self.options.items() if required and each not in options]
        return [
            *(f"{OPTIONS}{shown(each)}: is no option of {self.module}{near(each, self.options)}" for each in unknown),
            *(f"{OPTIONS}{each}: is required by {self.module}" for each in lacking),
        ]


def announce(
    connection: Connection, worker_id: str, *, module: str, version: str | None, options: Mapping[str, bool] | None
) -> None:
    """Keep which engine a worker has; what was kept of those that are long gone is deleted."""
    row = {"engine_module": module, "engine_version": version, "options": options}
    made = insert(engine_workers).values(id=worker_id, **row)
    again = {**row, "announced_at": func.clock_timestamp()}
    connection.execute(made.on_conflict_do_update(index_elements=["id"], set_=again))
    gone = engine_workers.c.id.not_in(select(processes.c.id))
    old = engine_workers.c.announced_at < func.clock_timestamp() - seconds(FORGET_SECONDS)
    connection.execute(delete(engine_workers).where(gone, old))


def list_engines(connection: Connection) -> list[Running]:
    """The engines of the workers that are alive, the one that was announced last first."""
    worker = engine_workers.c
    beats = processes.c.beat_at > func.clock_timestamp() - seconds(FRESH_SECONDS)
    columns = (worker.engine_module, worker.engine_version, worker.options)
    alive = select(*columns).select_from(engine_workers.join(processes, processes.c.id == worker.id)).where(beats)
    found: dict[tuple[str, str | None], Running] = {}
    for module, version, options in connection.execute(alive.order_by(worker.announced_at.desc())):
        found.setdefault((module, version), Running(module, version, options)).workers += 1
    return list(found.values())


def find_misfits(engines: Iterable[Running], options: Mapping[str, Any] | None) -> list[str]:
    """What no engine takes of these options, in the words of the first; nothing where one does, or where none is known.

    A second engine is there while one takes the other's place.
    """
    wrong = [each.misfits(options) for each in engines] if options else []
    return wrong[0] if wrong and all(wrong) else []


def check_options(connection: Connection, options: Mapping[str, Any] | None) -> None:
    """Raises InvalidSettings, a line for each option, when no worker's engine takes these."""
    if wrong := find_misfits(list_engines(connection), options):
        raise InvalidSettings("\n".join(wrong))
