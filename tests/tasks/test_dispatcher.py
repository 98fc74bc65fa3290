"""The dispatcher on a real database and a real broker, one pass at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from models.kernel import clock
from models.kernel.errors import Unavailable
from models.kernel.messages import lists_of
from models.kernel.settings import settings
from orchestrator_tasks import hints, publisher
from orchestrator_tasks.dispatcher import Dispatcher
from tests.service.waiting import eventually
from tests.tasks.conftest import Clock
from tests.tasks.owed import Owed, change, rows, run_out

QUEUE = "io"


@pytest.fixture
def dispatcher(owed: Owed) -> Dispatcher:
    from orchestrator_tasks.tickets import tasks  # noqa: F401 - registers what the tickets owe

    return Dispatcher()


@pytest.fixture
def rested(database: str, set_to: Callable[..., None]) -> None:
    """The server has been up for longer than a lease."""
    set_to(lease_seconds=1)
    uptime = "SELECT clock_timestamp() - pg_postmaster_start_time() > interval '1 second' AS enough"
    eventually(lambda: rows(uptime)[0]["enough"])


def lengths(valkey: redis.Redis) -> list[int]:
    return [valkey.llen(name) for name in lists_of(QUEUE)]


def state_of(ticket_id: str) -> tuple[str, str | None]:
    (row,) = rows("SELECT state, error_code FROM tickets WHERE id = :id", id=ticket_id)
    return row["state"], row["error_code"]


def grow_old() -> None:
    change("UPDATE jobs SET dispatched_at = dispatched_at - interval '1 hour' WHERE dispatched_at IS NOT NULL")


def test_the_window_is_filled_and_not_exceeded(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, set_to: Callable[..., None]
) -> None:
    set_to(dispatch_window=5)
    for _ in range(8):
        owed()
    for _ in range(3):
        dispatcher.refill_all()
        assert sum(lengths(valkey)) == 5
    assert len(rows("SELECT FROM jobs WHERE dispatched_at IS NULL")) == 3


def test_the_window_counts_the_messages_of_all_priorities(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, set_to: Callable[..., None]
) -> None:
    set_to(dispatch_window=4)
    for priority in ("low", "high", "critical", "normal"):
        owed(priority=priority)
    dispatcher.refill_all()
    assert lengths(valkey) == [1, 1, 1, 1]
    owed(priority="critical")
    dispatcher.refill_all()
    assert lengths(valkey) == [1, 1, 1, 1]
    valkey.rpop(lists_of(QUEUE)[3])
    dispatcher.refill_all()
    assert lengths(valkey) == [2, 1, 1, 0]


def test_lost_messages_are_sent_again_once_they_are_old_and_the_queue_is_empty(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis
) -> None:
    for _ in range(3):
        owed()
    dispatcher.refill_all()
    valkey.flushall()
    dispatcher.refill_all()
    assert sum(lengths(valkey)) == 0, "they are not old yet"
    grow_old()
    dispatcher.refill_all()
    assert sum(lengths(valkey)) == 3


def test_nothing_is_sent_again_while_the_queue_holds_a_message(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis
) -> None:
    for _ in range(3):
        owed()
    dispatcher.refill_all()
    valkey.rpop(QUEUE + ":2", 2)
    grow_old()
    dispatcher.refill_all()
    assert sum(lengths(valkey)) == 1


def test_a_message_that_was_lost_again_and_again_is_sent_ever_less_often(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis
) -> None:
    owed()
    dispatcher.refill_all()
    change("UPDATE jobs SET dispatches = 3")
    patience = settings().redispatch_seconds
    for age, sent in ((2 * patience, 0), (5 * patience, 1)):
        valkey.flushall()
        change("UPDATE jobs SET dispatched_at = clock_timestamp() - make_interval(secs => :age)", age=age)
        dispatcher.refill_all()
        assert sum(lengths(valkey)) == sent


def test_a_publish_that_fails_is_made_up_for_later(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    owed()

    def fail(_jobs: Any) -> None:
        raise Unavailable("The broker cannot be reached", code="broker_unavailable")

    with monkeypatch.context() as broken:
        broken.setattr(publisher, "publish", fail)
        dispatcher.attempt(dispatcher.refill_all)
    assert sum(lengths(valkey)) == 0
    grow_old()
    dispatcher.attempt(dispatcher.refill_all)
    assert sum(lengths(valkey)) == 1


@pytest.mark.usefixtures("rested")
def test_a_silent_worker_is_reaped_its_outcome_unknown_and_its_robot_stopped(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis
) -> None:
    silent, lively = owed("drive", target="one"), owed("drive", target="two")
    attempt = silent.take()
    lively.take()
    run_out(attempt)
    dispatcher.sweep()
    assert state_of(silent.ticket_id) == ("failed", "outcome_unknown")
    assert state_of(lively.ticket_id) == ("executing", None)
    (order,) = rows("SELECT * FROM stop_orders")
    assert (order["target"], order["reason"]) == ("one", "outcome_unknown")
    assert order["fence"] > attempt.fence


@pytest.mark.usefixtures("rested")
def test_after_the_database_was_away_nobody_is_reaped_for_one_lease(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, time: Clock, away: threading.Event
) -> None:
    job = owed()
    run_out(job.take())
    away.set()
    dispatcher.attempt(dispatcher.sweep)
    away.clear()
    time.advance(settings().lease_seconds * 0.9)
    dispatcher.attempt(dispatcher.sweep)
    assert state_of(job.ticket_id) == ("executing", None)
    time.advance(settings().lease_seconds * 0.2)
    dispatcher.attempt(dispatcher.sweep)
    assert state_of(job.ticket_id) == ("failed", "outcome_unknown")


def test_a_server_that_has_just_started_makes_the_reaper_wait_one_lease(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, set_to: Callable[..., None]
) -> None:
    set_to(lease_seconds=3600)
    job = owed()
    run_out(job.take())
    dispatcher.sweep()
    assert state_of(job.ticket_id) == ("executing", None)


@pytest.mark.usefixtures("rested", "dead_broker")
def test_reaping_and_expiring_work_while_the_broker_is_away(dispatcher: Dispatcher, owed: Owed) -> None:
    silent, late = owed(), owed()
    run_out(silent.take())
    change("UPDATE jobs SET expires_at = clock_timestamp() WHERE id = :id", id=late.id)
    dispatcher.attempt(dispatcher.refill_all)
    dispatcher.attempt(dispatcher.sweep)
    assert state_of(silent.ticket_id) == ("failed", "outcome_unknown")
    assert state_of(late.ticket_id) == ("failed", "expired")


@pytest.mark.usefixtures("rested")
def test_a_broker_that_does_not_answer_is_waited_for_once_not_once_for_each_job(
    dispatcher: Dispatcher, owed: Owed, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    class Silent:
        def pipeline(self, transaction: bool) -> Any:
            tries.append(1)
            raise redis.TimeoutError("nobody answers")

    monkeypatch.setattr(hints, "client", Silent)
    for _ in range(5):
        run_out(owed().take())
    dispatcher.sweep()
    assert len(rows("SELECT FROM tickets WHERE state = 'failed'")) == 5
    assert len(tries) == 1


def test_a_dispatcher_that_is_told_to_stop_does_so_at_once_whatever_its_pace(
    dispatcher: Dispatcher, valkey: redis.Redis, set_to: Callable[..., None]
) -> None:
    set_to(dispatch_seconds=60)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(dispatcher.run)
        eventually(lambda: valkey.pubsub_numsub("orchestrator:work")[0][1], what="it listens for hints")
        dispatcher.stop()
        running.result(5)


@pytest.mark.parametrize("hint", ["", QUEUE])
def test_a_hint_of_work_wakes_the_dispatcher_whatever_its_pace(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, set_to: Callable[..., None], hint: str
) -> None:
    set_to(dispatch_seconds=60)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(dispatcher.run)
        try:
            eventually(lambda: valkey.pubsub_numsub("orchestrator:work")[0][1], what="it listens for hints")
            owed()
            valkey.publish("orchestrator:work", hint)
            eventually(lambda: sum(lengths(valkey)) == 1, what="the job was sent")
        finally:
            dispatcher.stop()
        running.result(5)


def test_a_hint_is_followed_while_a_sweep_takes_its_time(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeping, swept = threading.Event(), threading.Event()

    def sweep() -> None:
        sweeping.set()
        swept.wait(10)

    monkeypatch.setattr(dispatcher, "sweep", sweep)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(dispatcher.run)
        try:
            eventually(lambda: valkey.pubsub_numsub("orchestrator:work")[0][1], what="it listens for hints")
            assert sweeping.wait(5)
            owed()
            hints.owed(QUEUE)
            eventually(lambda: sum(lengths(valkey)) == 1, what="the job was sent")
        finally:
            swept.set()
            dispatcher.stop()
        running.result(5)


def test_a_dispatcher_that_cannot_hear_hints_any_more_ends_as_a_whole(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_seconds: float) -> set[str]:
        raise ValueError("a connection that somebody closed")

    monkeypatch.setattr(dispatcher.bell, "wait", fail)
    with pytest.raises(ValueError, match="somebody closed"):
        dispatcher.run()
    assert not [thread for thread in threading.enumerate() if thread.name == "pace"]


def test_room_is_counted_anew_only_when_half_of_it_is_used(
    dispatcher: Dispatcher,
    owed: Owed,
    valkey: redis.Redis,
    set_to: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_to(dispatch_window=4)
    counted: list[str] = []
    count = publisher.count_messages

    def note(queue: str) -> int:
        counted.append(queue)
        return count(queue)

    monkeypatch.setattr(publisher, "count_messages", note)
    for sent, counts in ((1, 1), (2, 1), (3, 1), (4, 2), (4, 3)):
        owed()
        dispatcher.refill(QUEUE)
        assert (sum(lengths(valkey)), len(counted)) == (sent, counts)


def test_room_is_counted_anew_after_a_publish_that_failed(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise Unavailable("The broker cannot be reached", code="broker_unavailable")

    owed()
    dispatcher.refill(QUEUE)
    with monkeypatch.context() as broken:
        broken.setattr(publisher, "publish", fail)
        owed()
        dispatcher.attempt(lambda: dispatcher.refill(QUEUE))
        broken.setattr(publisher, "count_messages", fail)
        ready = owed()
        dispatcher.attempt(lambda: dispatcher.refill(QUEUE))
    assert rows("SELECT dispatched_at FROM jobs WHERE id = :id", id=ready.id) == [{"dispatched_at": None}]


def test_a_window_that_was_filled_is_looked_at_again_without_any_hint(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, set_to: Callable[..., None]
) -> None:
    set_to(dispatch_seconds=60, dispatch_window=2)
    for _ in range(3):
        owed()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(dispatcher.run)
        try:
            eventually(lambda: sum(lengths(valkey)) == 2, what="the window is full")
            valkey.rpop(lists_of(QUEUE)[2])  # as a worker does, which tells nobody
            eventually(lambda: sum(lengths(valkey)) == 2, what="it is full again")
            valkey.rpop(lists_of(QUEUE)[2], 2)
            eventually(lambda: not dispatcher.full, what="there is nothing more")
        finally:
            dispatcher.stop()
        running.result(5)


def test_a_fast_queue_has_no_more_on_its_way_than_its_plan_wherever_the_messages_are(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher.tempos[QUEUE], "plan", lambda _window: (6, 3))
    for _ in range(9):
        owed()
    dispatcher.refill(QUEUE)
    assert sum(lengths(valkey)) == 2
    valkey.flushall()  # a worker has both messages, and has begun with none of their jobs
    dispatcher.refill(QUEUE)
    assert sum(lengths(valkey)) == 0
    change("UPDATE jobs SET dispatched_at = dispatched_at - interval '2 seconds' WHERE dispatched_at IS NOT NULL")
    dispatcher.refill(QUEUE)  # nobody has them, it seems
    assert sum(lengths(valkey)) == 1


def test_hints_name_the_queues_to_look_at(dispatcher: Dispatcher, valkey: redis.Redis) -> None:
    dispatcher.bell.listen()
    eventually(lambda: valkey.pubsub_numsub("orchestrator:work")[0][1], what="it listens for hints")
    dispatcher.next_sweep = clock.monotonic() + 60

    def named(hint: str | bytes) -> set[str]:
        valkey.publish("orchestrator:work", hint)
        return set(dispatcher.rest())

    assert named(QUEUE) == {QUEUE}
    assert named("no such queue") == set()
    assert named(b"\xff") == set()
    assert named("") == set(dispatcher.tempos)


def test_a_dispatcher_outlives_a_database_that_goes_away(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, away: threading.Event
) -> None:
    owed()
    away.set()
    dispatcher.attempt(dispatcher.refill_all)
    dispatcher.attempt(dispatcher.sweep)
    away.clear()
    dispatcher.attempt(dispatcher.refill_all)
    assert sum(lengths(valkey)) == 1


def grow_older(seconds: float) -> None:
    change("UPDATE jobs SET run_at = run_at - make_interval(secs => :s) WHERE fence IS NULL", s=seconds)
    change("UPDATE jobs SET dispatched_at = dispatched_at - make_interval(secs => :s) WHERE fence IS NULL", s=seconds)


def test_what_has_waited_too_long_is_sent_before_urgent_messages(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, set_to: Callable[..., None]
) -> None:
    """Were it sent as what it is, no worker would come to it for as long as urgent messages come."""
    set_to(dispatch_window=8, aging_seconds=60)
    owed(priority="low")
    grow_older(120)
    for _ in range(3):
        owed(priority="high")
    dispatcher.refill_all()
    assert lengths(valkey) == [1, 3, 0, 0]


def test_what_urgent_messages_pass_over_for_too_long_is_sent_anew_before_them_and_once(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, set_to: Callable[..., None]
) -> None:
    set_to(dispatch_window=8, aging_seconds=60)
    owed(priority="low")
    dispatcher.refill_all()
    grow_older(120)
    urgent = [owed(priority="high") for _ in range(3)]
    dispatcher.refill_all()
    assert lengths(valkey) == [0, 3, 0, 1], "nobody was read before it yet"
    urgent[0].take()
    for _ in range(3):
        dispatcher.refill_all()
    assert lengths(valkey) == [1, 3, 0, 1]


def test_what_is_passed_over_is_sent_anew_although_the_window_is_always_full(
    dispatcher: Dispatcher, owed: Owed, valkey: redis.Redis, set_to: Callable[..., None]
) -> None:
    """Whoever fills it again at once leaves no moment at which it is not."""
    set_to(dispatch_window=4, aging_seconds=60)
    owed(priority="low")
    dispatcher.refill_all()
    grow_older(120)
    urgent = [owed(priority="high") for _ in range(6)]
    dispatcher.refill_all()
    assert lengths(valkey) == [0, 3, 0, 1]
    urgent[0].take()
    for _ in range(2):  # a pace with a full window, then a message is taken and its place filled
        dispatcher.refill_all()
        valkey.rpop(lists_of(QUEUE)[1])
        dispatcher.refill(QUEUE)
    assert lengths(valkey)[0] == 1
