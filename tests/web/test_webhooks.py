"""The webhook endpoints: what they answer, what they refuse, and what they never show."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask

from models.kernel.settings import settings
from models.kernel.webhooks.feeding import feed_webhooks
from orchestrator_tasks.kernel import webhooks as worker
from orchestrator_tasks.tickets import tasks  # noqa: F401 - makes tickets a source of events
from tests.tasks.receivers import receiving
from tests.web.service import Api, assert_problem, counts, each, key_with, refusals, rows

URL = "http://127.0.0.1:9/hook"
GOOD = {"url": URL, "topics": ["*"]}
SHOWN = {
    "id", "tenant", "url", "topics", "description", "state", "disabled_reason", "failures", "previous_until",
    "created_by", "created_at", "updated_at",
}  # fmt: skip


@pytest.fixture(autouse=True)
def open_to_loopback(environment: pytest.MonkeyPatch) -> None:
    allow(environment, True)


def allow(environment: pytest.MonkeyPatch, private: bool) -> None:
    environment.setenv("ORCHESTRATOR_WEBHOOK_ALLOW_PRIVATE", str(private).lower())
    settings.cache_clear()


@pytest.fixture
def stranger(app: Flask) -> Api:
    """A client of another tenant."""
    return Api(app, key_with("read", "write", name="stranger", tenant="acme"))


def subscribed(api: Api, **members: Any) -> dict[str, Any]:
    made = api.post("/webhooks", json={**GOOD, **members})
    assert made.status_code == 201, made.get_data(as_text=True)
    return dict(made.get_json())


def delivered(api: Api, hook: dict[str, Any]) -> dict[str, Any]:
    """One test event, carried out as a worker does."""
    made = api.post(f"/webhooks/{hook['id']}/test")
    assert made.status_code == 202, made.get_data(as_text=True)
    (job,) = rows("SELECT id FROM jobs WHERE subject_id = :id", id=made.get_json()["id"])
    worker.perform(job["id"])
    return dict(made.get_json())


def listed(api: Api, hook: dict[str, Any], query: str = "") -> list[dict[str, Any]]:
    answer = api.get(f"/webhooks/{hook['id']}/deliveries{query}")
    assert answer.status_code == 200, answer.get_data(as_text=True)
    return list(answer.get_json()["deliveries"])


def test_a_subscription_shows_its_secret_once(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = api.post("/webhooks", json={**GOOD, "description": "mine"})
    assert made.status_code == 201
    body = made.get_json()
    assert made.headers["Location"] == f"/webhooks/{body['id']}"
    secret = body.pop("secret")
    assert secret.startswith("whsec_")
    assert body.keys() == SHOWN
    assert (body["state"], body["failures"], body["description"]) == ("enabled", 0, "mine")
    assert api.get(f"/webhooks/{body['id']}").get_json() == body
    assert api.get("/webhooks").get_json() == {"webhooks": [body], "next_cursor": None}
    assert secret not in caplog.text
    assert secret not in str(rows("SELECT * FROM ledger"))


def test_a_repeated_request_subscribes_once_and_does_not_show_the_secret_again(api: Api) -> None:
    key = {"Idempotency-Key": "once"}
    first = api.post("/webhooks", json=GOOD, headers=key)
    again = api.post("/webhooks", json=GOOD, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.get_json() == {**first.get_json(), "secret": None}
    assert len(rows("SELECT * FROM webhooks")) == 1
    assert first.get_json()["secret"] not in str(rows("SELECT answer FROM idempotency_keys"))


def test_a_subscription_is_changed_rotated_and_deleted(api: Api) -> None:
    hook = subscribed(api)
    path = f"/webhooks/{hook['id']}"
    changed = api.call("PATCH", path, json={"topics": ["ticket_*"], "url": URL + "2"})
    assert (changed.status_code, changed.get_json()["topics"]) == (200, ["ticket_*"])
    rotated = api.post(f"{path}/rotate", json={"overlap_seconds": 60})
    assert rotated.status_code == 200
    assert rotated.get_json()["secret"] != hook["secret"]
    assert rotated.get_json()["previous_until"] is not None
    assert api.call("DELETE", path).status_code == 204
    assert_problem(api.get(path), 404)
    assert_problem(api.call("DELETE", path), 404)
    assert api.get("/webhooks").get_json()["webhooks"] == []
    topics = [row["topic"] for row in rows("SELECT topic FROM ledger WHERE subject_kind = 'webhook' ORDER BY seq")]
    assert topics[:4] == ["webhook_created", "webhook_changed", "webhook_rotated", "webhook_deleted"]


def test_a_test_event_is_delivered_listed_and_sent_again(api: Api) -> None:
    with receiving() as receiver:
        hook = subscribed(api, url=receiver.url)
        sent = delivered(api, hook)
        (shown,) = listed(api, hook)
        assert (shown["id"], shown["state"], shown["status_code"]) == (sent["id"], "delivered", 204)
        assert (shown["topic"], shown["seq"]) == ("webhook_test", None)
        assert receiver.requests[0].event == shown["payload"]
        again = api.post(f"/webhooks/{hook['id']}/deliveries/{sent['id']}/resend")
        assert (again.status_code, again.get_json()["state"]) == (202, "pending")
        problem = assert_problem(api.post(f"/webhooks/{hook['id']}/deliveries/{sent['id']}/resend"), 409)
        assert (problem["code"], problem["state"]) == ("delivery_pending", "pending")


def test_deliveries_are_paged_newest_first_and_filtered_by_state(api: Api) -> None:
    with receiving() as receiver:
        hook = subscribed(api, url=receiver.url)
        ids = [delivered(api, hook)["id"] for _ in range(3)]
    ids.append(api.post(f"/webhooks/{hook['id']}/test").get_json()["id"])
    path = f"/webhooks/{hook['id']}/deliveries"
    page = api.get(f"{path}?limit=3").get_json()
    rest = api.get(f"{path}?limit=3&cursor={page['next_cursor']}").get_json()
    assert [row["id"] for row in page["deliveries"] + rest["deliveries"]] == ids[::-1]
    assert rest["next_cursor"] is None
    assert [row["id"] for row in listed(api, hook, "?state=pending")] == ids[3:]
    assert_problem(api.get(f"{path}?state=delivered&cursor={page['next_cursor']}"), 422)


def test_a_disabled_one_sends_nothing_until_it_is_enabled(api: Api) -> None:
    hook = subscribed(api)
    problem = assert_problem(api.post(f"/webhooks/{hook['id']}/enable"), 409)
    assert (problem["code"], problem["state"]) == ("webhook_enabled", "enabled")
    with receiving() as receiver:
        assert api.call("PATCH", f"/webhooks/{hook['id']}", json={"url": receiver.url}).status_code == 200
        sent = delivered(api, hook)
        receiver.act = lambda handler: (handler.send_response(410), handler.end_headers())[0]
        delivered(api, hook)
    shown = api.get(f"/webhooks/{hook['id']}").get_json()
    assert (shown["state"], shown["disabled_reason"]) == ("disabled", "receiver_gone")
    for path in ("test", f"deliveries/{sent['id']}/resend"):
        assert assert_problem(api.post(f"/webhooks/{hook['id']}/{path}"), 409)["code"] == "webhook_disabled"
    enabled = api.post(f"/webhooks/{hook['id']}/enable").get_json()
    assert (enabled["state"], enabled["disabled_reason"], enabled["failures"]) == ("enabled", None, 0)


def test_another_tenant_sees_nothing_and_an_administrator_everything(api: Api, app: Flask, stranger: Api) -> None:
    owner = Api(app, key_with("read", "write", name="owner"))
    hook = subscribed(owner)
    sent = owner.post(f"/webhooks/{hook['id']}/test").get_json()
    assert stranger.get("/webhooks").get_json()["webhooks"] == []
    before = counts("ledger")
    path = f"/webhooks/{hook['id']}"
    for method, there, body in (
        ("GET", path, None),
        ("PATCH", path, {"description": "x"}),
        ("DELETE", path, None),
        ("POST", f"{path}/rotate", {}),
        ("POST", f"{path}/enable", None),
        ("POST", f"{path}/test", None),
        ("GET", f"{path}/deliveries", None),
        ("POST", f"{path}/deliveries/{sent['id']}/resend", None),
    ):
        options = {} if body is None else {"json": body}
        problem = assert_problem(stranger.call(method, there, **options), 404)
        assert problem["code"] == "webhook_not_found"
    assert counts("ledger") == before
    assert rows("SELECT revision FROM webhooks") == [{"revision": 1}]
    mine = subscribed(stranger)
    assert_problem(stranger.post(f"/webhooks/{mine['id']}/deliveries/{sent['id']}/resend"), 404)
    assert {row["id"] for row in api.get("/webhooks").get_json()["webhooks"]} == {hook["id"], mine["id"]}
    assert {row["id"] for row in owner.get("/webhooks").get_json()["webhooks"]} == {hook["id"]}


def test_a_ticket_s_events_reach_the_subscriptions_of_its_tenant(api: Api, stranger: Api) -> None:
    hook, theirs = subscribed(api), subscribed(stranger)
    ticket = stranger.create()
    feed_webhooks()
    told = [row for row in listed(stranger, theirs) if row["topic"] == "ticket_created"]
    assert [row["payload"]["data"]["ticket_id"] for row in told] == [ticket["id"]]
    assert [row["topic"] for row in listed(api, hook) if row["topic"].startswith("ticket")] == []


def test_reading_needs_read_and_everything_else_write(api: Api, reader: Api, anonymous: Api) -> None:
    hook = subscribed(api)
    assert reader.get(f"/webhooks/{hook['id']}").status_code == 200
    assert reader.get(f"/webhooks/{hook['id']}/deliveries").status_code == 200
    assert_problem(reader.post("/webhooks", json=GOOD), 403)
    for method, path in (("PATCH", ""), ("DELETE", ""), ("POST", "/rotate"), ("POST", "/enable"), ("POST", "/test")):
        assert_problem(reader.call(method, f"/webhooks/{hook['id']}{path}", json={}), 403)
        assert_problem(anonymous.call(method, f"/webhooks/{hook['id']}{path}", json={}), 401)
    assert_problem(anonymous.get("/webhooks"), 401)


BAD = [
    ({}, "/url"),
    ({"url": URL}, "/topics"),
    ({**GOOD, "topics": []}, "/topics"),
    ({**GOOD, "topics": ["*"] * 33}, "/topics"),
    ({**GOOD, "topics": "ticket_created"}, "/topics"),
    ({**GOOD, "topics": {"a": 1}}, "/topics"),
    ({**GOOD, "topics": [None]}, "/topics/0"),
    ({**GOOD, "topics": [7]}, "/topics/0"),
    ({**GOOD, "topics": [""]}, "/topics/0"),
    ({**GOOD, "topics": ["**"]}, "/topics/0"),
    ({**GOOD, "topics": ["a*b"]}, "/topics/0"),
    ({**GOOD, "topics": ["Ticket_Created"]}, "/topics/0"),
    ({**GOOD, "topics": ["ticket_created\n"]}, "/topics/0"),
    ({**GOOD, "topics": ["%"]}, "/topics/0"),
    ({**GOOD, "topics": ["a" * 65]}, "/topics/0"),
    ({**GOOD, "url": None}, "/url"),
    ({**GOOD, "url": 7}, "/url"),
    ({**GOOD, "url": ["http://127.0.0.1/"]}, "/url"),
    ({**GOOD, "url": ""}, "/url"),
    ({**GOOD, "url": "ftp://127.0.0.1/"}, "/url"),
    ({**GOOD, "url": "http://user:word@127.0.0.1/"}, "/url"),
    ({**GOOD, "url": "http://127.0.0.1:0/"}, "/url"),
    ({**GOOD, "url": "http://127.1/"}, "/url"),
    ({**GOOD, "url": URL + "x" * 3000}, "/url"),
    ({**GOOD, "url": URL + "\x00"}, "/url"),
    ({**GOOD, "description": None}, "/description"),
    ({**GOOD, "description": "x" * 501}, "/description"),
    ({**GOOD, "description": "a\x00b"}, "/description"),
    ({**GOOD, "secret": "whsec_mine"}, "/secret"),
    ({**GOOD, "tenant": "acme"}, "/tenant"),
]


@each("body, pointer", BAD)
def test_a_wrong_subscription_is_refused_with_a_pointer_and_changes_nothing(
    api: Api, body: dict[str, Any], pointer: str
) -> None:
    before = counts("ledger")
    problem = assert_problem(api.post("/webhooks", json=body), 422)
    assert pointer in [error["pointer"] for error in problem["errors"]]
    assert counts("ledger") == before
    assert rows("SELECT * FROM webhooks") == []


def test_a_scheme_may_be_spelled_in_capitals(api: Api) -> None:
    made = api.post("/webhooks", json={**GOOD, "url": "HTTP://127.0.0.1:9/Hook"})
    assert made.status_code == 201, made.text
    assert made.get_json()["url"] == "http://127.0.0.1:9/Hook"
    changed = api.call("PATCH", f"/webhooks/{made.get_json()['id']}", json={"url": "Https://127.0.0.1:9/Hook"})
    assert (changed.status_code, changed.get_json()["url"]) == (200, "https://127.0.0.1:9/Hook")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"url": "\\ud800", "topics": ["*"]}', b"7", b"null", b"\xff"])
def test_a_body_that_is_no_subscription_is_refused(api: Api, body: bytes) -> None:
    assert_problem(api.send("/webhooks", body), 400, 422)


@each(
    "host",
    ["127.0.0.1", "localhost", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]", "0x7f.1", "2130706433", "0.0.0.0"],
)
def test_a_private_address_is_refused_unless_a_setting_allows_it(
    api: Api, environment: pytest.MonkeyPatch, host: str
) -> None:
    allow(environment, False)
    problem = assert_problem(api.post("/webhooks", json={**GOOD, "url": f"http://{host}/hook"}), 422)
    assert problem["code"] == "webhook_address_refused"
    assert [error["pointer"] for error in problem["errors"]] == ["/url"]


def test_a_change_to_a_private_address_is_refused_too(api: Api, environment: pytest.MonkeyPatch) -> None:
    hook = subscribed(api)
    allow(environment, False)
    problem = assert_problem(api.call("PATCH", f"/webhooks/{hook['id']}", json={"url": "http://10.0.0.1/"}), 422)
    assert problem["code"] == "webhook_address_refused"
    assert api.get(f"/webhooks/{hook['id']}").get_json()["url"] == URL
    assert refusals()[-1]["reason"] == "webhook_address_refused"


@each(
    "path",
    [
        "/webhooks/wh_000000000000", "/webhooks/nonsense", "/webhooks/%00", "/webhooks/wh_000000000000%0a",
        "/webhooks/wh_000000000000/deliveries",
    ],
)  # fmt: skip
def test_an_unknown_subscription_is_not_found(api: Api, path: str) -> None:
    assert_problem(api.get(path), 404)


def test_a_wrong_change_rotation_or_page_is_refused(api: Api) -> None:
    hook = subscribed(api)
    path = f"/webhooks/{hook['id']}"
    for changes in ({"topics": []}, {"url": "x"}, {"state": "disabled"}, {"description": 7}, {"failures": 0}):
        assert_problem(api.call("PATCH", path, json=changes), 422)
    for overlap in (-1, 604_801, True, "60", 1.5, 10**30, None):
        assert_problem(api.post(f"{path}/rotate", json={"overlap_seconds": overlap}), 422)
    for query in (
        "limit=0",
        "limit=1001",
        "limit=x",
        "cursor=x",
        "cursor=",
        "state=gone",
        "unknown=1",
        "limit=1&limit=2",
    ):
        assert_problem(api.get(f"{path}/deliveries?{query}"), 422)
    for query in ("limit=0", "cursor=x", "state=enabled"):
        assert_problem(api.get(f"/webhooks?{query}"), 422)
    for delivery in ("msg_000000000000", "x", "%00"):
        assert assert_problem(api.post(f"{path}/deliveries/{delivery}/resend"), 404)["code"] == "delivery_not_found"
    assert rows("SELECT revision FROM webhooks") == [{"revision": 1}]


def test_a_tenant_has_a_bounded_number_of_subscriptions(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.kernel.webhooks.subscriptions.MOST_IN_TENANT", 2)
    first = subscribed(api)
    subscribed(api)
    assert assert_problem(api.post("/webhooks", json=GOOD), 409)["code"] == "too_many_webhooks"
    api.call("DELETE", f"/webhooks/{first['id']}")
    subscribed(api)


def test_a_crowd_gets_no_more_subscriptions_than_a_tenant_may_have(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.kernel.webhooks.subscriptions.MOST_IN_TENANT", 3)
    with ThreadPoolExecutor(12) as pool:
        said = list(pool.map(lambda _: api.post("/webhooks", json=GOOD).status_code, range(36)))
    assert sorted(said) == [201] * 3 + [409] * 33


def test_the_list_of_subscriptions_is_paged(api: Api) -> None:
    ids = [subscribed(api)["id"] for _ in range(3)]
    page = api.get("/webhooks?limit=2").get_json()
    rest = api.get(f"/webhooks?limit=2&cursor={page['next_cursor']}").get_json()
    assert [row["id"] for row in page["webhooks"] + rest["webhooks"]] == ids[::-1]
    assert rest["next_cursor"] is None
