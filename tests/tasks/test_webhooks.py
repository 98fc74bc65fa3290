"""Deliveries to real receivers: what is sent, what is tried again, and what ends a subscription."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import redis
from standardwebhooks import Webhook

from models.kernel.clock import utcnow
from models.kernel.jobs import Held
from models.kernel.session import statement
from models.kernel.webhooks import deliveries as kernel
from models.kernel.webhooks import subscriptions
from orchestrator_tasks.dispatcher import Dispatcher
from orchestrator_tasks.keeper import Keeper
from orchestrator_tasks.kernel import posting, webhooks
from tests.service.waiting import eventually
from tests.tasks.owed import change, rows
from tests.tasks.receivers import Receiver, flood, hang, receiving, status, trickle
from tests.tasks.webhooks import (
    caller_of,
    create_ticket,
    deliver_all,
    deliver_due,
    deliveries,
    delivery,
    feed,
    make_due,
    subscribe,
    topics_of,
    webhook,
)


@pytest.fixture(autouse=True)
def open_to_loopback(database: str, valkey: redis.Redis, set_to: Callable[..., None]) -> None:
    set_to(webhook_allow_private="true")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


@pytest.fixture
def own_keeper(monkeypatch: pytest.MonkeyPatch) -> Keeper:
    keeper = Keeper()
    monkeypatch.setattr(webhooks, "keeper", keeper)
    return keeper


def owed_to(receiver: Receiver) -> str:
    """One delivery is owed; answers the subscription's id."""
    made, _ = subscribe(receiver.url, "ticket_created")
    create_ticket()
    assert feed() == 1
    return str(made["id"])


def age(state: str = "delivered") -> None:
    change("UPDATE webhook_deliveries SET ended_at = now() - interval '8 days' WHERE state = :state", state=state)


def test_an_event_arrives_signed_and_whole(receiver: Receiver) -> None:
    made, secret = subscribe(receiver.url)
    ticket_id = create_ticket()
    assert feed() == 1
    assert deliver_all() == ["delivered"]
    (request,) = receiver.requests
    assert Webhook(secret).verify(request.body, request.headers) == request.event
    assert request.headers["host"] == f"127.0.0.1:{receiver.server_port}"
    assert request.headers[":path"] == "/hook?who=me"
    assert request.headers["content-type"] == "application/json"
    event = request.event
    (row,) = rows("SELECT * FROM ledger WHERE subject_id = :id", id=ticket_id)
    assert event["type"] == "ticket_created"
    assert event["timestamp"] == row["at"].isoformat()
    data = event["data"]
    assert (data["seq"], data["ticket_id"], data["command"], data["target"]) == (row["seq"], ticket_id, "scan", "rover")
    assert (data["revision"], data["from"], data["to"], data["data"]) == (1, None, "pending", row["body"])
    assert delivery()["state"] == "delivered"
    assert delivery()["status_code"] == 204
    assert request.id == delivery()["id"]
    assert webhook(made["id"])["failures"] == 0
    assert rows("SELECT * FROM jobs") == []


