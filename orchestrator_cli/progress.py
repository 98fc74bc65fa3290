"""How far an export or a replay is, said on stderr."""

from __future__ import annotations

import sys
import time

import click

from orchestrator_cli.output import as_json

TOLD_EVERY_SECONDS = 1.0
TOLD_PLAINLY_EVERY_SECONDS = 10.0
LOOK_EVERY = 64


class Progress:
    """How far it is: one line that is drawn anew on a terminal, elsewhere a line every ten seconds."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self.began = self.told = time.monotonic()
        self.is_drawn = sys.stderr.isatty() and not as_json()
        self.every = TOLD_EVERY_SECONDS if self.is_drawn else TOLD_PLAINLY_EVERY_SECONDS

    def step(self) -> None:
        self.done += 1
        if self.done % LOOK_EVERY == 0 and not as_json() and time.monotonic() - self.told > self.every:
            self.tell()

    def tell(self) -> None:
        self.told = time.monotonic()
        rate = self.done / (self.told - self.began)
        of = f" of {self.total:,}" if self.total else ""
        line = f"{self.what} {self.done:,}{of} runs, {rate:,.0f} a second"
        click.echo(f"\r\033[K{line}" if self.is_drawn else line, err=True, nl=not self.is_drawn)

    def end(self) -> None:
        if self.is_drawn and self.told > self.began:
            click.echo("\r\033[K", err=True, nl=False)
