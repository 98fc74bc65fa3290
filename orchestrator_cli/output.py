"""How commands print: aligned tables for people, JSON for programs, nothing else on stdout."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

from orchestrator_cli.units import label, readable

WIDEST_CELL = 60
AS_JSON = "orchestrator.json"

Command = TypeVar("Command", bound=Callable[..., Any])


def printing(command: Command) -> Command:
    """Give a command the option --json, which `show` and the errors obey."""
    flag = click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="Print JSON and nothing else; errors become JSON on stderr.",
    )
    return flag(command)


def remember(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    context.meta[AS_JSON] = wanted


def as_json() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(AS_JSON))


def show(value: Any, lines: Iterable[str] = (), *, err: bool = False) -> None:
    """Print the value as one JSON document, or these lines when a person reads; on stderr where stdout is taken."""
    if as_json():
        click.echo(json.dumps(value, ensure_ascii=False, indent=2), err=err)
        return
    for line in lines:
        click.echo(line, err=err)


def table(
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    nothing: str = "nothing",
    limit: int | None = WIDEST_CELL,
) -> list[str]:
    """Aligned lines under a header, cells cut at `limit`; one line that says so when there are no rows."""
    cells = [[text(readable(name, row.get(name)), limit) for name in columns] for row in rows]
    if not cells:
        return [nothing]
    cells.insert(0, [label(name).upper() for name in columns])
    widths = [max(width(row[index]) for row in cells) for index in range(len(columns))]
    return ["  ".join(pad(cell, size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in cells]


def facts(values: Mapping[str, Any]) -> list[str]:
    """One thing's facts, a line each."""
    told = [(label(name), text(readable(name, value), limit=None)) for name, value in values.items()]
    size = max((len(name) for name, _ in told), default=0)
    return [f"{name:<{size}}  {value}" for name, value in told]


def flat(values: Mapping[str, Any]) -> list[str]:
    """Facts of which some are facts of their own: theirs have both names."""
    parts: dict[str, Any] = {}
    for name, value in values.items():
        parts |= (
            {f"{name}_{inner}": each for inner, each in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return facts(parts)


def text(value: Any, limit: int | None = WIDEST_CELL) -> str:
    """A value in one line. What steers a terminal is taken out: it may come from anybody who can create a ticket."""
    if value is None or value == "":
        return "-"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ",".join(value) or "-"
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    shown = "".join(" " if unicodedata.category(letter).startswith("C") else letter for letter in shown)
    return shown if limit is None or len(shown) <= limit else shown[: limit - 3] + "..."


def width(shown: str) -> int:
    """Columns on a terminal: wide letters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in shown
    )


def pad(shown: str, size: int) -> str:
    return shown + " " * (size - width(shown))
