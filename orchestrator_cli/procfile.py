"""Reads a Procfile: `name: shell command`, one process a line."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator_cli.errors import CannotStart

LINE = re.compile(r"(?P<name>[A-Za-z0-9_-]+):\s*(?P<command>\S.*)")


def read(path: Path) -> dict[str, str]:
    """The commands by process name, in the order of the file.

    Raises CannotStart naming the line that is not understood.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise CannotStart(f"{path} cannot be read: {error.strerror}") from None
    commands: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = LINE.fullmatch(text)
        if found is None or found["name"] in commands:
            raise CannotStart(f"{path}, line {number}: not a new `name: command`: {text}")
        commands[found["name"]] = found["command"]
    return commands
