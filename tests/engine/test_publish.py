"""Outputs pushed to a Redis stream: in order, none left out, and what happens when it takes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from models.engine import control, operations, publications
from models.engine.config import read_config
from models.kernel import clock
from models.kernel.errors import Unavailable
from models.kernel.hints import redis_url
from models.kernel.horizon import get_last_seq
from models.kernel.ledger import note
from models.kernel.session import statement, transaction
from orchestrator_tasks.engine import planner, publish
from orchestrator_tasks.engine.publish import Publisher
from tests.engine import desk
from tests.kernel.races import together, until

RETRY = {"min_delay_ms": 60, "max_delay_ms": 60, "max_attempts": 5}
Entries = list[dict[str, str]]


@pytest.fixture(autouse=True)
def own_client() -> Iterator[None]:
    publish.client.cache_clear()
    yield
    publish.client.cache_clear()


@pytest.fixture
def valkey(broker: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url(broker), decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def stream(database: str, valkey: redis.Redis) -> Iterator[str]:
    """The name of a stream of this test's own, to which outputs are published."""
    name = f"outputs:{database.rpartition('/')[2]}"
    desk.running(output_publish={"stream": name, "max_pending": 8}, publish_retry=RETRY)
    yield name
    valkey.delete(name)


def finished_runs(count: int, first: int = 1) -> None:
    """So many runs of BTC-USD, each with two outputs."""
    for tick in range(first, first + count):
        at = desk.START_MS + tick * desk.INTERVAL_MS
        desk.append(desk.inputs(at), now_ms=at)
        assert desk.plan(at + desk.DELAY_MS + 1).runs == 1
        desk.finish_all()


def publisher() -> Publisher:
    made = Publisher()
    made.find_config()
    made.look()
    return made


def published(valkey: redis.Redis, stream: str) -> Entries:
    entries: Any = valkey.xrange(stream)
    return [fields for _, fields in entries]


def test_what_else_the_ledger_is_told_makes_nothing_due(stream: str) -> None:
    with statement() as connection:
        assert control.get_status(connection)["state"] == "running"
        assert not publications.is_due(connection)
    finished_runs(1)
    with statement() as connection:
        assert publications.is_due(connection)
    publisher().attempt()
    with statement() as connection:
        pushed = publications.find_publication(connection)
        note(connection, "something_else", subject=("ticket", "t"), actor="test", correlation_id="c")
        assert pushed is not None
        assert get_last_seq(connection) > pushed["seq"]
        assert not publications.is_due(connection)


def test_outputs_are_pushed_in_order_with_what_consumers_choose_by(valkey: redis.Redis, stream: str) -> None:
    finished_runs(2)
    publisher().attempt()
    assert published(valkey, stream) == [
        {name: str(row[name]) for name in ("event", "event_type", "symbol", "run_id", "seq")} for row in desk.outputs()
    ]


def test_what_was_accepted_a_moment_ago_holds_for_the_next_output(valkey: redis.Redis, stream: str) -> None:
    made = publisher()
    made.attempt()
    desk.configure(output_publish={"stream": f"{stream}:new"})
    finished_runs(1)
    made.attempt()
    assert (len(published(valkey, stream)), len(published(valkey, f"{stream}:new"))) == (0, 2)
    valkey.delete(f"{stream}:new")


def test_what_was_pushed_is_not_pushed_again(valkey: redis.Redis, stream: str) -> None:
    finished_runs(1)
    one, other = publisher(), publisher()
    one.attempt()
    other.attempt()
    finished_runs(1, first=2)
    other.attempt()
    assert [int(entry["seq"]) for entry in published(valkey, stream)] == [row["seq"] for row in desk.outputs()]


