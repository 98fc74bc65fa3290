"""An engine room without one of its rules is caught on a real database, and the whole one passes on the same stage."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from models.engine import inputs, operations, planning, transitions
from models.engine.canonical import canonical
from models.engine.events import PUBLIC_TOPICS
from models.engine.inputs import append_events
from models.kernel import feed
from models.kernel.errors import Unavailable
from models.kernel.feed import Follower, list_rows
from models.kernel.session import statement, transaction
from orchestrator_tasks.engine import ingest
from orchestrator_tasks.engine.ingest import Subscription
from tests.chaos import market
from tests.chaos.conftest import Stage
from tests.chaos.evidence import Heard
from tests.chaos.room import INTERVAL_MS, START_MS, TIMER, Room, answer, finish_what_is_due
from tests.chaos.test_mutants import Mutation, Patch, whole
from tests.engine import carried, desk
from tests.kernel.races import DEADLINE_SECONDS, waits_or_ends

BTC, ETH = "BTC-USD", "ETH-USD"
ORDER = "runs of a symbol are carried out in the order of their timestamps"
CUT = "a cut is what had come by its time"


@pytest.fixture
def room(stage: Stage) -> Room:
    return Room(stage)


# the log


def append_without_the_clock_s_rule(patch: Patch) -> None:
    """A batch has its own clock's time, whatever the one before had."""
    mutant = copy.copy(inputs._APPEND)
    for part in ("name", "preparation", "call"):
        text = getattr(mutant, part).replace(inputs._APPEND.name, "act_mutant")
        setattr(mutant, part, text.replace("greatest(last_ts_ms,", "greatest(0,"))
    patch.setattr(inputs, "_APPEND", mutant)


def append_less(patch: Patch) -> None:
    """The last row of a batch does not reach the log."""
    real = inputs.copy_rows

    def copy_rows(connection: Any, table: str, columns: Any, chunks: Iterator[str]) -> None:
        rows = "".join(chunks).splitlines(keepends=True)
        real(connection, table, columns, iter(rows[:-1]))

    patch.setattr(inputs, "copy_rows", copy_rows)


@pytest.mark.parametrize(
    ("mutate", "broken"),
    [
        (whole, set()),
        (append_without_the_clock_s_rule, {"time in the log never goes back"}),
        (
            append_less,
            {
                "numbers are gapless from 1",
                "an accepted batch is in the log once, as answered",
                "the log's totals count what is there",
            },
        ),
    ],
)
def test_a_log_that_loses_or_turns_back_is_caught(
    room: Room, mutate: Mutation, broken: set[str], monkeypatch: Patch
) -> None:
    desk.configure(scheduler=TIMER)
    mutate(monkeypatch)
    room.send(START_MS + 5, BTC, ETH)
    room.send(START_MS, BTC, ETH)
    assert room.promises() == broken


# the plan


def plan_without_closing_time(patch: Patch) -> None:
    patch.setattr(planning, "close_time", lambda *_: None)


@pytest.mark.parametrize(("mutate", "broken"), [(whole, set()), (plan_without_closing_time, {CUT})])
def test_a_cut_that_gains_a_record_is_caught(
    room: Room, mutate: Mutation, broken: set[str], monkeypatch: Patch
) -> None:
    room.begin()
    room.send(START_MS + 1, BTC)
    mutate(monkeypatch)
    late = room.draft(BTC)
    with ThreadPoolExecutor(1) as pool:
        with transaction() as connection:
            append_events(connection, desk.received(*late), max_records=1000, now_ms=START_MS + 2)
            planned = pool.submit(desk.plan, START_MS + INTERVAL_MS + 1)
            waits_or_ends(planned)
        assert planned.result(DEADLINE_SECONDS).runs == 1
    room.stage.history.end(room.stage.history.begin("feeder", "append", {"batch": "late", "body": late}), None)
    finish_what_is_due()
    assert room.promises() == broken


def plan_without_keeping_ends(patch: Patch) -> None:
    patch.setattr(planning, "keep_lasts", lambda *_: None)


@pytest.mark.parametrize(("mutate", "broken"), [(whole, set()), (plan_without_keeping_ends, {CUT})])
def test_a_record_in_two_cuts_is_caught(room: Room, mutate: Mutation, broken: set[str], monkeypatch: Patch) -> None:
    room.begin()
    mutate(monkeypatch)
    room.send(START_MS + 1, BTC)
    for tick_ms in (START_MS + INTERVAL_MS, START_MS + 2 * INTERVAL_MS):
        desk.plan(tick_ms + 1)
        room.send(tick_ms + 2, ETH)
    finish_what_is_due()
    assert CUT in room.promises() if broken else room.promises() == broken


# turns


def jobs_that_keep_no_turn(patch: Patch) -> None:
    def run_job(run: Any) -> Any:
        return dataclasses.replace(transitions.run_job(run), keeps_turn=False)

    patch.setattr(planning, "PLAN", dataclasses.replace(transitions.PLAN, owes=run_job))


