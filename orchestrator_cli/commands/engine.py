"""`orchestrator engine`: the engine's state and configuration, its runs and outputs, exports and replays."""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from models.kernel.errors import InvalidSettings
from orchestrator_cli.commands.engine_replay import Moment, export, replay
from orchestrator_cli.errors import WrongUsage
from orchestrator_cli.output import as_json, facts, flat, printing, show, table
from orchestrator_cli.service import Service, asking
from orchestrator_cli.stalls import find_stalls
from orchestrator_cli.watching import RUN_ID_LENGTH, output_row, print_outputs

KEYS = "docs/engine.md#configuration lists the keys of the file"
MODES = ("truth", "hysteresis")
EVENT_TYPES = ("EngineRunStarted", "EngineRunCompleted", "EngineRunFailed", "HysteresisDecisionPublished")
STATUSES = ("planned", "started", "waiting", "completed", "failed")
RUNS = ("number", "symbol", "engine_timestamp_ms", "status", "attempts", "cut", "error_kind", "run_id")
OUTPUTS = ("symbol", "engine_timestamp_ms", "event_type", "attempt", "says", "run_id")
MARKS = ("name", "ingest_seq", "created_at", "created_by")


@click.group()
def engine() -> None:
    """Engine runs: cadence, outputs, replay."""


# its state


@engine.command()
@asking
def status(service: Service) -> None:
    """How it does: its state, what is paused and why, buffer, cadence, runs, publishing, and what stands still."""
    answer = service.get("/engine/status")
    stalls = [] if as_json() else find_stalls(service, answer)
    show(answer, [*facts_of_status(answer), *(["", *stalls, "`orchestrator doctor` says more"] if stalls else [])])


def facts_of_status(answer: dict[str, Any]) -> list[str]:
    """The workers' engines in a few words each: `module version (2 workers)`."""
    engines = [
        f"{each['engine_module']} {each['engine_version'] or '-'} ({each['workers']} workers)"
        for each in answer.get("engines", [])
    ]
    return flat({**answer, "engines": engines})


def act(service: Service, verb: str) -> None:
    answer = service.post(f"/engine/{verb}")
    show(answer, facts_of_status(answer))


@engine.command()
@asking
def start(service: Service) -> None:
    """Plan runs from now on."""
    act(service, "start")


@engine.command()
@asking
def drain(service: Service) -> None:
    """Plan nothing more; runs under way finish, and events are still taken in."""
    act(service, "drain")


@engine.command()
@asking
def stop(service: Service) -> None:
    """Plan nothing more and refuse events; planned runs finish."""
    act(service, "stop")


@engine.command()
@asking
def reset(service: Service) -> None:
    """Make a stopped engine one that can be started again."""
    act(service, "reset")


@engine.command()
@click.option("--check", "checked", metavar="FILE", help="Say what is wrong with a TOML file; asks no service.")
@click.option("--accept", "accepted", metavar="FILE", help="Plan by a TOML file from now on.")
@click.option("--version", "number", type=click.IntRange(min=1), help="A version that was accepted before.")
@click.option("--url", metavar="URL", help="The service; ORCHESTRATOR_URL, else the local one.")
@click.option("--token", metavar="KEY", help="API key or JWT; ORCHESTRATOR_TOKEN, else the local admin's.")
@printing
def config(checked: str | None, accepted: str | None, number: int | None, url: str | None, token: str | None) -> None:
    """The configuration that runs are planned under; with --accept another one."""
    if sum(given is not None for given in (checked, accepted, number)) > 1:
        raise WrongUsage("give one of --check, --accept and --version")
    if checked:
        check_file(checked)
        return
    service = Service.found(url, token)
    if accepted:
        with pointing_to_keys():
            wanted = read_toml(accepted)
        body = service.post("/engine/config", wanted)
    else:
        body = service.get(f"/engine/config/{number}" if number else "/engine/config")
    told = {name: value for name, value in body.items() if name != "config"}
    show(body, [*facts(told), "", json.dumps(body["config"], indent=2)])


def check_file(name: str) -> None:
    """Raises WrongUsage, which names each key that is wrong, or what the engine does not take; InvalidSettings."""
    from models.engine.config import read_config
    from models.kernel.settings import settings
    from orchestrator_tasks.engine.adapter import Engine

    with pointing_to_keys():
        config = read_config(read_toml(name))
    module = settings().engine_module
    engine = Engine.load(module)
    with pointing_to_keys():
        engine.check_config(config.engine.hysteresis or {})
    told = {"file": name, "valid": True, "engine_module": module, "symbols": list(config.symbols)}
    show(told, facts(told))