def test_no_log_line_shows_a_secret_or_the_url_that_may_hold_one(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.acts = [status(500)]
    _, secret = subscribe(receiver.url)
    create_ticket()
    feed()
    assert deliver_all() == ["pending"]
    make_due()
    assert deliver_all() == ["delivered"]
    said = str([vars(record) for record in caplog.records])
    assert "not delivered, to be tried again" in said
    for hidden in (secret, "who=me"):
        assert hidden not in said


def test_deliveries_arrive_in_the_ledger_s_order_one_at_a_time(receiver: Receiver) -> None:
    subscribe(receiver.url)
    tickets = [create_ticket() for _ in range(20)]
    assert feed() == 20
    assert len(rows("SELECT * FROM jobs WHERE NOT waits")) == 1
    assert set(deliver_all()) == {"delivered"}
    assert [request.event["data"]["ticket_id"] for request in receiver.requests] == tickets


def test_one_message_carries_out_a_lane_for_a_while(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    subscribe(receiver.url)
    receiver.acts = [status(204), status(500)]
    for _ in range(5):
        create_ticket()
    feed()
    (head,) = rows("SELECT id, subject_id FROM jobs WHERE NOT waits")
    with monkeypatch.context() as short:
        short.setattr(webhooks, "LONGEST_TURN_SECONDS", 0.0)
        assert webhooks.deliver(head["id"], head["subject_id"]) == 1
    (head,) = rows("SELECT id, subject_id FROM jobs WHERE NOT waits")
    assert webhooks.deliver(head["id"], head["subject_id"]) == 4
    assert len(receiver.requests) == 5
    assert webhooks.deliver(head["id"], head["subject_id"]) == 0


def test_a_refusal_is_tried_again_ever_later_under_the_same_id_and_at_last_given_up(
    receiver: Receiver, set_to: Callable[..., None]
) -> None:
    set_to(webhook_attempts=4)
    receiver.act = status(500)
    owed_to(receiver)
    pauses = []
    for _ in range(3):
        assert deliver_all() == ["pending"]
        assert deliver_due() == []  # not yet
        pauses.append(round((delivery()["next_at"] - delivery()["updated_at"]).total_seconds()))
        make_due()
    assert pauses == [5, 10, 20]
    assert deliver_all() == ["failed"]
    assert len(receiver.requests) == 4
    assert len({request.id for request in receiver.requests}) == 1
    assert (delivery()["tries"], delivery()["status_code"], delivery()["error_code"]) == (4, 500, "receiver_refused")
    assert rows("SELECT * FROM jobs") == []


def test_what_failed_for_now_lets_those_after_it_pass_and_holds_up_no_new_one(receiver: Receiver) -> None:
    subscribe(receiver.url)
    receiver.acts = [status(503)]
    first, second = create_ticket(), create_ticket()
    feed()
    assert deliver_all() == ["pending", "delivered"]
    third = create_ticket()
    feed()
    assert deliver_all() == ["delivered"]
    make_due()
    assert deliver_all() == ["delivered"]
    order = [request.event["data"]["ticket_id"] for request in receiver.requests]
    assert order == [first, second, third, first]


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("60", 60, 60),
        ("1", 5, 5),
        ("999999999999999999999", 3600, 3600),
        ("soon", 5, 5),
        ("-5", 5, 5),
        ("\xb2", 5, 5),
        ("Mon, 99 Foo 2026 99:99:99 GMT", 5, 5),
    ],
    ids=["seconds", "too soon", "too late", "nonsense", "negative", "superscript", "no date"],
)
def test_the_receiver_s_retry_after_is_honoured_within_bounds(
    receiver: Receiver, said: str, least: int, most: int
) -> None:
    assert_pause(receiver, said, least, most)


def test_a_retry_after_that_is_a_date_is_honoured_too(receiver: Receiver) -> None:
    """The date is made now, not when the tests were collected: by then it may have passed."""
    assert_pause(receiver, (utcnow() + timedelta(seconds=120)).strftime("%a, %d %b %Y %H:%M:%S GMT"), 60, 120)


def assert_pause(receiver: Receiver, said: str, least: int, most: int) -> None:
    receiver.act = status(429, Retry_After=said)
    owed_to(receiver)
    assert deliver_all() == ["pending"]
    pause = (delivery()["next_at"] - delivery()["updated_at"]).total_seconds()
    assert least - 5 < pause < most + 1


@pytest.mark.parametrize("act", [hang, trickle], ids=["hangs", "trickles"])
def test_a_receiver_that_never_ends_is_hung_up_on(
    receiver: Receiver, act: Callable[..., None], set_to: Callable[..., None]
) -> None:
    set_to(webhook_timeout=0.3)
    receiver.act = act
    owed_to(receiver)
    began = utcnow()
    assert deliver_all() == ["pending"]
    assert (utcnow() - began).total_seconds() < 5
    assert delivery()["error_code"] == "receiver_timeout"


