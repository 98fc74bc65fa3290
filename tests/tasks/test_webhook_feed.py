"""The feed of the webhooks: each event becomes one delivery for each that wants it, whoever feeds and whenever."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from sqlalchemy import event, text

from models.kernel.ledger import note
from models.kernel.session import engine, single_statements, statement, transaction
from models.kernel.webhooks import feeding, subscriptions
from models.kernel.webhooks.feeding import feed_webhooks
from orchestrator_tasks.kernel.feeder import Feeder
from tests.service.waiting import eventually
from tests.tasks.owed import change, rows
from tests.tasks.webhooks import caller_of, create_ticket, deliveries, feed, subscribe

URL = "http://192.0.2.1/hook"  # nobody calls it here


@pytest.fixture(autouse=True)
def fresh(database: str) -> None:
    """A database of the test's own."""


def position() -> int:
    return int(rows("SELECT seq FROM webhook_position")[0]["seq"])


def last_seq() -> int:
    return int(rows("SELECT last_value FROM ledger_seq")[0]["last_value"])


def told_topics() -> list[str]:
    return [row["topic"] for row in deliveries()]


@pytest.mark.parametrize(
    ("topics", "heard"),
    [
        (["*"], True),
        (["ticket_created"], True),
        (["ticket_*"], True),
        (["*_created"], True),
        (["*cket_cre*"], True),
        (["execution_*", "ticket_created"], True),
        (["ticket"], False),
        (["ticketXcreated"], False),
        (["ticket_creat_d"], False),
        (["created"], False),
        (["execution_*"], False),
    ],
)
def test_a_filter_matches_whole_topics_and_only_its_stars_stand_for_more(topics: list[str], heard: bool) -> None:
    subscribe(URL, *topics)
    create_ticket()
    assert feed() == int(heard)


def test_a_subscription_hears_its_own_tenant_alone() -> None:
    subscribe(URL, tenant="acme")
    subscribe(URL, "ticket_*", tenant="default")
    create_ticket("acme")
    create_ticket("other")
    assert feed() == 1
    assert [row["tenant"] for row in deliveries()] == ["acme"]


def test_what_happened_before_the_subscription_is_not_for_it() -> None:
    create_ticket()
    subscribe(URL)
    create_ticket()
    assert feed() == 1


def test_deliveries_make_no_deliveries() -> None:
    subscribe(URL)
    create_ticket()
    assert feed() == 1
    assert rows("SELECT count(*) AS n FROM ledger WHERE subject_kind = 'webhook_delivery'")[0]["n"] == 1
    assert feed() == 0
    assert position() == last_seq()


def test_a_subscription_hears_of_others_and_never_of_itself() -> None:
    first, _ = subscribe(URL, "webhook_*")
    second, _ = subscribe(URL, "webhook_*")
    with statement() as connection:
        subscriptions.disable_webhook(connection, second["id"], "test", "test", "c-1")
    feed()
    assert [(row["webhook_id"], row["topic"]) for row in deliveries()] == [
        (first["id"], "webhook_created"),
        (first["id"], "webhook_disabled"),
    ]


def test_what_is_not_for_the_public_stays_in_the_ledger() -> None:
    subscribe(URL)
    ticket_id = create_ticket()
    with statement() as connection:
        for topic in ("refused", "late_outcome"):
            note(connection, topic, subject=("ticket", ticket_id), actor="a", correlation_id="c")
    feed()
    assert told_topics() == ["ticket_created", "late_outcome"]


def test_nothing_secret_is_in_what_is_told() -> None:
    made, secret = subscribe("http://192.0.2.1/hook?token=hush")
    subscribe(URL)
    with statement() as connection:
        _, second = subscriptions.rotate_secret(connection, made["id"], 10, caller_of())
        subscriptions.change_webhook(connection, made["id"], {"url": "http://192.0.2.1/?token=hush"}, caller_of())
    feed()
    said = str(rows("SELECT body FROM ledger")) + str([row["payload"] for row in deliveries()])
    assert "webhook_rotated" in str(rows("SELECT topic FROM ledger"))
    for hidden in (secret, second, "hush"):
        assert hidden not in said


