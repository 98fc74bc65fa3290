"""Logs as JSON lines, one object each, carrying what the present work is about.

`about(correlation_id=..., ticket_id=..., action=...)` binds fields for the length
of a block; every line logged inside carries them. Values are never secrets: the
door that reads credentials binds the client's name, not its key. Should one slip into
a text all the same (another library's error, say), what looks like one is blotted out.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson

from models.kernel.settings import settings

Token = contextvars.Token[dict[str, Any]]
EMPTY: dict[str, Any] = {}
present: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("present", default=EMPTY)

SECRETS = re.compile(
    r"(?P<key>orc_[0-9a-f]{12}_)[A-Za-z0-9_-]{32}"  # an API key: its id may stay
    r"|(?P<signing>whsec_)[A-Za-z0-9+/=_-]{8,}"
    r"|(?P<token>eyJ)[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
    r"|(?P<user>://[^\s/@:\"]*:)[^\s/@\"]+(?=@)"
    r"|(?P<row>Failing row contains \()[^\n]*?(?=\)\.?(?:\\n|\n|\"|$))"  # what Postgres says of a refused row
)
MARKS = ("orc_", "whsec_", "eyJ", "://", "Failing row")
AS_JSON_DOES = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
COMPACT = (",", ":")  # as orjson writes, so that one search finds all lines
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextlib.contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Bind fields to every line logged inside the block."""
    token = bind(**fields)
    try:
        yield
    finally:
        unbind(token)


def bind(**fields: Any) -> Token:
    """Bind fields until they are unbound again, where the work is no block."""
    return present.set({**present.get(), **fields})


def unbind(token: Token) -> None:
    present.reset(token)


class JsonLines(logging.Formatter):
    """One JSON object a line: at, level, logger, message, bound fields, extra fields."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "role": self.role,
            "logger": record.name,
            "message": record.getMessage(),
            **present.get(),
        }
        line.update({key: value for key, value in vars(record).items() if key not in STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return to_line(line)


def to_line(line: dict[str, Any]) -> str:
    """One line of strict JSON; values that JSON cannot say (NaN, something that holds itself) are said as text."""
    with contextlib.suppress(TypeError):  # what it does not know, the other way says
        text = orjson.dumps(line, option=AS_JSON_DOES)
        nothing = sum(value is None for value in line.values())
        if text.isascii() and text.count(b"null") == nothing:  # any other may stand for NaN
            return without_secrets(text.decode())
    try:
        return without_secrets(json.dumps(line, default=str, allow_nan=False, separators=COMPACT))
    except ValueError:
        texts = {key: value if isinstance(value, str) else repr(value) for key, value in line.items()}
        return without_secrets(json.dumps(texts, separators=COMPACT))


def without_secrets(text: str) -> str:
    """The text, with whatever has the form of a secret blotted out."""
    if not any(mark in text for mark in MARKS):  # a search costs far more than this, and each request logs a line
        return text
    return SECRETS.sub(lambda found: f"{found[found.lastgroup or 0]}***", text)


def configure(role: str) -> None:
    """Send this process's logs to stderr as JSON lines; `role` names the process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(role))
    # What no line of ours says need not be found out for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # as the logging HOWTO says, no caller is looked for
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings().log_level)
    logging.captureWarnings(True)
