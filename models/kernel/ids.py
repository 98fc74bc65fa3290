"""Ids and secrets, through one place. (Ticket ids are drawn by the database, see migrations.)"""

from __future__ import annotations

import re
import secrets
import uuid

CORRELATION_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def new_uuid() -> str:
    return str(uuid.uuid4())


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
    return new_uuid()
