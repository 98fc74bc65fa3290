"""Shows events as they happen: a table that redraws itself on a terminal, else one line for each event."""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from orchestrator_cli.output import as_json, table, text
from orchestrator_cli.service import Service
from orchestrator_cli.stream import Stream
from orchestrator_cli.units import readable

PATH = "/tickets/events"
RUN_ID_LENGTH = 64
OUTPUTS_PATH = "/engine/outputs/events"
COLUMNS = ("ticket_id", "command", "target", "status", "event", "at")
FRAME_SECONDS = 0.1
MOST_WAITING = 1000  # events read and not yet drawn: then the connection itself has to wait
HEADER_AND_FOOT = 3
COLOURS = {"completed": "32", "failed": "31", "cancelled": "33", "executing": "36", "queued": "34"}


def watch(service: Service, filters: dict[str, str], count: int | None) -> None:
    """Show events until there were `count` of them or Ctrl-C. Raises as `Stream.events` does."""
    try:
        if as_json() or not is_terminal():
            print_lines(Stream(service, PATH, filters, complain), count, line_of)
        else:
            LiveTable().show(service, filters, count)
    except KeyboardInterrupt:
        return


def is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def complain(reason: str) -> None:
    if not as_json():
        click.echo(f"orchestrator: {reason}", err=True)


def print_lines(stream: Stream, count: int | None, shown: Callable[[dict[str, Any]], str]) -> None:
    for number, event in enumerate(stream.events(), start=1):
        click.echo(json.dumps(event, ensure_ascii=False) if as_json() else shown(event))
        sys.stdout.flush()
        if number == count:
            return


def print_outputs(service: Service, filters: dict[str, str], count: int | None) -> None:
    """What comes of engine runs, a line each, until there were `count` or Ctrl-C. Raises as `Stream.events` does."""
    print_lines(Stream(service, OUTPUTS_PATH, filters, complain), count, line_of_output)


def line_of_output(event: dict[str, Any]) -> str:
    return "  ".join(text(readable(name, part), RUN_ID_LENGTH) for name, part in output_row(event).items())


def output_row(event: Mapping[str, Any]) -> dict[str, Any]:
    """An output as a row: what it says in a word or two."""
    payload = event.get("payload") or {}
    output = payload.get("regime_output") or (payload.get("hysteresis_decision") or {}).get("selected_output")
    failed = ": ".join(payload[name] for name in ("error_kind", "error_detail") if payload.get(name))
    says = f"{output['regime']} {output['confidence']:g}" if output else failed
    return {
        **{name: event.get(name) for name in ("symbol", "engine_timestamp_ms", "event_type", "attempt")},
        "says": says,
        "run_id": event.get("run_id"),
    }


def line_of(event: dict[str, Any]) -> str:
    row = row_of(event)
    change = " -> ".join(str(part) for part in (event.get("from"), event.get("to")) if part)
    return "  ".join(
        text(part) for part in (row["at"], row["ticket_id"], row["event"], row["command"], row["target"], change)
    )


def row_of(event: dict[str, Any]) -> dict[str, Any]:
    """An event as a row of the table."""
    return {
        "ticket_id": event.get("ticket_id"),
        "command": event.get("command"),
        "target": event.get("target"),
        "status": event.get("to"),
        "event": event.get("type"),
        "at": str(event.get("at", "")).replace("T", " ")[:23],
    }


class LiveTable:
    """The tickets that something happened to most recently, drawn over the drawing before."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.seen = 0
        self.notice = ""
        self.drawn_lines = 0
        self.arriving: queue.Queue[dict[str, Any] | str | BaseException] = queue.Queue(MOST_WAITING)

    def show(self, service: Service, filters: dict[str, str], count: int | None) -> None:
        stream = Stream(service, PATH, filters, self.arriving.put)
        threading.Thread(target=self.read, args=(stream,), name="events", daemon=True).start()
        self.draw()
        try:
            while count is None or self.seen < count:
                if self.take_for(FRAME_SECONDS, count):
                    self.draw()
        finally:
            self.draw()

    def read(self, stream: Stream) -> None:
        """In a thread of its own, so that the table keeps its pace whatever the network does."""
        try:
            for event in stream.events():
                self.arriving.put(event)
        except BaseException as error:
            self.arriving.put(error)

    def take_for(self, seconds: float, count: int | None) -> bool:
        """Take in what arrives within a frame; whether there was anything."""
        before = (self.seen, self.notice)
        for arrived in self.arrivals(time.monotonic() + seconds):
            if isinstance(arrived, BaseException):
                raise arrived
            if isinstance(arrived, str):
                self.notice = arrived
                continue
            self.take(arrived)
            if self.seen == count:
                break
        return (self.seen, self.notice) != before

    def arrivals(self, until: float) -> Iterator[dict[str, Any] | str | BaseException]:
        while (left := until - time.monotonic()) > 0:
            try:
                yield self.arriving.get(timeout=left)
            except queue.Empty:
                return

    def take(self, event: dict[str, Any]) -> None:
        self.seen += 1
        self.notice = ""
        row = row_of(event)
        before = self.rows.pop(str(row["ticket_id"]), {})
        self.rows[str(row["ticket_id"])] = row | {"status": row["status"] or before.get("status")}
        while len(self.rows) > MOST_WAITING:
            self.rows.pop(next(iter(self.rows)))

    def draw(self) -> None:
        size = shutil.get_terminal_size()
        latest = list(reversed(self.rows.values()))[: max(1, size.lines - HEADER_AND_FOOT - 1)]
        lines = table(COLUMNS, latest, nothing="waiting for the first event")
        lines = [line[: size.columns - 1] for line in lines]
        lines = (
            [lines[0], *(coloured(line, row) for line, row in zip(lines[1:], latest, strict=True))] if latest else lines
        )
        foot = f"{self.seen} events, {len(self.rows)} tickets. Ctrl-C ends. {self.notice}"
        lines += ["", foot[: size.columns - 1]]
        up = f"\033[{self.drawn_lines}A\r\033[J" if self.drawn_lines else ""
        sys.stdout.write(up + "\n".join(lines) + "\n")
        sys.stdout.flush()
        self.drawn_lines = len(lines)


def coloured(line: str, row: dict[str, Any]) -> str:
    """The line in its status's colour, unless NO_COLOR asks for none (no-color.org)."""
    colour = COLOURS.get(str(row["status"]))
    return line if os.environ.get("NO_COLOR") or colour is None else f"\033[{colour}m{line}\033[0m"
