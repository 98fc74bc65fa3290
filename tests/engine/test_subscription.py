"""The subscription: what comes over the stream is in the log before it is acknowledged; nothing is lost or blocks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from models.engine.control import pause_ingestion
from models.engine.retention import tend_inputs
from models.kernel import session
from models.kernel.errors import Unavailable
from models.kernel.hints import redis_url
from models.kernel.session import transaction
from orchestrator_tasks.engine import ingest
from orchestrator_tasks.engine.ingest import MOST_REFUSED, Subscription
from tests.conftest import forget
from tests.engine.configured import configure
from tests.engine.market import SOURCES, event, snapshot, text_of
from tests.engine.test_inputs import append, rows
from tests.kernel.races import DEADLINE_SECONDS, alone, until

STREAM, GROUP = "market", "engine"
RETRY = {"min_delay_ms": 100, "max_delay_ms": 400, "max_attempts": 3}


@pytest.fixture(autouse=True)
def fresh_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ingest, "BLOCK_MS", 1)
    monkeypatch.setattr(ingest, "LOOK_SECONDS", 0.0)
    ingest.client.cache_clear()
    yield
    ingest.client.cache_clear()


@pytest.fixture
def stream(database: str, broker: str) -> Iterator[redis.Redis]:
    """An empty broker, and a configuration that reads events from its stream."""
    subscribe()
    with redis.Redis.from_url(redis_url(broker)) as client:
        client.flushall()
        yield client
        client.flushall()


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, no connection for a transaction is to be had."""
    gone = threading.Event()
    connect = session.engine

    def unless_gone() -> object:
        if gone.is_set():
            raise Unavailable("The database cannot answer right now", code="database_unavailable")
        return connect()

    monkeypatch.setattr(session, "engine", unless_gone)
    return gone


def subscribe(max_records: int = 100_000) -> None:
    subscription = {"stream": STREAM, "group": GROUP}
    configure(max_records=max_records, subscription=subscription, ingestion_retry=RETRY, buffer_retry=RETRY)


def send(stream: redis.Redis, *events: Any) -> None:
    for each in events:
        stream.xadd(STREAM, {"event": each if isinstance(each, bytes) else text_of(each)})


def kept() -> list[bytes]:
    return [row["event"].encode() for row in rows("SELECT event FROM engine_inputs ORDER BY ingest_seq")]


def pending(stream: redis.Redis) -> int:
    return int(stream.xpending(STREAM, GROUP)["pending"])  # type: ignore[index]


def is_paused() -> bool:
    return bool(rows("SELECT ingestion_paused AS paused FROM engine_control")[0]["paused"])


def test_events_are_appended_in_order_and_then_acknowledged(stream: redis.Redis) -> None:
    events = [event(), snapshot(), event("Novelty")]
    send(stream, *events)
    assert Subscription().attempt() == 0.0
    assert kept() == [text_of(each) for each in events]
    assert (pending(stream), stream.xlen(STREAM)) == (0, 0)


def test_what_came_before_the_first_consumer_is_read_too_and_the_stream_need_not_be_there(stream: redis.Redis) -> None:
    subscription = Subscription()
    assert subscription.attempt() == 0.0
    send(stream, event())
    subscription.attempt()
    assert len(kept()) == 1


def test_many_entries_become_few_batches(stream: redis.Redis) -> None:
    send(stream, *[event()] * 700)
    subscription = Subscription()
    subscription.attempt()
    subscription.attempt()
    assert len(kept()) == 700
    assert [row["n"] for row in rows("SELECT last_seq - first_seq + 1 AS n FROM engine_appends ORDER BY 1")] == [
        200,
        500,
    ]


def test_an_entry_that_is_no_event_is_put_aside_with_the_reason_and_holds_up_nothing(stream: redis.Redis) -> None:
    send(stream, event(), b"nonsense", event(source_id="nobody"))
    stream.xadd(STREAM, {"other": "field"})
    send(stream, snapshot())
    Subscription().attempt()
    assert kept() == [text_of(event()), text_of(snapshot())]
    assert pending(stream) == 0
    aside = [fields for _, fields in stream.xrange(STREAM + ":refused")]  # type: ignore[union-attr]
    assert [fields[b"refused_code"] for fields in aside] == [b"not_json", b"unknown_source", b"invalid_event"]
    assert aside[0][b"event"] == b"nonsense"
    assert aside[2][b"other"] == b"field"
    assert all(fields[b"refused_reason"] and fields[b"refused_id"] for fields in aside)


