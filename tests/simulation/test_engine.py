"""Any order of appends, ticks, crashes and retries gives the outputs of a calm day.

The planner and the worker are the real ones; the database, the clock and the engine's process exist only here. A second
planner and an append may come in the middle of a pass. A worker that died may still come back and record: a ghost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from models.engine import planning
from models.engine.config import read_config
from models.engine.divergence import find_divergence
from models.engine.operations import Attempt
from models.engine.replay import replay
from models.engine.states import ENDED
from models.kernel.errors import LeaseLost
from tests.engine.market import event, snapshot
from tests.simulation.engine_room import Job, Room, Rows, Try, calm, furnished

SYMBOLS = ("BTC-USD", "ETH-USD")
INTERVAL = 10
ATTEMPTS = 3
MANY = settings(max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def body(kind: str, mode: str, delay: int, catch_up: int) -> dict[str, Any]:
    intervals = {
        "timer": {"timer_interval_ms": INTERVAL - 3},
        "boundary": {"boundary_interval_ms": INTERVAL, "boundary_delay_ms": delay},
    }
    return {
        "sources": [{"source_id": "binance", "symbols": [*SYMBOLS]}],
        "scheduler": {"mode": kind, "max_catch_up_ticks": catch_up, **intervals[kind]},
        "engine": {"engine_mode": mode, "alignment_ms": INTERVAL, "hysteresis": {"step": 1}},
        "engine_retry": {"min_delay_ms": 5, "max_delay_ms": 20, "max_attempts": ATTEMPTS},
    }


sent_events = st.tuples(
    st.sampled_from(["TradeTick", "Novel", "SnapshotInputs", "SnapshotInputs", "SnapshotInputs"]),
    st.sampled_from(SYMBOLS),
    st.integers(-1, 2),  # of which boundary, from the last one on: late, timely, early
    st.integers(0, ATTEMPTS + 1),  # how many attempts fail
    st.integers(0, 3),  # what makes one snapshot differ from another
)


class Day(RuleBasedStateMachine):
    """One room, any number of workers and ghosts, planners that come when they please."""

    Kind: type[Room] = Room

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[Try] = []
        self.ghosts: list[Try] = []
        self.room = self.Kind(read_config(body("boundary", "truth", 0, 5)))
        self.furniture = furnished(lambda: self.room)
        self.furniture.__enter__()

    @initialize(
        kind=st.sampled_from(["boundary", "boundary", "timer"]),
        mode=st.sampled_from(["hysteresis", "truth"]),
        delay=st.integers(0, 4),
        catch_up=st.sampled_from([3, 100]),
    )
    def begin(self, kind: str, mode: str, delay: int, catch_up: int) -> None:
        self.room = self.Kind(read_config(body(kind, mode, delay, catch_up)))
        planning.plan_runs(self.room.now_ms)

    # what comes in

    def made(self, sent: Any) -> Mapping[str, Any]:
        event_type, symbol, ahead, fails, price = sent
        if event_type != "SnapshotInputs":
            return event(event_type, symbol)
        timestamp = (self.room.now_ms // INTERVAL + ahead) * INTERVAL
        parts = {"market": {"price": price}, "flow": {"cvd": fails}} if price else {"flow": {"cvd": fails}}
        return snapshot(timestamp, symbol, **parts)

    @rule(batch=st.lists(sent_events, min_size=1, max_size=4), behind=st.sampled_from([0, 0, 0, 3, 12]))
    def append(self, batch: list[Any], behind: int) -> None:
        """By somebody whose clock was read a while ago, or differs."""
        self.room.append(*map(self.made, batch), clock_ms=self.room.now_ms - behind)

    @precondition(lambda self: self.room.log)
    @rule(at=st.integers(0, 1000))
    def send_again(self, at: int) -> None:
        """At least once: the same event, which is kept again."""
        _, _, received = self.room.log[at % len(self.room.log)]
        self.room.append(json.loads(received.event), clock_ms=self.room.now_ms)

    # time

    @rule(ms=st.sampled_from([1, 2, 3, 5, 8, INTERVAL, INTERVAL, 25, 70]))
    def wait(self, ms: int) -> None:
        self.room.now_ms += ms

    @rule(passes=st.integers(1, 3), other=st.booleans(), late=st.none() | sent_events)
    def tick(self, passes: int, other: bool, late: Any) -> None:
        """The planner, in whose pass another planner and an append may come between its clock and its lock."""
        for _ in range(passes):
            if late is not None:
                self.room.meanwhile.append(lambda: self.room.append(self.made(late), clock_ms=self.room.now_ms - 5))
            if other:
                self.room.meanwhile.append(lambda: planning.plan_runs(self.room.now_ms))
            planning.plan_runs(self.room.now_ms)
            self.room.meanwhile.clear()

    # the workers

    @precondition(lambda self: self.room.ready())
    @rule(which=st.integers(0, 1))
    def take(self, which: int) -> None:
        ready = self.room.ready()
        self.workers.append(self.room.take(ready[which % len(ready)]))

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 3), records=st.booleans())
    def work(self, which: int, records: bool) -> None:
        """Ask the engine; record at once, or later."""
        worker = self.workers[which % len(self.workers)]
        if worker.outcome is None:
            self.room.think(worker)
        if records:
            self.workers.remove(worker)
            self.room.record(worker)

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 3))
    def crash(self, which: int) -> None:
        """A worker falls silent; its lease runs out."""
        worker = self.workers.pop(which % len(self.workers))
        self.room.lose(worker.attempt)
        self.ghosts.append(worker)

    @precondition(lambda self: self.ghosts)
    @rule(which=st.integers(0, 3))
    def haunt(self, which: int) -> None:
        """It was not dead: it asks, and records too late."""
        ghost = self.ghosts.pop(which % len(self.ghosts))
        if ghost.outcome is None:
            self.room.think(ghost)
        with pytest.raises(LeaseLost):
            self.room.record(ghost)

    @rule()
    def restart(self) -> None:
        """Nobody who was at work comes back; what is kept in rows is all that is left."""
        for worker in self.workers:
            self.room.lose(worker.attempt)
        self.workers.clear()
        self.ghosts.clear()

    # the engine as a whole

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.room.control["scheduling_paused"] = paused

    @rule()
    def drain(self) -> None:
        self.room.drain()

    @precondition(lambda self: self.room.control["state"] != "running")
    @rule()
    def start(self) -> None:
        self.room.start()

    # what is promised

    def teardown(self) -> None:
        try:
            self.restart()
            self.room.finish()
            quiet = calm(self.room)
            check_order(self.room)
            assert self.room.facts() == quiet.facts()
            assert self.room.told() == quiet.told()
            check_replay(self.room)
        finally:
            self.furniture.__exit__(None, None, None)


def check_order(room: Room) -> None:
    """Of each run one start and one end, of each symbol in the order of time; each tick is planned once."""
    assert room.ticks == sorted(set(room.ticks))
    for symbol in SYMBOLS:
        told = [each for each in room.outputs if each["symbol"] == symbol]
        times = [each["engine_timestamp_ms"] for each in told]
        assert times == sorted(times)
        types: dict[str, list[str]] = {}
        for each in told:
            types.setdefault(each["run_id"], []).append(each["event_type"])
        assert [*types] == [run["id"] for run in room.runs.values() if run["symbol"] == symbol]
        assert [run_id for run_id in dict.fromkeys(each["run_id"] for each in told)] == [*types]
        for names in types.values():
            assert names[0] == "EngineRunStarted"
            assert names[1:] in (
                ["EngineRunCompleted"],
                ["EngineRunFailed"],
                ["HysteresisDecisionPublished", "EngineRunCompleted"],
            )
    assert all(run["state"] in ENDED for run in room.runs.values())


def check_replay(room: Room) -> None:
    """The export of the day replays to what was told; an attempt that succeeded is the one that is made again."""
    attempts = iter([run["attempts"] for run in room.runs.values() if run.get("snapshot_ingest_seq")])
    again = Room(room.config)
    for run in replay(room.lines(), lambda request: again.ask(dict(request), next(attempts))):
        assert find_divergence(run) is None


def test_any_order_of_appends_ticks_crashes_and_retries_tells_what_a_calm_day_tells() -> None:
    run_state_machine_as_test(Day, settings=MANY)


class CutsLate(Room):
    """A cut that ends with what is there when it is planned."""

    def find_cut_end(self, planned_ts_ms: int) -> int:
        super().find_cut_end(planned_ts_ms)
        return len(self.log)


class LeavesTimeOpen(Room):
    """A planner that does not wait for the appends under way."""

    def close_time(self, _now_ms: int) -> None:
        return


class KeepsWhatWasTried(Room):
    """An attempt begins with the state that the one before it left in memory."""

    def find_state(self, symbol: str, _number: int, _epoch: int) -> str | None:
        return self.tried.get(symbol)


class IsOvertaken(Room):
    """A run that waits for its next attempt lets its successor pass."""

    def ready(self) -> list[Job]:
        busy = {job.run["symbol"] for job in self.jobs.values() if job.fence is not None}
        free = [job for job in self.jobs.values() if job.run["symbol"] not in busy]
        return [job for job in free if job.ready_ms <= self.now_ms]


class CountsTheLost(Room):
    """A worker that dies uses up an attempt of the engine."""

    def lose(self, attempt: Attempt) -> None:
        self.held(attempt).run["attempts"] += 1
        super().lose(attempt)


class BelievesGhosts(Room):
    """Whoever reports is believed, whatever fence he has."""

    def held(self, attempt: Attempt) -> Job:
        return self.jobs[attempt.run_id]


class LooksBeforeTheLock(Room):
    """Two planners begin where both saw the cadence before either had the lock."""

    seen: dict[str, Any] | None = None

    def close_time(self, now_ms: int) -> None:
        super().close_time(now_ms)
        self.seen = dict(self.control)

    def execute(self, _question: Any) -> Rows:
        return Rows(self.seen or self.control)


class SelectsBeyondTheCut(Room):
    """The last SnapshotInputs that is there, whichever cut it is in."""

    def find_snapshot(self, symbol: str, timestamp_ms: int, _start: int, _end: int) -> tuple[int, str] | None:
        return super().find_snapshot(symbol, timestamp_ms, 1, len(self.log))


MUTANTS = [
    CutsLate,
    LeavesTimeOpen,
    KeepsWhatWasTried,
    IsOvertaken,
    CountsTheLost,
    BelievesGhosts,
    LooksBeforeTheLock,
    SelectsBeyondTheCut,
]
FIRST_FOUND = settings(
    MANY, max_examples=5000, derandomize=True, print_blob=False, report_multiple_bugs=False, phases=[Phase.generate]
)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_room_without_one_of_the_rules_is_found_out(mutant: type[Room]) -> None:
    class Mutated(Day):
        Kind = mutant

    with pytest.raises((AssertionError, KeyError, pytest.fail.Exception)):
        run_state_machine_as_test(Mutated, settings=FIRST_FOUND)
