"""`orchestrator engine export` and `replay`: runs as lines in a file, and their events made again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from models.kernel.errors import InvalidSettings
from orchestrator_cli.errors import Unsuccessful, WrongUsage
from orchestrator_cli.output import as_json, facts, flat, printing, show

MS = 1000
BOUNDS = ("since_number", "upto_number", "since_planned_ms", "upto_planned_ms")
ORDERED = (
    ("since_number", "upto_number", "--from-run is greater than --to-run"),
    ("since_planned_ms", "upto_planned_ms", "--from is later than --to"),
)
NEITHER = {"published": "(nothing)", "replayed": "(nothing)"}
ENGINES = "docs/engine.md#the-engine says what an engine is and where it is looked for"
AS_SERVED = "--isolated calls the engine as the service does: each time in a fresh process"


class Moment(click.ParamType):
    """A time as ISO 8601 or as milliseconds since 1970."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if str(value).isdecimal():
            return int(value)
        try:
            found = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is neither a time as 2026-11-21T12:00:00Z nor milliseconds since 1970", param, ctx)
        return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * MS)


def ranged(command: Any) -> Any:
    """Which runs of the database."""
    for option in (
        click.option("--symbol", "symbols", multiple=True, help="Only runs of this symbol; repeatable."),
        click.option("--to", "upto_planned_ms", type=Moment(), help="Only runs planned at or before this time."),
        click.option("--from", "since_planned_ms", type=Moment(), help="Only runs planned at or after this time."),
        click.option("--to-run", "upto_number", type=click.IntRange(min=1), help="The number of the last run."),
        click.option("--from-run", "since_number", type=click.IntRange(min=1), help="The number of the first run."),
    ):
        command = option(command)
    return command


def chosen_range(symbols: tuple[str, ...], **bounds: int | None) -> dict[str, Any]:
    """Raises WrongUsage when it ends before it begins."""
    for first, last, words in ORDERED:
        since, upto = bounds[first], bounds[last]
        if since is not None and upto is not None and since > upto:
            raise WrongUsage(f"{words}: the range ends before it begins")
    return {**bounds, "symbols": frozenset(symbols) or None}


@click.command()
@click.argument("file")
@ranged
@printing
def export(file: str, symbols: tuple[str, ...], **bounds: int | None) -> None:
    """Write the runs that have ended, with all that a replay of them needs, as JSON lines.

    FILE is compressed when its name ends in .gz; - is standard output. Works on the database.
    """
    from orchestrator_cli.exporting import export_to
    from orchestrator_cli.files import STANDARD

    told = export_to(file, chosen_range(symbols, **bounds))
    if told["unfinished"]:
        click.echo(f"{told['unfinished']} runs have not ended and are left out", err=True)
    if told["dropped"]:
        click.echo(f"{told['dropped']} older runs are left out: retention has dropped records of them", err=True)
    show(told, facts({name: value for name, value in told.items() if name != "gaps"}), err=file == STANDARD)
    refuse_gaps(told["gaps"])


def refuse_gaps(gaps: dict[str, list[int]]) -> None:
    """An export that misses its beginning begins later; one that misses runs in its middle is not what was asked for.

    Raises Unsuccessful, which names the first.
    """
    if not gaps:
        return
    symbol, (first, last) = min(gaps.items(), key=lambda gap: gap[1])
    others = f" (and of {len(gaps) - 1} more symbols)" if len(gaps) > 1 else ""
    raise Unsuccessful(
        f"the export is written, but runs {first} to {last} of {symbol}{others} are missing in the middle of it:"
        " retention has dropped records of them",
        next_step=f"--from-run {1 + max(last for _, last in gaps.values())} begins behind all of them",
        problem={"code": "export_has_gaps"},
    )


@contextlib.contextmanager
def option_named(module: str | None) -> Iterator[None]:
    """What is wrong with an engine that --engine names is no matter of ENGINE_MODULE."""
    try:
        yield
    except InvalidSettings as error:
        setting = f"ENGINE_MODULE={module}: "
        if module is None or not error.message.startswith(setting):
            raise
        raise WrongUsage(f"--engine {module}: {error.message.removeprefix(setting)}", next_step=ENGINES) from None


@click.command()
@click.argument("file", required=False)
@ranged
@click.option("--engine", "module", metavar="MODULE", help="The engine's module; ENGINE_MODULE, else the example's.")
@click.option("--verify", "compare", is_flag=True, help="Compare with what was published, up to the first divergence.")
@click.option("--out", metavar="FILE", help="Write the events here, a line each; compressed when it ends in .gz.")
@click.option("--isolated", is_flag=True, help="Call the engine as the service does, each time in a fresh process.")
@click.option("--as-it-is", is_flag=True, help="Replay an export that was changed on purpose: leave its checks out.")
@printing
def replay(file: str | None, out: str | None, symbols: tuple[str, ...], **given: Any) -> None:
    """Make the events of runs again: of an export (- is standard input), or of the database when there is no FILE.

    Exit code 5 says that the events are not those that were published.
    """
    from orchestrator_cli.files import STANDARD
    from orchestrator_cli.replaying import replay_file

    bounds = {name: given.pop(name) for name in BOUNDS}
    if file and (symbols or any(bounds.values())):
        raise WrongUsage("an export is replayed whole: choose runs when it is made, or leave FILE away")
    is_taken = out == STANDARD
    if is_taken and as_json():
        raise WrongUsage("--out - and --json both write to stdout: give --out a file, or leave --json away")
    with option_named(given["module"]):
        told = replay_file(file, out, chosen_range(symbols, **bounds), **given)
    show(told, flat({**told, **in_words(told)}), err=is_taken)
    if divergence := told.get("divergence"):
        raise Unsuccessful(
            f"the replay parts from what was published at run {divergence.get('number', divergence['run_id'])}"
            f" of {divergence['symbol']}:"
            f" {divergence['event_type']} {divergence['field']}{by_whom(told)}",
            next_step=next_step_after(told, isolated=given["isolated"]),
            problem={"code": "diverged"},
        )


def in_words(told: dict[str, Any]) -> dict[str, Any]:
    """What of a replay's answer is told otherwise to a person."""
    words: dict[str, Any] = {}
    if "divergence" in told:
        words["divergence"] = {**NEITHER, **told["divergence"]}
    if "engine" in told:
        made = [f"{name_of(each)} ({each['runs']} runs)" for each in told["recorded_engines"]]
        words |= {"engine": name_of(told["engine"]), "recorded_engines": made}
    return words


def name_of(engine: dict[str, Any]) -> str:
    return f"{engine['engine_module']} {engine['engine_version'] or '-'}"


def next_step_after(told: dict[str, Any], *, isolated: bool) -> str:
    """What may find the reason of a divergence: the engine that made the runs, else a process as theirs was."""
    if "engine" not in told:
        return "" if isolated else AS_SERVED
    module = told["recorded_engines"][0]["engine_module"]
    return "" if module == told["engine"]["engine_module"] else f"--engine {module} replays with the one that made them"


def by_whom(told: dict[str, Any]) -> str:
    """Of a divergence the likeliest reason: another engine."""
    if "engine" not in told:
        return ""
    made = ", ".join(map(name_of, told["recorded_engines"]))
    return f"; {made} made the runs, {name_of(told['engine'])} replayed them"
