"""Page cursors: opaque, signed, and bound to the question they belong to."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from datetime import datetime
from typing import Any

import orjson
from flask import request

from models.kernel.errors import Invalid
from models.kernel.installation import cursor_key

SIGNATURE_BYTES = 12


def sign(payload: bytes) -> bytes:
    return hmac.new(cursor_key(), payload, hashlib.sha256).digest()[:SIGNATURE_BYTES]


def name_of(question: dict[str, Any]) -> str:
    """A short name of the list and its filters, so that a cursor stays short however long they are."""
    asked = [request.endpoint, question]
    return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def write_cursor(question: dict[str, Any], position: tuple[datetime, str]) -> str:
    """The cursor of the page that follows `position` in the answer to `question`."""
    payload = orjson.dumps([name_of(question), position[0].isoformat(), position[1]])
    return encode(sign(payload) + payload)


def read_cursor(question: dict[str, Any], cursor: str) -> tuple[datetime, str]:
    """The position in a cursor. Raises Invalid when it was altered or belongs to another question."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        raw = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise refused("not a cursor of this service") from None
    signature, payload = raw[:SIGNATURE_BYTES], raw[SIGNATURE_BYTES:]
    # base64 has spare bits at its end: only the spelling that was handed out counts
    if encode(raw) != cursor or not hmac.compare_digest(signature, sign(payload)):
        raise refused("not a cursor of this service")
    asked, moment, last = orjson.loads(payload)
    if asked != name_of(question):
        raise refused("belongs to another list or to other filters; start again without it")
    return datetime.fromisoformat(moment), last


def refused(why: str) -> Invalid:
    return Invalid(f"/cursor: {why}", errors=[{"pointer": "/cursor", "detail": why}], code="cursor_invalid")