def test_a_body_without_end_is_not_read(receiver: Receiver) -> None:
    receiver.act = flood
    owed_to(receiver)
    assert deliver_all() == ["delivered"]


def test_headers_without_end_are_a_failure(receiver: Receiver) -> None:
    def pile(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2**20)

    receiver.act = pile
    owed_to(receiver)
    assert deliver_all() == ["pending"]
    assert delivery()["error_code"] == "receiver_unreachable"


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    with receiving() as other:
        receiver.act = status(302, Location=other.url)
        owed_to(receiver)
        assert deliver_all() == ["pending"]
        assert other.requests == []
    assert (delivery()["status_code"], delivery()["error_code"]) == (302, "receiver_redirected")


def test_nobody_at_home_is_tried_again(receiver: Receiver) -> None:
    owed_to(receiver)
    receiver.socket.close()
    assert deliver_all() == ["pending"]
    assert delivery()["error_code"] == "receiver_unreachable"


def test_410_disables_at_once_and_what_that_strands_counts_as_no_failure(receiver: Receiver) -> None:
    receiver.act = status(410)
    webhook_id = owed_to(receiver)
    create_ticket()
    feed()
    assert deliver_all() == ["failed"] * 2
    assert webhook(webhook_id)["failures"] == 1
    assert (webhook(webhook_id)["state"], webhook(webhook_id)["disabled_reason"]) == ("disabled", "receiver_gone")