@contextlib.contextmanager
def pointing_to_keys() -> Iterator[None]:
    """A configuration is a file, and none of the settings that `orchestrator settings` lists."""
    try:
        yield
    except InvalidSettings as error:
        raise WrongUsage(error.message, next_step=KEYS, problem={"code": error.code}) from None


def read_toml(name: str) -> dict[str, Any]:
    """What a file says, unchecked. Raises InvalidSettings."""
    try:
        return tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{name}: {error}") from None


# runs and what comes of them


@engine.command()
@click.option("--symbol")
@click.option("--status", type=click.Choice(STATUSES))
@click.option("--mode", type=click.Choice(MODES))
@click.option("--from", "since", type=Moment(), help="Only runs of this engine timestamp or a later one.")
@click.option("--to", "upto", type=Moment(), help="Only runs of this engine timestamp or an earlier one.")
@click.option("--limit", type=int, default=20, show_default=True)
@click.option("--cursor", help="The next page, as the page before names it.")
@asking
def runs(service: Service, *, since: int | None, upto: int | None, **wanted: Any) -> None:
    """Runs, the one planned last first."""
    page = service.get("/engine/runs", **wanted, **{"from": since, "to": upto})
    rows = [{**run, "cut": f"{run['cut_start_ingest_seq']}-{run['cut_end_ingest_seq']}"} for run in page["runs"]]
    total = f"{len(rows)} of {page['total']}{' or more' if page['total_is_estimate'] else ''}"
    more = f"; the next page: --cursor {page['next_cursor']}" if page["next_cursor"] else ""
    show(page, [*table(RUNS, rows, nothing="no run", limit=None), "", total + more])


@engine.command()
@click.argument("run_id")
@asking
def run(service: Service, run_id: str) -> None:
    """One run: its cut, its attempts, what happened to it, what came of it.

    RUN_ID is a run's id, or the first digits of it, while no other run's begins with them.
    """
    if not run_id.strip():
        raise click.BadParameter("must be the first digits of a run's id", param_hint="RUN_ID")
    found = service.get(f"/engine/runs/{quote(run_id.strip().lower(), safe='')}")
    told = {name: value for name, value in found.items() if name not in {"history", "outputs"}}
    history = table(("at", "topic", "from", "to", "actor", "reason"), found["history"])
    show(found, [*facts(told), "", *history, "", *table(OUTPUTS[2:5], map(output_row, found["outputs"]))])


@engine.command()
@click.option("--symbol")
@click.option("--event-type", type=click.Choice(EVENT_TYPES))
@click.option("--run-id", help="Only what came of this run.")
@click.option("--follow", is_flag=True, help="Go on with what comes, from now on or --after; Ctrl-C ends it.")
@click.option("--after", metavar="CURSOR", help="Begin behind this one; without it with the oldest kept.")
@click.option("--limit", type=int, default=20, show_default=True)
@click.option("--count", type=click.IntRange(min=1), help="With --follow: end after so many.")
@asking
def outputs(service: Service, *, follow: bool, limit: int, count: int | None, **chosen: str | None) -> None:
    """What came of runs, oldest first; with --follow as it comes, a line each."""
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            print_outputs(service, {name: value for name, value in chosen.items() if value is not None}, count)
        return
    page = service.get("/engine/outputs", **chosen, limit=limit)
    lines = table(OUTPUTS, map(output_row, page["events"]), nothing="no output", limit=RUN_ID_LENGTH)
    show(page, [*lines, "", f"{'more' if page['has_more'] else 'what comes next'}: --after {page['next']}"])


# marks


@engine.group()
def marks() -> None:
    """What of the log of inputs is kept, so that it can be exported and replayed."""


@marks.command("list")
@asking
def list_marks(service: Service) -> None:
    """All marks, by the record that they keep."""
    answer = service.get("/engine/marks")
    show(answer, table(MARKS, answer["marks"], nothing="no mark"))


@marks.command("set")
@click.argument("name")
@click.option(
    "--at", "ingest_seq", type=click.IntRange(min=1), help="The first record to keep; else all that there are."
)
@asking
def set_mark(service: Service, name: str, ingest_seq: int | None) -> None:
    """Drop no record from one on until the mark is removed."""
    answer = service.post("/engine/marks", {"name": name, "ingest_seq": ingest_seq})
    show(answer, facts(answer))


@marks.command("remove")
@click.argument("name")
@asking
def remove_mark(service: Service, name: str) -> None:
    """Keep nothing for this mark any more."""
    service.ask("DELETE", f"/engine/marks/{quote(name, safe='')}")
    show({"removed": name}, [f"removed {name}"])


engine.add_command(export)
engine.add_command(replay)
