"""Webhooks: subscriptions to events, and what was delivered. A tenant sees its own, an administrator all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from flask import Response, g
from flask_smorest import Blueprint

from models.kernel.errors import NotFound
from models.kernel.session import statement, transaction
from models.kernel.webhooks import deliveries
from models.kernel.webhooks import subscriptions as webhooks
from orchestrator_web import hints, paging
from orchestrator_web.auth import requires
from orchestrator_web.idempotency import after_commit, creating, keep_instead
from orchestrator_web.json import dumps
from orchestrator_web.kernel import webhook_schemas as schemas
from orchestrator_web.parsing import StrictParser

WEBHOOK_ID = re.compile(r"wh_[0-9a-f]{12}")
DELIVERY_ID = re.compile(r"msg_[0-9a-f_]{12,40}")
TIMES = ("created_at", "updated_at", "previous_until", "next_at", "ended_at")

Row = Mapping[str, Any]

blueprint = Blueprint("webhooks", __name__, description="Events sent to receivers of your own, signed")
blueprint.ARGUMENTS_PARSER = StrictParser()


def answer(body: Any, status: int = 200) -> Response:
    return Response(dumps(body), status=status, content_type="application/json")


def known_form(webhook_id: str) -> str:
    """The id, noted as what this request is about. Raises NotFound for a text that cannot be one."""
    if not WEBHOOK_ID.fullmatch(webhook_id):
        raise NotFound("There is no such webhook", code="webhook_not_found")
    g.subject = ("webhook", webhook_id)
    return webhook_id


def known_delivery(delivery_id: str) -> str:
    if not DELIVERY_ID.fullmatch(delivery_id):
        raise NotFound("There is no such delivery", code="delivery_not_found")
    return delivery_id


def shown(row: Row, schema: type[Any]) -> dict[str, Any]:
    """The members of a row that its schema names."""
    names = [name for name in schema._declared_fields if name != "secret"]
    return {name: moment(row[name]) if name in TIMES else row[name] for name in names}


def moment(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()


def webhook(row: Row) -> dict[str, Any]:
    return shown(row, schemas.WebhookRecord)


def delivery(row: Row) -> dict[str, Any]:
    return shown(row, schemas.DeliveryRecord)


def with_secret(row: Row, secret: str, status: int) -> Response:
    """The one answer that shows a secret; an answer kept for repetitions does not."""
    keep_instead(dumps({**webhook(row), "secret": None}))
    return answer({**webhook(row), "secret": secret}, status)


def page(
    name: str, rows: Sequence[Row], limit: int, question: dict[str, Any], show: Callable[[Row], dict[str, Any]]
) -> Response:
    """One page of a list of which one row more than the limit was read."""
    last = rows[limit - 1] if len(rows) > limit else None
    following = last and paging.write_cursor(question, (last["created_at"], last["id"]))
    return answer({name: [show(row) for row in rows[:limit]], "next_cursor": following})


def position(wanted: dict[str, Any], question: dict[str, Any]) -> tuple[datetime, str] | None:
    return paging.read_cursor(question, wanted["cursor"]) if "cursor" in wanted else None


@blueprint.post("/webhooks")
@blueprint.arguments(schemas.WebhookDraft())
@blueprint.response(201, schemas.NewWebhook)
@blueprint.alt_response(409, success=False)
@requires("write")
@creating(together=True)
def create_webhook(connection: Any, draft: dict[str, Any]) -> Response:
    """Subscribe to events from now on. The secret that signs them is shown in this answer alone."""
    row, secret = webhooks.create_webhook(connection, draft, g.caller)
    g.subject = ("webhook", row["id"])
    made = with_secret(row, secret, 201)
    made.headers["Location"] = f"/webhooks/{row['id']}"
    return made


@blueprint.get("/webhooks")
@blueprint.arguments(schemas.Page(), location="query")
@blueprint.response(200, schemas.WebhookPage)
@requires("read")
def list_webhooks(wanted: dict[str, Any]) -> Response:
    """Subscriptions, newest first."""
    question = {"list": "webhooks"}
    with statement() as connection:
        rows = webhooks.list_webhooks(connection, g.caller, after=position(wanted, question), limit=wanted["limit"] + 1)
    return page("webhooks", rows, wanted["limit"], question, webhook)


@blueprint.get("/webhooks/<webhook_id>")
@blueprint.response(200, schemas.WebhookRecord)
@requires("read")
def get_webhook(webhook_id: str) -> Response:
    """One subscription."""
    with statement() as connection:
        return answer(webhook(webhooks.get_webhook(connection, known_form(webhook_id), g.caller)))


@blueprint.patch("/webhooks/<webhook_id>")
@blueprint.arguments(schemas.WebhookChanges())
@blueprint.response(200, schemas.WebhookRecord)
@requires("write")
def change_webhook(changes: dict[str, Any], webhook_id: str) -> Response:
    """Change where events go, or which; what was owed before goes to the new address."""
    with transaction() as connection:
        return answer(webhook(webhooks.change_webhook(connection, known_form(webhook_id), changes, g.caller)))


@blueprint.delete("/webhooks/<webhook_id>")
@blueprint.response(204)
@requires("write")
def delete_webhook(webhook_id: str) -> Response:
    """Unsubscribe. Nothing that is owed is sent any more."""
    with statement() as connection:
        webhooks.delete_webhook(connection, known_form(webhook_id), g.caller)
    return Response(status=204)


@blueprint.post("/webhooks/<webhook_id>/rotate")
@blueprint.arguments(schemas.Rotation())
@blueprint.response(200, schemas.NewWebhook)
@requires("write")
@creating(together=True)
def rotate_secret(connection: Any, wanted: dict[str, Any], webhook_id: str) -> Response:
    """Make a new secret, shown in this answer alone. Both sign until the overlap is over."""
    row, secret = webhooks.rotate_secret(connection, known_form(webhook_id), wanted["overlap_seconds"], g.caller)
    return with_secret(row, secret, 200)


@blueprint.post("/webhooks/<webhook_id>/enable")
@blueprint.response(200, schemas.WebhookRecord)
@blueprint.alt_response(409, success=False)
@requires("write")
def enable_webhook(webhook_id: str) -> Response:
    """Begin again after a disabling, from now on."""
    with statement() as connection:
        return answer(webhook(webhooks.enable_webhook(connection, known_form(webhook_id), g.caller)))


@blueprint.post("/webhooks/<webhook_id>/test")
@blueprint.response(202, schemas.DeliveryRecord)
@blueprint.alt_response(409, success=False)
@requires("write")
@creating
def test_webhook(connection: Any, webhook_id: str) -> Response:
    """Send a test event; follow it among the deliveries."""
    row = webhooks.get_webhook(connection, known_form(webhook_id), g.caller)
    deliveries.refuse_disabled(row)
    made = deliveries.create_test_delivery(connection, row, g.caller)
    after_commit(hints.work_is_owed)
    return answer(delivery(made), 202)


@blueprint.get("/webhooks/<webhook_id>/deliveries")
@blueprint.arguments(schemas.DeliveryQuery(), location="query")
@blueprint.response(200, schemas.DeliveryPage)
@requires("read")
def list_deliveries(wanted: dict[str, Any], webhook_id: str) -> Response:
    """What was sent or is to be sent, newest first."""
    state = wanted.get("state")
    question = {"list": "deliveries", "webhook": webhook_id, "state": state}
    after = position(wanted, question)
    with statement() as connection:
        webhooks.get_webhook(connection, known_form(webhook_id), g.caller)
        rows = deliveries.list_deliveries(connection, webhook_id, state=state, after=after, limit=wanted["limit"] + 1)
    return page("deliveries", rows, wanted["limit"], question, delivery)


@blueprint.post("/webhooks/<webhook_id>/deliveries/<delivery_id>/resend")
@blueprint.response(202, schemas.DeliveryRecord)
@blueprint.alt_response(409, success=False)
@requires("write")
@creating
def resend_delivery(connection: Any, webhook_id: str, delivery_id: str) -> Response:
    """Send again what was delivered or has failed, under the same webhook-id."""
    row = webhooks.get_webhook(connection, known_form(webhook_id), g.caller)
    deliveries.refuse_disabled(row)
    wanted = deliveries.get_delivery(connection, webhook_id, known_delivery(delivery_id))
    again = deliveries.resend_delivery(connection, wanted, g.caller)
    after_commit(hints.work_is_owed)
    return answer(delivery(again), 202)
