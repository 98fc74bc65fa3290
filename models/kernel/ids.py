"""Ids and secrets, through one place. (Ticket ids are drawn by the database, see migrations.)"""

from __future__ import annotations

import os
import random
import re
import secrets

VARIANTS = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}
CORRELATION_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


# For ids that name and open nothing: asking the system for each would let go of the interpreter in mid-request.
chance = random.Random()  # noqa: S311 - seeded by the system
os.register_at_fork(after_in_child=chance.seed)


def new_uuid() -> str:
    return as_uuid(secrets.token_hex(16))


def as_uuid(digits: str) -> str:
    """32 random hexadecimal digits as a UUID (RFC 9562, version 4)."""
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{VARIANTS[digits[16]]}{digits[17:20]}-{digits[20:]}"


def new_secret() -> str:
    """192 random bits, URL-safe: too many to guess, so that a plain SHA-256 may store them."""
    return secrets.token_urlsafe(24)


def new_key_id() -> str:
    return secrets.token_hex(6)


def new_signing_key() -> bytes:
    """256 random bits; Standard Webhooks asks for 192 to 512."""
    return secrets.token_bytes(32)


def correlation_id(offered: str | None) -> str:
    """The caller's correlation id when it is usable, else a new one."""
    if offered and CORRELATION_ID.fullmatch(offered):
        return offered
    return as_uuid(f"{chance.getrandbits(128):032x}")