def test_a_batch_whose_position_was_not_kept_is_pushed_again_rather_than_lost(
    valkey: redis.Redis, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise Unavailable("The database cannot answer right now", code="database_unavailable")

    finished_runs(1)
    with monkeypatch.context() as patch:
        patch.setattr(publications, "move_publication", dies)
        publisher().attempt()
    publisher().attempt()
    seqs = [row["seq"] for row in desk.outputs()]
    assert [int(entry["seq"]) for entry in published(valkey, stream)] == seqs + seqs


def test_a_late_commit_is_pushed_in_its_place(valkey: redis.Redis, stream: str) -> None:
    at = desk.START_MS + desk.INTERVAL_MS
    desk.append(desk.inputs(at), desk.inputs(at, "ETH-USD"), now_ms=at)
    assert desk.plan(at + desk.DELAY_MS + 1).runs == 2
    first, second = (desk.take(run) for run in desk.runs())
    made = publisher()
    with transaction() as slow:
        operations.settle_completed(slow, first, {"regime_output": desk.OUTPUT}, desk.WORKER)
        desk.complete(second)
        made.attempt()
        assert [entry["event_type"] for entry in published(valkey, stream)] == []
    made.attempt()
    assert [int(entry["seq"]) for entry in published(valkey, stream)] == [row["seq"] for row in desk.outputs()]


def test_two_publishers_at_once_push_each_output_once(valkey: redis.Redis, stream: str) -> None:
    finished_runs(3)
    publishers = [publisher() for _ in range(4)]
    together(*(lambda _c, one=one: one.attempt() for one in publishers))
    publishers[0].attempt()
    assert [int(entry["seq"]) for entry in published(valkey, stream)] == [row["seq"] for row in desk.outputs()]


def test_whoever_holds_the_position_keeps_others_from_publishing(valkey: redis.Redis, stream: str) -> None:
    publisher().attempt()  # makes the row
    finished_runs(1)
    with transaction() as connection:
        assert publications.hold_publication(connection) is not None
        publisher().attempt()
        assert published(valkey, stream) == []
    publisher().attempt()
    assert len(published(valkey, stream)) == 2


def test_after_redis_forgot_everything_the_stream_goes_on(valkey: redis.Redis, stream: str) -> None:
    finished_runs(1)
    made = publisher()
    made.attempt()
    valkey.delete(stream)
    finished_runs(1, first=2)
    made.attempt()
    assert [int(entry["seq"]) for entry in published(valkey, stream)] == [row["seq"] for row in desk.outputs()[2:]]


def test_the_stream_keeps_no_more_than_it_shall(valkey: redis.Redis, database: str) -> None:
    name = f"short:{database.rpartition('/')[2]}"
    desk.running(output_publish={"stream": name, "stream_max_len": 1})
    chosen = publisher().config
    assert chosen is not None
    events = [{"event": "{}", "event_type": "x", "symbol": "s", "run_id": "r", "seq": n} for n in range(1000)]
    for start in range(0, 1000, 100):
        publish.send(events[start : start + 100], chosen.output_publish)
    assert valkey.xlen(name) < 500
    valkey.delete(name)


def test_without_a_stream_nothing_is_pushed_and_nothing_waits(database: str, broker: str) -> None:
    desk.running()
    finished_runs(1)
    publisher().attempt()
    assert desk.rows("SELECT * FROM engine_publications") == []
    assert desk.engine_row()["state"] == "running"


def refuse(valkey: redis.Redis, stream: str) -> None:
    """Have Redis refuse what is pushed: the name belongs to something that is no stream."""
    valkey.set(stream, "taken")


def test_a_stream_that_takes_nothing_for_too_long_pauses_the_planning_until_it_does(
    valkey: redis.Redis, stream: str
) -> None:
    finished_runs(1)
    refuse(valkey, stream)
    made = publisher()
    made.attempt()
    assert desk.engine_row()["state"] == "running"  # it has only just failed
    until(lambda: made.attempt() and desk.engine_row()["state"] == "degraded", "the engine is degraded")
    row = desk.engine_row()
    assert (row["scheduling_paused"], row["blocks"]) == (True, 1)
    assert stream in row["paused_why"]
    assert desk.plan(desk.START_MS + 3 * desk.INTERVAL_MS).ticks == 0
    (publication,) = desk.rows("SELECT * FROM engine_publications")
    assert "WRONGTYPE" in publication["last_error"]
    valkey.delete(stream)
    until(lambda: again(made) and desk.engine_row()["state"] == "running", "the engine goes on by itself")
    row = desk.engine_row()
    assert (row["scheduling_paused"], row["paused_why"], row["blocked_at"]) == (False, None, None)
    assert row["blocked_ms"] > 0
    assert [int(entry["seq"]) for entry in published(valkey, stream)] == [row["seq"] for row in desk.outputs()]
    topics = desk.topics("engine")
    assert topics[-2:] == ["engine_degraded", "engine_recovered"]


def again(made: Publisher) -> bool:
    """One more pass, with a look at the whole."""
    made.next_look = 0.0
    made.attempt()
    return True


def test_outputs_that_pile_up_pause_the_planning_although_redis_refuses_none(valkey: redis.Redis, stream: str) -> None:
    finished_runs(5)  # ten outputs, of which eight may wait
    made = publisher()
    assert desk.engine_row()["state"] == "degraded"
    assert "more than 8 outputs" in desk.engine_row()["paused_why"]
    made.attempt()
    again(made)
    assert desk.engine_row()["state"] == "running"
    assert len(published(valkey, stream)) == 10


def test_an_engine_that_does_not_run_is_left_as_it_is(valkey: redis.Redis, stream: str) -> None:
    finished_runs(5)
    with statement() as connection:
        control.drain_engine(connection, desk.CALLER)
    again(publisher())
    assert desk.engine_row()["state"] == "drained"


def test_a_stream_that_is_no_longer_wanted_keeps_nothing_paused(valkey: redis.Redis, stream: str) -> None:
    finished_runs(5)
    made = publisher()
    assert desk.engine_row()["state"] == "degraded"
    desk.configure()
    again(made)
    assert desk.engine_row()["state"] == "running"


def test_delays_follow_the_policy_and_stay_at_its_last(valkey: redis.Redis, stream: str) -> None:
    desk.configure(
        output_publish={"stream": stream},
        publish_retry={"min_delay_ms": 100, "max_delay_ms": 400, "max_attempts": 3},
    )
    finished_runs(1)
    refuse(valkey, stream)
    made = publisher()
    assert [made.attempt() for _ in range(5)] == [0.1, 0.2, 0.4, 0.4, 0.4]
    valkey.delete(stream)
    made.attempt()
    assert made.failures == 0


def test_how_long_publishing_may_be_blocked_is_the_lesser_of_the_retries_and_the_limit() -> None:
    retry = {"min_delay_ms": 100, "max_delay_ms": 400, "max_attempts": 3}

    def longest(**chosen: Any) -> int:
        return publish.longest_block_ms(read_config(desk.body(publish_retry=retry, output_publish=chosen)))

    assert longest() == 700
    assert longest(max_block_ms=50) == 50
    assert longest(max_block_ms=5000) == 700


def test_the_time_until_an_output_is_in_the_stream_is_measured(valkey: redis.Redis, stream: str) -> None:
    finished_runs(1)
    publisher().attempt()
    (publication,) = desk.rows("SELECT * FROM engine_publications")
    assert publication["published"] == 2
    assert publication["latency_ms"] > 0
    assert publication["published_at"] is not None


def test_a_publisher_ends_soon_after_it_is_told_to(valkey: redis.Redis, stream: str) -> None:
    finished_runs(1)
    made = Publisher()
    thread = threading.Thread(target=made.run)
    thread.start()
    until(lambda: len(published(valkey, stream)) == 2, "the outputs are pushed")
    began = clock.monotonic()
    made.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert clock.monotonic() - began < 2


def test_without_any_publisher_the_planner_itself_pauses_and_goes_on(valkey: redis.Redis, stream: str) -> None:
    finished_runs(5)
    planner.plan()
    assert desk.engine_row()["state"] == "degraded"
    assert desk.runs()[-1]["number"] == 5
    publisher().attempt()
    planner.plan()
    assert desk.engine_row()["state"] == "running"