def test_failures_in_a_row_disable_and_an_event_tells_all_but_itself(
    receiver: Receiver, set_to: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    set_to(webhook_attempts=1, webhook_disable_after=3)
    webhook_id = owed_to(receiver)
    receiver.acts = [status(500), status(500), status(204)]
    create_ticket()
    create_ticket()
    feed()
    deliver_all()
    assert (webhook(webhook_id)["state"], webhook(webhook_id)["failures"]) == ("enabled", 0)  # the third arrived
    with receiving() as other:
        subscribe(other.url, "webhook_*")
        receiver.act = status(500)
        for _ in range(3):
            create_ticket()
        feed()
        deliver_all()
        assert (webhook(webhook_id)["state"], webhook(webhook_id)["failures"]) == ("disabled", 3)
        assert webhook(webhook_id)["disabled_reason"] == "too_many_failures"
        create_ticket()
        heard = len(receiver.requests)
        feed()
        deliver_all()
        told = [request.event for request in other.requests if request.event["type"] == "webhook_disabled"]
        (said,) = [event["data"]["data"] for event in told]
        assert said == {"webhook_id": webhook_id, "failures": 3, "reason": "too_many_failures"}
        assert len(receiver.requests) == heard
    assert "webhook disabled" in [record.message for record in caplog.records]


def test_what_was_owed_when_it_was_disabled_fails_and_enabling_starts_from_now(receiver: Receiver) -> None:
    webhook_id = owed_to(receiver)
    create_ticket()
    feed()
    with statement() as connection:
        subscriptions.disable_webhook(connection, webhook_id, "by hand", "test", "c-1")
    create_ticket()  # while it is disabled
    assert feed() == 0
    assert deliver_due() == ["failed"]  # what a worker took first
    with statement() as connection:
        assert kernel.strand_deliveries(connection) == 1
        assert kernel.strand_deliveries(connection) == 0
    assert [row["error_code"] for row in deliveries()] == ["webhook_disabled"] * 2
    assert rows("SELECT * FROM jobs") == []
    with statement() as connection:
        subscriptions.enable_webhook(connection, webhook_id, caller_of())
    last = create_ticket()
    assert feed() == 1
    assert deliver_all() == ["delivered"]
    assert [request.event["data"]["ticket_id"] for request in receiver.requests] == [last]


def test_both_secrets_sign_until_the_overlap_is_over(receiver: Receiver) -> None:
    made, old = subscribe(receiver.url)
    with statement() as connection:
        _, new = subscriptions.rotate_secret(connection, made["id"], 3600, caller_of())
    create_ticket()
    feed()
    deliver_all()
    request = receiver.requests[-1]
    assert Webhook(old).verify(request.body, request.headers) == Webhook(new).verify(request.body, request.headers)
    assert len(request.headers["webhook-signature"].split()) == 2
    change("UPDATE webhooks SET previous_until = now() - interval '1 ms'")
    create_ticket()
    feed()
    deliver_all()
    request = receiver.requests[-1]
    assert len(request.headers["webhook-signature"].split()) == 1
    assert Webhook(new).verify(request.body, request.headers)


def test_a_worker_that_died_is_followed_by_another_try_under_the_same_id(
    receiver: Receiver, set_to: Callable[..., None]
) -> None:
    owed_to(receiver)
    (job,) = rows("SELECT * FROM jobs")
    with statement() as connection:
        taken = kernel.take_delivery(connection, job["id"], "worker:dying")
    assert taken is not None
    assert webhooks.perform(job["id"]) == "not taken"
    webhooks.send(taken, {"url": receiver.url, "secrets": ["whsec_" + "A" * 32]})  # it arrived, and nobody says so
    set_to(lease_seconds=1)
    change("UPDATE jobs SET lease_until = now() - interval '1 ms'")
    eventually(lambda: Dispatcher().sweep() or delivery()["state"] == "pending", what="the reaper has seen it")
    assert delivery()["error_code"] == "worker_lost"
    make_due()
    assert deliver_all() == ["delivered"]
    assert receiver.requests[0].id == receiver.requests[1].id
    assert delivery()["tries"] == 2


def test_a_lost_try_s_late_outcome_changes_nothing(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    owed_to(receiver)
    (job,) = rows("SELECT * FROM jobs")

    def slow(taken: Any, _receiver: Any) -> posting.Answer:
        with statement() as connection:
            held = Held(job["id"], taken["id"], taken["fence"], taken["attempt"], taken["max_attempts"])
            kernel.lose_deliveries(connection, [held])
        return posting.Answer(204)

    with monkeypatch.context() as late:
        late.setattr(webhooks, "send", slow)
        assert webhooks.perform(job["id"]) == "lease lost"
    assert delivery()["state"] == "pending"


def test_the_last_try_lost_fails_the_delivery(receiver: Receiver, set_to: Callable[..., None]) -> None:
    set_to(webhook_attempts=1)
    webhook_id = owed_to(receiver)
    (job,) = rows("SELECT * FROM jobs")
    with statement() as connection:
        taken = kernel.take_delivery(connection, job["id"], "worker:dying")
        assert taken is not None
        kernel.lose_deliveries(connection, [Held(job["id"], taken["id"], taken["fence"], 1, 1)])
    assert (delivery()["state"], delivery()["error_code"]) == ("failed", "worker_lost")
    assert webhook(webhook_id)["failures"] == 1


def test_a_process_that_ends_gives_its_try_back_uncounted(receiver: Receiver, own_keeper: Keeper) -> None:
    receiver.act = hang
    owed_to(receiver)
    (job,) = rows("SELECT * FROM jobs")
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(webhooks.perform, job["id"])
        assert receiver.came.wait(20)
        own_keeper.shutdown_at = 0.0
        with own_keeper.changed:
            own_keeper.changed.notify_all()
        assert going.result(20) == "given back"
    assert (delivery()["state"], delivery()["tries"]) == ("pending", 0)
    own_keeper.shutdown_at = None
    receiver.act = status(204)
    assert deliver_all() == ["delivered"]


def test_a_delivery_that_nobody_came_to_expires(receiver: Receiver) -> None:
    owed_to(receiver)
    change("UPDATE jobs SET expires_at = now() - interval '1 s'")
    assert deliver_due() == ["not taken"]
    Dispatcher().sweep()
    assert (delivery()["state"], delivery()["error_code"]) == ("failed", "expired")


def test_a_resent_delivery_arrives_again_under_its_old_id(receiver: Receiver) -> None:
    owed_to(receiver)
    deliver_all()
    with statement() as connection:
        kernel.resend_delivery(connection, delivery(), caller_of())
    assert deliver_all() == ["delivered"]
    first, second = receiver.requests
    assert (first.id, first.body) == (second.id, second.body)
    assert topics_of("webhook_delivery").count("delivery_delivered") == 2


def test_old_deliveries_are_forgotten_and_a_deleted_subscription_with_them(receiver: Receiver) -> None:
    webhook_id = owed_to(receiver)
    deliver_all()
    with statement() as connection:
        subscriptions.delete_webhook(connection, webhook_id, caller_of())
        assert kernel.forget_old_deliveries(connection) == 0
        assert webhook(webhook_id)["secret"] is None
        age()
        assert kernel.forget_old_deliveries(connection) == 1
    assert rows("SELECT * FROM webhooks") == []


def test_an_address_that_turns_private_after_the_subscription_is_never_called(
    receiver: Receiver, set_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook_id = owed_to(receiver)
    set_to(webhook_allow_private="false")
    assert deliver_all() == ["failed"]
    assert delivery()["error_code"] == "webhook_address_refused"
    assert receiver.requests == []
    assert webhook(webhook_id)["failures"] == 1


def test_the_address_that_was_checked_is_the_one_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when it is checked and private a moment later reaches what was checked."""
    looked: list[str] = []
    really = socket.getaddrinfo

    def rebinding(host: str, port: int, *more: Any, **options: Any) -> list[Any]:
        if host == "hooks.example":
            looked.append(host)
            host = "127.0.0.1" if len(looked) == 1 else "127.0.0.2"
        return list(really(host, port, *more, **options))

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    subscribe(f"http://hooks.example:{receiver.server_port}/in")
    create_ticket()
    feed()
    assert deliver_all() == ["delivered"]
    assert receiver.requests[0].headers["host"] == f"hooks.example:{receiver.server_port}"
    assert looked == ["hooks.example"]


def test_receivers_that_hang_leave_threads_for_others(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, set_to: Callable[..., None]
) -> None:
    set_to(system_concurrency=5)
    webhooks.room.cache_clear()
    owed_to(receiver)
    (job,) = rows("SELECT id, subject_id FROM jobs")
    with webhooks.room().place("default", "another") as given:
        assert given
        assert webhooks.deliver(job["id"], job["subject_id"]) == 0
    assert receiver.requests == []
    assert webhooks.deliver(job["id"], job["subject_id"]) == 1
    webhooks.room.cache_clear()


def test_a_hanging_receiver_holds_one_thread_and_no_other_receiver(receiver: Receiver, valkey: redis.Redis) -> None:
    receiver.act = hang
    with receiving() as other:
        subscribe(receiver.url, "ticket_*")
        subscribe(other.url, "ticket_*")
        for _ in range(3):
            create_ticket()
        feed()
        held = rows("SELECT id FROM jobs WHERE NOT waits ORDER BY id")
        assert len(held) == 2
        with ThreadPoolExecutor(2) as pool:
            going = [pool.submit(webhooks.perform, job["id"]) for job in held]
            eventually(lambda: other.requests and receiver.requests, what="both were called")
            eventually(lambda: len([one for one in going if one.done()]) == 1, what="one is done")
            while len(other.requests) < 3:
                deliver_due()
            waiting = rows("SELECT id FROM jobs WHERE waits ORDER BY id")
            assert [webhooks.perform(job["id"]) for job in waiting] == ["not taken"] * 2
            receiver.over.set()
        assert len(receiver.requests) == 1
