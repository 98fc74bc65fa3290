"""Event cursors: `<seq>.<signature>`, bound to one stream of one installation.

The seq is there to be read; the signature keeps a cursor of another stream, another
installation or a slip of the keyboard from being taken for a place in this one.
"""

from __future__ import annotations

import hmac
import re

from models.kernel.errors import Invalid
from orchestrator_web import paging

FORM = re.compile(r"(0|[1-9][0-9]{0,17})\.[A-Za-z0-9_-]{16}")


def write_event_cursor(stream: str, seq: int) -> str:
    """The cursor behind which `seq` + 1 is the next event of a stream."""
    return f"{seq}.{paging.encode(paging.sign(f'event.{stream}.{seq}'.encode()))}"


def read_event_cursor(stream: str, cursor: str, pointer: str) -> int:
    """The seq of a cursor. Raises Invalid, pointing at where it was given, when it is not one of this stream's."""
    parts = FORM.fullmatch(cursor)
    if parts is None or not hmac.compare_digest(write_event_cursor(stream, int(parts[1])), cursor):
        raise refused(pointer)
    return int(parts[1])


def refused(pointer: str) -> Invalid:
    why = "not a cursor of this stream"
    return Invalid(f"{pointer}: {why}", errors=[{"pointer": pointer, "detail": why}], code="cursor_invalid")