@pytest.mark.parametrize(("mutate", "broken"), [(whole, set()), (jobs_that_keep_no_turn, {ORDER})])
def test_a_run_that_is_overtaken_while_it_rests_is_caught(
    room: Room, mutate: Mutation, broken: set[str], monkeypatch: Patch
) -> None:
    room.begin()
    mutate(monkeypatch)
    for tick_ms in (START_MS + INTERVAL_MS, START_MS + 2 * INTERVAL_MS):
        room.send(tick_ms - 1, BTC)
        desk.plan(tick_ms + 1)
    first, _ = desk.runs()
    desk.retry(desk.take(first), delay_ms=3_600_000)
    finish_what_is_due()
    desk.change("UPDATE jobs SET run_at = clock_timestamp()")
    finish_what_is_due()
    assert ORDER in room.promises() if broken else room.promises() == broken


# outputs and their readers


def change_an_output() -> None:
    desk.change("ALTER TABLE engine_outputs DISABLE TRIGGER engine_outputs_append_only")
    desk.change("UPDATE engine_outputs SET event = 'another' WHERE event_type = 'EngineRunCompleted'")


@pytest.mark.parametrize(("act", "broken"), [(lambda: None, set()), (change_an_output, {"outputs never change"})])
def test_an_output_that_changes_is_caught(room: Room, act: Callable[[], None], broken: set[str]) -> None:
    room.begin()
    room.send(START_MS + 1, BTC)
    desk.plan(START_MS + INTERVAL_MS + 1)
    finish_what_is_due()
    act()
    assert room.promises() == broken


def read_without_gap_rule(patch: Patch) -> None:
    def read(self: Follower, connection: Any, limit: int = feed.LONGEST_READ) -> Any:
        found = list_rows(connection, self.position, limit)
        self.position = max([self.position, *(row["seq"] for row in found)])
        return found

    patch.setattr(Follower, "read", read)


@pytest.mark.parametrize(
    ("mutate", "broken"),
    [(whole, set()), (read_without_gap_rule, {"a reader hears each output once and in order"})],
)
def test_a_reader_that_passes_by_a_late_output_is_caught(
    room: Room, mutate: Mutation, broken: set[str], monkeypatch: Patch
) -> None:
    mutate(monkeypatch)
    follower, heard = Follower(0), Heard("reader")

    def listen() -> None:
        with statement() as connection:
            read = [row for row in follower.read(connection) if row["topic"] in PUBLIC_TOPICS]
            heard.events += [{"event": canonical(row["body"])} for row in read]

    room.begin()
    room.send(START_MS + 1, BTC, ETH)
    desk.plan(START_MS + INTERVAL_MS + 1)
    late, other = desk.jobs()
    with transaction() as connection:
        slow = operations.take_run(connection, late["id"], desk.WORKER)
        with statement() as another:
            fast = operations.take_run(another, other["id"], desk.WORKER)
        listen()
    for attempt in (slow, fast):
        assert attempt is not None
        carried.carry_out_one(attempt, answer)
    listen()
    listen()
    assert room.promises(listeners=[heard]) == broken


# the subscription


def acknowledge_before_appending(patch: Patch) -> None:
    real = Subscription.append

    def append(self: Subscription, config: Any, entries: Any) -> None:
        self.acknowledge([entry for entry, _ in entries], [])
        real(self, config, entries)

    patch.setattr(Subscription, "append", append)


def fail_once(patch: Patch) -> None:
    """The first append finds no database."""
    real, failures = ingest.append_events, iter([Unavailable("away")])

    def append(*given: Any, **named: Any) -> Any:
        for failure in failures:
            raise failure
        return real(*given, **named)

    patch.setattr(ingest, "append_events", append)


@pytest.fixture
def stream(room: Room, valkey: redis.Redis, broker: str, monkeypatch: Patch) -> Iterator[market.Stream]:
    """The subscription's stream on an empty broker, from which this process reads without waiting."""
    monkeypatch.setattr(ingest, "BLOCK_MS", 1)
    ingest.client.cache_clear()
    yield market.Stream(broker, room.stage.history)
    ingest.client.cache_clear()


@pytest.mark.parametrize(
    ("mutate", "broken"),
    [(whole, set()), (acknowledge_before_appending, {"what is taken from the stream is in the log"})],
)
def test_an_entry_that_is_acknowledged_before_it_is_appended_is_caught(
    room: Room, stream: market.Stream, mutate: Mutation, broken: set[str], monkeypatch: Patch
) -> None:
    desk.configure(scheduler=TIMER, subscription={"stream": market.INPUTS})
    mutate(monkeypatch)
    fail_once(monkeypatch)
    subscription = Subscription("consumer")
    for n in range(3):
        stream.push("pusher", market.event(f"p-{n}", BTC, "TradeTick", {}))
    for _ in range(4):
        subscription.attempt()
    assert stream.look("pusher")
    assert room.promises() == broken
