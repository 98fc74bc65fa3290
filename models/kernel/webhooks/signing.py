"""Signatures of webhooks, after the Standard Webhooks specification 1.0 (standardwebhooks.com)."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from datetime import datetime

from models.kernel import ids

PREFIX = "whsec_"


def new_signing_secret() -> str:
    return PREFIX + base64.b64encode(ids.new_signing_key()).decode()


def sign_message(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the HMAC-SHA256 of id, timestamp and body, in base64."""
    key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def headers(secrets: Iterable[str], message_id: str, moment: datetime, body: bytes) -> dict[str, str]:
    """The three headers of a signed message: one signature for each secret, so that a receiver may hold either."""
    timestamp = int(moment.timestamp())
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(sign_message(secret, message_id, timestamp, body) for secret in secrets),
    }
