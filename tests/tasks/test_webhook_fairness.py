"""Receivers that hang, and those that must be told all the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis

from models.kernel import clock
from models.kernel.backlog import Ready, wake_lanes
from models.kernel.session import statement
from orchestrator_tasks import publisher
from orchestrator_tasks.dispatcher import Dispatcher
from orchestrator_tasks.kernel import webhooks
from orchestrator_tasks.kernel.places import Places
from tests.service.waiting import eventually
from tests.tasks.receivers import Receiver, hang, receiving
from tests.tasks.webhooks import create_ticket, deliveries, feed, subscribe

THREADS = 16
TIMEOUT_SECONDS, PACE_SECONDS = 0.5, 0.05  # a twentieth of what they are by default: so is every wait below
HANGING, TICKETS = 30, 20


@pytest.fixture(autouse=True)
def fast(database: str, valkey: redis.Redis, set_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Any:
    set_to(
        webhook_allow_private="true",
        system_concurrency=THREADS,
        webhook_timeout=TIMEOUT_SECONDS,
        redispatch_seconds=0.5,
    )
    monkeypatch.setattr(webhooks, "LONGEST_TURN_SECONDS", 0.1)
    monkeypatch.setattr(webhooks, "SLOW_SECONDS", 0.3, raising=False)
    webhooks.room.cache_clear()
    yield
    webhooks.room.cache_clear()


class Desk:
    """A dispatcher and a system worker in one process, without a broker between them."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.sent: list[Future[int]] = []
        self.dispatcher = Dispatcher()
        self.swept_at = 0.0

    def count_messages(self, queue: str) -> int:
        return self.pool._work_queue.qsize() if queue == "hooks" else 0

    def publish(self, ready: Sequence[Ready], _together: int) -> None:
        self.sent = [future for future in self.sent if not future.done()]
        self.sent += [self.pool.submit(webhooks.deliver, job.id, job.subject_id) for job in ready]

    def work(self) -> None:
        feed()
        self.dispatcher.refill("hooks")
        if clock.monotonic() - self.swept_at > PACE_SECONDS:
            self.swept_at = clock.monotonic()
            with statement() as connection:
                wake_lanes(connection)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with ThreadPoolExecutor(THREADS) as pool:
        desk = Desk(pool)
        monkeypatch.setattr(publisher, "count_messages", desk.count_messages)
        monkeypatch.setattr(publisher, "publish", desk.publish)
        yield desk
        for one in desk.sent:
            one.cancel()


@pytest.fixture
def healthy() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


@pytest.fixture
def hanging() -> Iterator[Receiver]:
    with receiving() as server:
        server.act = hang
        yield server


def all_told(desk: Desk, healthy: Receiver, tenant: str) -> None:
    """A ticket is told of before the next is made, so that each finds those that hang at their work."""
    for number in range(1, TICKETS + 1):
        create_ticket()
        if tenant != "default":
            create_ticket(tenant)
        eventually(
            lambda owed=number: desk.work() or len(healthy.requests) >= owed,
            within=15,
            what=f"ticket {number} was told of",
        )


@pytest.mark.parametrize(("tenant", "most_seconds"), [("default", 20), ("other", 10)])
def test_thirty_receivers_that_hang_keep_no_healthy_one_from_being_told(
    desk: Desk, healthy: Receiver, hanging: Receiver, tenant: str, most_seconds: float
) -> None:
    for _ in range(HANGING):
        subscribe(hanging.url, "ticket_created")
    subscribe(healthy.url, "ticket_created", tenant=tenant)
    began = clock.monotonic()
    all_told(desk, healthy, tenant)
    assert clock.monotonic() - began < most_seconds


def test_one_tenant_leaves_places_and_the_slow_leave_more() -> None:
    places = Places(12)
    with contextlib.ExitStack() as held:

        def given(tenant: str, receiver: str) -> bool:
            return held.enter_context(places.place(tenant, receiver))

        slow = [f"slow-{number}" for number in range(6)]
        assert [places.remember(one, slow=True) for one in slow] == [True] * 6
        assert not places.remember(slow[0], slow=True)
        assert [given("a", one) for one in slow] == [True] * 4 + [False] * 2
        assert [given("a", f"new-{number}") for number in range(6)] == [True] * 5 + [False]
        assert not given("b", slow[5])
        assert not given("b", slow[0])  # it has a place
        assert [given("b", f"other-{number}") for number in range(4)] == [True] * 3 + [False]
    places.remember(slow[0], slow=False)
    assert not places.is_slow(slow[0])
    with places.place("a", slow[0]) as again:
        assert again
    assert not places.tenants


@pytest.mark.parametrize("total", [-3, 0, 1, 2])
def test_the_smallest_worker_still_has_a_place_for_anybody(total: int) -> None:
    places = Places(total)
    places.remember("slow", slow=True)
    with places.place("a", "slow") as given:
        assert given


def test_of_slow_receivers_a_bounded_number_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator_tasks.kernel.places.MOST_REMEMBERED", 2)
    places = Places(12)
    for name in "abc":
        places.remember(name, slow=True)
    assert [places.is_slow(name) for name in "abc"] == [False, True, True]


def test_each_of_those_that_hang_is_tried_before_any_is_tried_often(desk: Desk, hanging: Receiver) -> None:
    subscribed = {str(subscribe(hanging.url, "ticket_created")[0]["id"]) for _ in range(HANGING)}
    for _ in range(8):
        create_ticket()

    def tries() -> dict[str, int]:
        counted = dict.fromkeys(subscribed, 0)
        for row in deliveries():
            counted[row["webhook_id"]] += row["tries"]
        return counted

    eventually(lambda: desk.work() or (tries() and min(tries().values()) >= 1), within=20, what="each was tried")
    assert max(tries().values()) <= 4
