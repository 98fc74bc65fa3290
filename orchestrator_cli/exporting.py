"""Exports: the runs of a database as lines, and what to do where they are refused."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from models.engine.lines import BrokenExport
from models.kernel.errors import Gone
from orchestrator_cli.addresses import database_url
from orchestrator_cli.errors import CommandFailed
from orchestrator_cli.files import written
from orchestrator_cli.progress import Progress

SEE_RUNS = "`orchestrator engine runs` lists those that there are"
LATER = "leave the beginning away to begin with what is kept; `orchestrator engine marks set` keeps records from now on"
ANEW = "take the export anew, or another copy of it"
AGAIN = f"{ANEW}; --as-it-is replays one that was changed on purpose"


def export_to(name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Write an export; answers what it holds. Raises CommandFailed."""
    from models.engine.exports import export_lines

    with helpful(), database() as connection, written(name) as write:
        plan = planned(connection, wanted)
        progress = Progress("exported", plan.runs)
        size, last = 0, b"{}"
        for last in export_lines(connection, plan):
            write(last)
            size += len(last)
            if b'"kind":"run"' in last[:20]:
                progress.step()
        progress.end()
    end = json.loads(last)
    return {"file": name, **end["counts"], "gaps": plan.gaps, "bytes": size, "sha256": end["sha256"]}


def planned(connection: Any, wanted: Mapping[str, Any]) -> Any:
    """The plan of an export. Raises CommandFailed when runs were chosen and there is none of them."""
    from models.engine.exports import Range, plan_export

    plan = plan_export(connection, Range(**wanted))
    if not plan.runs and any(bound is not None for bound in wanted.values()):
        others = f" ({plan.unfinished} have not ended, of {plan.dropped} retention has dropped records)"
        why = others if plan.unfinished or plan.dropped else ""
        raise CommandFailed(f"no run matches{why}", next_step=SEE_RUNS, problem={"code": "no_run"})
    return plan


@contextlib.contextmanager
def exported_now(wanted: Mapping[str, Any]) -> Iterator[Iterator[bytes]]:
    """The lines that an export of the database would have."""
    from models.engine.exports import export_lines

    with database() as connection:
        yield export_lines(connection, planned(connection, wanted))


@contextlib.contextmanager
def database() -> Iterator[Any]:
    """A connection to the database that the settings name, else to the running embedded one."""
    os.environ["DATABASE_URL"] = database_url()
    from models.kernel.session import statement

    with statement() as connection:
        yield connection


@contextlib.contextmanager
def helpful(again: str = AGAIN) -> Iterator[None]:
    """Say what to do next about what an export can be refused for."""
    try:
        yield
    except BrokenExport as error:
        raise CommandFailed(error.message, next_step=again, problem={"code": error.code}) from error
    except Gone as error:
        raise CommandFailed(error.message, next_step=LATER, problem={"code": error.code}) from error
