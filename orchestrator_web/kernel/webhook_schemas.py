"""What webhook requests and answers look like."""

from __future__ import annotations

from typing import Any

from marshmallow import RAISE, Schema, fields, validate

from models.kernel.webhooks.addresses import LONGEST_URL, check_receiver
from models.kernel.webhooks.subscriptions import OVERLAP_SECONDS
from models.kernel.webhooks.tables import DELIVERY, DISABLED, ENABLED
from orchestrator_web.fields import Json, QueryInteger, StrictInteger

LONGEST_DESCRIPTION = 500
MOST_TOPICS = 32
LARGEST_PAGE, DEFAULT_PAGE = 1000, 100
LONGEST_OVERLAP_SECONDS = 7 * 86_400
DATE_TIME = {"format": "date-time"}

# The end is spelled so that Python and JSON Schema (ECMA-262) mean the same by it.
TOPIC = validate.Regexp(
    r"^(\*|\*?[a-z0-9_]{1,64}\*?)(?![\s\S])",
    error="must be * or a topic of small letters, digits and _, with * for what may stand before or after it",
)


class ReceiverUrl(fields.String):
    """A URL that may be sent to; its host is looked up."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        return check_receiver(str(super()._deserialize(value, attr, data, **kwargs)))


class Strict(Schema):
    class Meta:
        unknown = RAISE


def url(**options: Any) -> ReceiverUrl:
    what = {
        "description": "https or http, at a public address",
        "format": "uri",
        "maxLength": LONGEST_URL,
        "pattern": r"^https?://[!-~]+(?![\s\S])",
    }
    return ReceiverUrl(metadata=what, **options)


def topics(**options: Any) -> fields.List:
    one = fields.String(validate=TOPIC, metadata={"example": "execution_*"})
    return fields.List(one, validate=validate.Length(1, MOST_TOPICS), **options)


class WebhookDraft(Strict):
    """A subscription to be made."""

    url = url(required=True)
    topics = topics(required=True)
    description = fields.String(load_default="", validate=validate.Length(max=LONGEST_DESCRIPTION))


class WebhookChanges(Strict):
    """What is to change; what is left out stays."""

    url = url()
    topics = topics()
    description = fields.String(validate=validate.Length(max=LONGEST_DESCRIPTION))


class Rotation(Strict):
    """For how long both secrets sign."""

    overlap_seconds = StrictInteger(
        load_default=int(OVERLAP_SECONDS), validate=validate.Range(0, LONGEST_OVERLAP_SECONDS)
    )


class WebhookRecord(Schema):
    """A subscription, without its secret."""

    id = fields.String(required=True, metadata={"example": "wh_5f0c1d2e3a4b"})
    tenant = fields.String(required=True)
    url = fields.String(required=True)
    topics = fields.List(fields.String(), required=True)
    description = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf((ENABLED, DISABLED)))
    disabled_reason = fields.String(required=True, allow_none=True)
    failures = fields.Integer(required=True, metadata={"description": "failed deliveries in a row"})
    previous_until = fields.String(
        required=True, allow_none=True, metadata={**DATE_TIME, "description": "until then the old secret signs too"}
    )
    created_by = fields.String(required=True)
    created_at = fields.String(required=True, metadata=DATE_TIME)
    updated_at = fields.String(required=True, metadata=DATE_TIME)


class NewWebhook(WebhookRecord):
    """A subscription with a new secret."""

    secret = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "shown this once; null in the answer to a repeated Idempotency-Key"},
    )


class DeliveryRecord(Schema):
    """One event owed to one receiver."""

    id = fields.String(required=True, metadata={"description": "the webhook-id header"})
    webhook_id = fields.String(required=True)
    seq = fields.Integer(required=True, allow_none=True, metadata={"description": "of the event; null: a test"})
    topic = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf(tuple(DELIVERY.edges)))
    tries = fields.Integer(required=True)
    max_attempts = fields.Integer(required=True)
    status_code = fields.Integer(required=True, allow_none=True)
    error = fields.String(required=True, allow_none=True)
    error_code = fields.String(required=True, allow_none=True)
    payload = Json(required=True)
    created_at = fields.String(required=True, metadata=DATE_TIME)
    next_at = fields.String(required=True, allow_none=True, metadata=DATE_TIME)
    ended_at = fields.String(required=True, allow_none=True, metadata=DATE_TIME)


class Page(Strict):
    """Which page of a list."""

    limit = QueryInteger(load_default=DEFAULT_PAGE, validate=validate.Range(1, LARGEST_PAGE))
    cursor = fields.String(validate=validate.Length(1, 512), metadata={"description": "next_cursor of the page before"})


class DeliveryQuery(Page):
    """Which deliveries."""

    state = fields.String(validate=validate.OneOf(tuple(DELIVERY.edges)))


class WebhookPage(Schema):
    webhooks = fields.List(fields.Nested(WebhookRecord), required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class DeliveryPage(Schema):
    deliveries = fields.List(fields.Nested(DeliveryRecord), required=True)
    next_cursor = fields.String(required=True, allow_none=True)