def test_of_the_refused_the_last_are_kept(stream: redis.Redis) -> None:
    before = stream.pipeline(transaction=False)
    for _ in range(MOST_REFUSED + 500):
        before.xadd(STREAM + ":refused", {"event": "old"})
    before.execute()
    send(stream, b"nonsense")
    Subscription().attempt()
    assert MOST_REFUSED <= stream.xlen(STREAM + ":refused") <= MOST_REFUSED + 200  # Redis drops whole nodes
    newest = stream.xrevrange(STREAM + ":refused", count=1)[0][1]  # type: ignore[index]
    assert newest[b"event"] == b"nonsense"


def test_entries_stay_while_another_group_reads_them_too(stream: redis.Redis) -> None:
    stream.xgroup_create(STREAM, "others", id="0", mkstream=True)
    send(stream, event())
    subscription = Subscription()
    subscription.attempt()
    subscription.attempt()
    assert (len(kept()), pending(stream), stream.xlen(STREAM)) == (1, 0, 1)


def test_nothing_is_deleted_before_a_group_that_was_made_a_moment_ago_has_read_it(stream: redis.Redis) -> None:
    subscription = Subscription()
    send(stream, event())
    subscription.attempt()
    assert stream.xlen(STREAM) == 0
    send(stream, snapshot())
    stream.xgroup_create(STREAM, "others", id="0")
    subscription.attempt()
    assert (len(kept()), pending(stream)) == (2, 0)
    assert len(stream.xreadgroup("others", "one", {STREAM: ">"})[0][1]) == 1  # type: ignore[index]
    stream.xgroup_destroy(STREAM, "others")
    send(stream, event())
    subscription.attempt()
    assert stream.xlen(STREAM) == 1  # what the other one has read is not ours to delete


def test_what_was_accepted_while_it_waited_holds_for_what_it_reads(
    stream: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "LOOK_SECONDS", 60.0)
    subscription = Subscription()
    subscription.attempt()
    read = subscription.read

    def wait_and_read(*names: str) -> Any:
        sources = [{"source_id": name, "symbols": ["NEW-USD"]} for name in SOURCES]
        configure(sources=sources, subscription={"stream": STREAM, "group": GROUP})
        send(stream, event(symbol="NEW-USD"))
        return read(*names)

    monkeypatch.setattr(subscription, "read", wait_and_read)
    subscription.attempt()
    assert kept() == [text_of(event(symbol="NEW-USD"))]