def test_a_number_drawn_early_and_committed_late_is_delivered_too() -> None:
    subscribe(URL)
    with ThreadPoolExecutor(1) as pool:
        with transaction() as connection:
            connection.execute(text("SELECT set_config('application_name', 'slow', true)"))
            late = note_for_ticket(connection)
            create_ticket()
            feeding = pool.submit(feed_webhooks)
            assert feeding.result(20) == (0, False)  # the writer outlasts the patience: nothing moves
            assert deliveries() == []
        assert feed() == 3
    assert [row["seq"] for row in deliveries()] == sorted(row["seq"] for row in deliveries())
    assert late in [row["seq"] for row in deliveries()]


def note_for_ticket(connection: Any) -> int:
    ticket_id = create_ticket()
    note(connection, "ticket_queued", subject=("ticket", ticket_id), actor="a", correlation_id="c")
    return int(connection.scalar(text("SELECT currval('ledger_seq')")))


def test_two_feeders_at_once_deliver_each_event_once() -> None:
    subscribe(URL, "ticket_*")
    for _ in range(30):
        create_ticket()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(40):
            list(pool.map(lambda _n: feed_webhooks(2), range(4)))
    assert len(deliveries()) == 30
    assert position() == last_seq()


def test_a_feeder_that_finds_another_at_work_leaves_it_alone() -> None:
    subscribe(URL)
    create_ticket()
    with transaction() as connection:
        connection.execute(text("SELECT seq FROM webhook_position FOR UPDATE"))
        assert feed_webhooks() == (0, False)
    assert feed() == 1


def test_a_pass_reads_no_more_than_its_bound_and_says_that_there_is_more() -> None:
    subscribe(URL, "ticket_*")
    subscribe(URL, "ticket_*")
    for _ in range(6):
        create_ticket()
    made, more = feed_webhooks(4)
    assert (made <= 4, more) == (True, True)
    assert made + feed() == 12


def test_a_pass_that_fails_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    subscribe(URL)
    create_ticket()
    before = position()
    with monkeypatch.context() as broken:
        broken.setattr(feeding, "_MOVE_ON", text("SELECT 1 / 0 WHERE :upto > 0"))
        with pytest.raises(Exception, match="division by zero"):
            feed_webhooks()
    assert (position(), deliveries()) == (before, [])
    assert feed() == 1


def statements_of(act: Callable[[], Any]) -> int:
    count: list[int] = []

    def counting(*_: object) -> None:
        count.append(1)

    for made in (engine(), single_statements()):
        event.listen(made, "before_cursor_execute", counting)
    act()
    for made in (engine(), single_statements()):
        event.remove(made, "before_cursor_execute", counting)
    return len(count)


def test_while_nobody_subscribes_a_pass_is_a_statement_or_two() -> None:
    create_ticket()
    assert statements_of(feed_webhooks) == 2
    assert position() == last_seq()
    assert statements_of(feed_webhooks) == 1
    subscribe(URL)
    assert feed() == 0
    assert statements_of(feed_webhooks) == 1


def test_a_subscription_made_while_the_position_is_passed_by_loses_nothing() -> None:
    """The pass saw nobody; somebody subscribed; what was told after that is still beyond the position."""
    create_ticket()
    with statement() as connection:
        seen = connection.execute(feeding._LOOK).one()
        subscribe(URL)
        create_ticket()
        connection.execute(feeding._PASS_BY, {"upto": seen.last})
    assert feed() == 1


def test_the_feeder_s_thread_feeds_until_it_is_stopped(valkey: redis.Redis) -> None:
    feeder = Feeder().start()
    try:
        subscribe(URL, "ticket_*")
        create_ticket()
        eventually(lambda: len(deliveries()) == 1, what="the feeder fed")
        change("UPDATE webhooks SET state = 'disabled', disabled_reason = 'test'")
        eventually(lambda: deliveries()[0]["state"] == "failed", what="the feeder ended what is owed to the disabled")
    finally:
        feeder.stop()
    assert not feeder.thread.is_alive()
