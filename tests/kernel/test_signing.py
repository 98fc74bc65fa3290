"""Signatures as the reference library of Standard Webhooks reads them."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from models.kernel.clock import utcnow
from models.kernel.webhooks.signing import headers, new_signing_secret, sign_message

BODY = b'{"type":"ticket_created"}'


def test_the_specification_s_own_example_has_its_signature() -> None:
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    moment = datetime.fromtimestamp(1614265330, UTC)
    signed = headers([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", moment, body)
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signed["webhook-timestamp"] == "1614265330"


def test_a_secret_has_256_bits_and_its_prefix() -> None:
    secret = new_signing_secret()
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert new_signing_secret() != secret


def test_a_message_with_two_signatures_is_accepted_under_either_secret_and_no_third() -> None:
    old, new, other = new_signing_secret(), new_signing_secret(), new_signing_secret()
    signed = headers([new, old], "msg_1", utcnow(), BODY)
    assert Webhook(new).verify(BODY, signed) == Webhook(old).verify(BODY, signed) == {"type": "ticket_created"}
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify(BODY, signed)


def test_an_altered_body_id_or_time_is_not_accepted() -> None:
    secret = new_signing_secret()
    signed = headers([secret], "msg_1", utcnow(), BODY)
    for altered in (
        {**signed, "webhook-id": "msg_2"},
        {**signed, "webhook-timestamp": str(int(signed["webhook-timestamp"]) + 1)},
        headers([secret], "msg_1", utcnow() - timedelta(hours=1), BODY),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(BODY, altered)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY + b" ", signed)
    assert sign_message(secret, "msg_1", 1, BODY) != sign_message(secret, "msg_1", 1, BODY + b" ")