def test_what_it_read_while_the_engine_was_stopped_waits(stream: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    subscription = Subscription()
    subscription.attempt()
    read = subscription.read

    def wait_and_read(*names: str) -> Any:
        rows("UPDATE engine_control SET state = 'stopped' RETURNING id")
        send(stream, event())
        return read(*names)

    with monkeypatch.context() as patch:
        patch.setattr(subscription, "read", wait_and_read)
        subscription.attempt()
    assert (kept(), pending(stream)) == ([], 1)
    rows("UPDATE engine_control SET state = 'init' RETURNING id")
    subscription.attempt()
    assert (len(kept()), pending(stream)) == (1, 0)


def test_a_group_that_is_forgotten_is_made_anew_and_reads_from_the_beginning(stream: redis.Redis) -> None:
    subscription = Subscription()
    send(stream, event())
    subscription.attempt()
    stream.flushall()
    send(stream, snapshot())
    assert [subscription.attempt(), subscription.attempt()] == [0.0, 0.0]
    assert kept() == [text_of(event()), text_of(snapshot())]


def test_a_full_buffer_takes_no_more_from_the_stream_until_there_is_room(stream: redis.Redis) -> None:
    subscribe(max_records=40)
    append(*[event()] * 38, max_records=40)
    send(stream, *[event()] * 10)
    subscription = Subscription()
    waits = [subscription.attempt() for _ in range(8)]
    assert waits == [0.1, 0.2, 0.0, 0.1, 0.2, 0.4, 0.4, 0.4]  # of ten entries there is room for two
    assert is_paused()
    assert len(kept()) == 40
    send(stream, *[event()] * 5)
    subscription.attempt()
    held = pending(stream)
    assert 0 < held <= 10
    assert stream.xlen(STREAM) == 13

    def cut_and_read() -> bool:
        rows("UPDATE engine_symbols SET cut_end_ingest_seq = (SELECT last_seq FROM engine_head) RETURNING symbol")
        alone(tend_inputs)
        return subscription.attempt() == 0.0 and stream.xlen(STREAM) == 0

    until(cut_and_read, "everything is read")
    assert rows("SELECT last_seq FROM engine_head") == [{"last_seq": 53}]
    assert not is_paused()


def test_a_stopped_engine_takes_nothing_from_the_stream(stream: redis.Redis) -> None:
    subscription = Subscription()
    subscription.attempt()
    rows("UPDATE engine_control SET state = 'stopped' RETURNING id")
    send(stream, event())
    subscription.attempt()
    assert (kept(), pending(stream), stream.xlen(STREAM)) == ([], 0, 1)
    rows("UPDATE engine_control SET state = 'init' RETURNING id")
    subscription.attempt()
    assert len(kept()) == 1


def test_while_the_database_is_away_entries_wait_and_are_appended_once(
    stream: redis.Redis, away: threading.Event
) -> None:
    subscription = Subscription()
    subscription.attempt()
    send(stream, event(), snapshot())
    away.set()
    assert [subscription.attempt() for _ in range(5)] == [0.1, 0.2, 0.4, 0.4, 0.4]
    assert pending(stream) == 2
    away.clear()
    while subscription.attempt() or stream.xlen(STREAM):
        pass
    assert kept() == [text_of(event()), text_of(snapshot())]


def test_while_the_stream_is_away_the_retries_are_those_of_the_policy(
    stream: redis.Redis, environment: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    database = session.settings().database_url
    environment.setenv("BROKER_URL", f"redis+socket://{tmp_path}/nobody.sock")
    forget()
    ingest.client.cache_clear()
    assert session.settings().database_url == database
    subscription = Subscription()
    assert [subscription.attempt() for _ in range(4)] == [0.1, 0.2, 0.4, 0.4]
    assert is_paused()


def test_a_subscription_that_is_given_up_pauses_nothing_any_more(stream: redis.Redis) -> None:
    with transaction() as connection:
        pause_ingestion(connection, "the stream is away")
    configure()
    assert Subscription().attempt() == ingest.LOOK_SECONDS
    assert not is_paused()


def test_entries_of_a_dead_consumer_are_taken_over(stream: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    stream.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    send(stream, event(), snapshot())
    stream.xreadgroup(GROUP, "dead", {STREAM: ">"})
    Subscription().attempt()
    assert kept() == []
    monkeypatch.setattr(ingest, "CLAIM_IDLE_MS", 0)
    Subscription().attempt()
    assert kept() == [text_of(event()), text_of(snapshot())]
    assert pending(stream) == 0


def test_its_own_entries_of_before_are_taken_first(stream: redis.Redis) -> None:
    stream.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    send(stream, event())
    stream.xreadgroup(GROUP, "me", {STREAM: ">"})
    send(stream, snapshot())
    again = Subscription("me")
    again.attempt()
    assert kept() == [text_of(event())]
    again.attempt()
    assert kept() == [text_of(event()), text_of(snapshot())]


def test_an_entry_deleted_before_it_was_appended_is_told_and_holds_up_nothing(
    stream: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    stream.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    send(stream, event())
    stream.xreadgroup(GROUP, "me", {STREAM: ">"})
    stream.xtrim(STREAM, maxlen=0, approximate=False)
    send(stream, snapshot())
    Subscription("me").attempt()
    assert kept() == [text_of(snapshot())]
    told = [record for record in caplog.records if record.name == "orchestrator.failure"]
    assert [line.error_kind for line in told] == ["entries_deleted"]  # type: ignore[attr-defined]


def test_an_acknowledgement_that_fails_is_repeated_without_appending_again(
    stream: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = Subscription()
    subscription.attempt()
    send(stream, event())
    with monkeypatch.context() as patch:

        def cut_off(*_: object, **__: object) -> None:
            raise redis.ConnectionError("the connection is gone")

        patch.setattr(redis.client.Pipeline, "execute", cut_off)
        assert subscription.attempt() == 0.1
    assert (len(kept()), pending(stream)) == (1, 1)
    assert subscription.attempt() == 0.0
    assert (len(kept()), pending(stream), stream.xlen(STREAM)) == (1, 0, 0)


def test_two_consumers_share_the_stream_and_each_event_is_appended_once(stream: redis.Redis) -> None:
    numbered = [event(source_event_id=str(number)) for number in range(300)]
    send(stream, *numbered)
    readers = [Subscription("one"), Subscription("two")]
    threads = [threading.Thread(target=reader.run) for reader in readers]
    for thread in threads:
        thread.start()
    until(lambda: stream.xlen(STREAM) == 0, "all is read")
    for reader in readers:
        reader.stop()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()
    assert sorted(kept()) == sorted(text_of(each) for each in numbered)


def test_no_stream_is_read_without_one_in_the_configuration(database: str, broker: str) -> None:
    configure()
    assert Subscription().attempt() == ingest.LOOK_SECONDS
