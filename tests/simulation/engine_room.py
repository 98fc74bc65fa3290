"""An engine's room in memory: the log, the planner's rows, the lanes and the outputs, as the database would keep them.

It stands in for SQL alone. What is planned, selected, decided, delayed and told is decided by the modules themselves:
the planner's pass, the worker's look, decision and record, the events.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from models.engine import events, operations, planning
from models.engine.batches import facts_of
from models.engine.canonical import canonical
from models.engine.config import Config
from models.engine.contract import Received, check_event
from models.engine.cuts import Last
from models.engine.lines import FORMAT, Writer
from models.engine.operations import Attempt
from models.engine.states import COMPLETED, DRAINED, FAILED, PLANNED, RUNNING, STARTED, WAITING
from models.kernel.errors import LeaseLost
from orchestrator_tasks.engine import asking, tasks
from orchestrator_tasks.engine.hosts import Interrupt
from tests.engine.market import text_of

Run = dict[str, Any]


@dataclass
class Job:
    """What a run owes. `fence` is None while nobody carries it out."""

    run: Run
    fence: int | None = None
    ready_ms: int = 0


@dataclass
class Try:
    """A worker with an attempt, who may be a ghost; `outcome` is there once the engine has answered."""

    attempt: Attempt
    given: tasks.Given | None = None
    outcome: tasks.Outcome | None = None


class Rows:
    """The answer to the planner's question for the engine's own row."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row = row

    def mappings(self) -> Rows:
        return self

    def one(self) -> Mapping[str, Any]:
        return dict(self.row)


@dataclass
class Room:
    """Everything that survives a restart."""

    config: Config
    now_ms: int = 1000
    log: list[tuple[int, int, Received]] = field(default_factory=list)
    appends: list[tuple[int, int, int, dict[str, dict[str, int]]]] = field(default_factory=list)
    last_ts_ms: int = 0
    control: dict[str, Any] = field(
        default_factory=lambda: {
            **{"state": RUNNING, "scheduling_paused": False, "next_tick_ms": None},
            **{"ticks": 0, "skipped_ticks": 0, "missed_ticks": 0},
        }
    )
    lasts: dict[str, Last] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    states: list[tuple[int, str, str]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)
    fences: int = 0
    tried: dict[str, str] = field(default_factory=dict)
    meanwhile: list[Callable[[], object]] = field(default_factory=list)

    # the log

    def append(self, *sent: Mapping[str, Any], clock_ms: int) -> None:
        received = [check_event(text_of(each), self.config.symbols_by_source) for each in sent]
        self.last_ts_ms = max(self.last_ts_ms, clock_ms)
        first = len(self.log) + 1
        for seq, each in enumerate(received, first):
            self.log.append((seq, self.last_ts_ms, each))
            self.lasts.setdefault(each.symbol, Last(seq))
        counts = json.loads(facts_of(received)["counts"])
        self.appends.append((first, len(self.log), self.last_ts_ms, counts))

    def close_time(self, now_ms: int) -> None:
        self.last_ts_ms = max(self.last_ts_ms, now_ms)

    def find_cut_end(self, planned_ts_ms: int) -> int:
        self.ticks.append(planned_ts_ms)
        return max((last for _, last, ts_ms, _ in self.appends if ts_ms <= planned_ts_ms), default=0)

    def count_records(self, after: int, upto: int) -> dict[str, dict[str, int]]:
        counts: dict[str, dict[str, int]] = {}
        for _, last, _, told in self.appends:
            for symbol, of in told.items() if after < last <= upto else ():
                for event_type, n in of.items():
                    mine = counts.setdefault(symbol, {})
                    mine[event_type] = mine.get(event_type, 0) + n
        return counts

    def find_snapshot(self, symbol: str, timestamp_ms: int, start: int, end: int) -> tuple[int, str] | None:
        mine = [(seq, r.event) for seq, _, r in self.log[start - 1 : end] if r.symbol == symbol]
        of = {seq for seq, _, r in self.log if r.snapshot_ts_ms == timestamp_ms}
        return max(((seq, event) for seq, event in mine if seq in of), default=None)

    # the planner

    def execute(self, _question: Any) -> Rows:
        return Rows(self.control)

    def plan(self, rows: Sequence[Mapping[str, Any]], **_: Any) -> None:
        for row in rows:
            assert row["id"] not in self.runs, "a run is planned once"
            run = {**row, "number": len(self.runs) + 1, "state": PLANNED, "attempts": 0}
            self.runs[row["id"]] = run
            self.jobs[row["id"]] = Job(run)

    def keep_lasts(self, moved: Mapping[str, Last]) -> None:
        self.lasts |= moved

    def keep_cadence(self, control: Mapping[str, Any], _config: Config, done: planning.Pass) -> None:
        counts = {"ticks": done.ticks, "skipped_ticks": done.skipped, "missed_ticks": done.missed}
        self.control |= {name: control[name] + n for name, n in counts.items()}
        self.control["next_tick_ms"] = done.next_tick_ms

    def drain(self) -> None:
        self.control["state"] = DRAINED

    def start(self) -> None:
        self.control |= {"state": RUNNING, "next_tick_ms": None}

    # the lanes

    def ready(self) -> list[Job]:
        """Of each symbol the first run that has not ended, if nobody has it and its delay is over."""
        heads: dict[str, Job] = {}
        for job in self.jobs.values():
            heads.setdefault(job.run["symbol"], job)
        return [job for job in heads.values() if job.fence is None and job.ready_ms <= self.now_ms]

    def take(self, job: Job) -> Try:
        self.fences += 1
        job.fence = self.fences
        if job.run["state"] == PLANNED:
            self.outputs.append(events.started_event(job.run))
        job.run["state"] = STARTED
        return Try(Attempt(job.run["number"], self.fences, job.run["attempts"] + 1, dict(job.run), 60.0))

    def held(self, attempt: Attempt) -> Job:
        job = self.jobs.get(attempt.run_id)
        if job is None or job.fence != attempt.fence:
            raise LeaseLost("the attempt no longer owns the run")
        return job

    def rest(self, job: Job, delay_ms: int) -> Run:
        job.run["state"], job.fence, job.ready_ms = WAITING, None, self.now_ms + delay_ms
        return job.run

    def lose(self, attempt: Attempt) -> None:
        """The reaper found the lease run out."""
        self.rest(self.held(attempt), 0)

    # what a worker does

    def find_state(self, symbol: str, number: int, _epoch: int) -> str | None:
        mine = [(n, state) for n, of, state in self.states if of == symbol and n < number]
        return max(mine)[1] if mine else None

    def ask(self, request: dict[str, Any], number: int) -> Mapping[str, Any]:
        """An engine whose answer depends on all that it is given; it changes its state before it may fail."""
        given = request["input"]
        before = request.get("state")
        seen = hashlib.sha256(canonical([given, before]).encode()).hexdigest()
        self.tried[given["symbol"]] = canonical({"seen": seen})
        fails = given["flow"]["cvd"]
        if isinstance(fails, int) and fails >= number:
            return {"error_kind": "engine_failure", "error_detail": f"it fails {fails} times"}
        output = {"symbol": given["symbol"], "timestamp": given["timestamp"], "drivers": [seen]}
        if request["mode"] == "truth":
            return {"ok": {"regime_output": output}}
        return {"ok": {"regime_output": output, "hysteresis_decision": {"of": seen}, "state": {"seen": seen}}}

    def think(self, work: Try) -> None:
        """The worker's look and decision."""
        work.given = tasks.look(work.attempt)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asking, "call_engine", lambda request, *_: self.ask(request, work.attempt.number))
            work.outcome = tasks.decide(work.attempt, work.given, Interrupt())

    def record(self, work: Try) -> str:
        assert work.given is not None
        assert work.outcome is not None
        return tasks.end(work.attempt, work.given.config, work.outcome)

    def settle_completed(self, attempt: Attempt, result: Mapping[str, Any], _worker: str, **facts: Any) -> Run:
        job = self.held(attempt)
        run = self.end(job, COMPLETED, facts)
        if "hysteresis_decision" in result:
            self.outputs.append(events.decision_event(run, result["hysteresis_decision"]))
            self.states.append((run["number"], run["symbol"], canonical(result["state"])))
        self.outputs.append(events.completed_event(run, result["regime_output"]))
        return run

    def settle_failed(self, attempt: Attempt, kind: str, detail: str, _worker: str, **facts: Any) -> Run:
        run = self.end(self.held(attempt), FAILED, {**facts, "error_kind": kind, "error_detail": detail})
        self.outputs.append(events.failed_event(run))
        return run

    def end(self, job: Job, state: str, facts: Mapping[str, Any]) -> Run:
        facts = {name: value for name, value in facts.items() if name not in {"elapsed_ms", "engine"}}
        job.run |= {**facts, "state": state, "attempts": job.run["attempts"] + 1}
        del self.jobs[job.run["id"]]
        return job.run

    def retry_run(self, attempt: Attempt, *_why: str, delay_ms: int, **_: Any) -> Run:
        job = self.held(attempt)
        job.run["attempts"] += 1
        return self.rest(job, delay_ms)

    # the end

    def finish(self) -> None:
        """Carry out whatever is left, however long it takes."""
        while self.jobs:
            for job in self.ready():
                work = self.take(job)
                self.think(work)
                self.record(work)
            self.now_ms += 1

    def told(self) -> dict[str, list[str]]:
        """All outputs by symbol, in order."""
        by_symbol: dict[str, list[str]] = {}
        for event in self.outputs:
            by_symbol.setdefault(event["symbol"], []).append(canonical(event))
        return by_symbol

    def facts(self) -> dict[str, Run]:
        """What the records of the runs say."""
        return self.runs

    def lines(self) -> Iterator[bytes]:
        """An export of all runs."""
        writer = Writer()
        cuts: dict[str, list[int]] = {}
        for run in self.runs.values():
            cuts.setdefault(run["symbol"], [run["cut_start_ingest_seq"], 0])[1] = run["cut_end_ingest_seq"]
        yield writer.line("header", {"format": FORMAT, "first_ingest_seq": 1, "symbols": cuts})
        yield writer.line("config", {"version": 1, "digest": "0" * 64, "body": self.config.body()})
        reached = 0
        for run in self.runs.values():
            for seq, ts_ms, received in self.log[reached : run["cut_end_ingest_seq"]]:
                yield writer.line("record", {"ingest_seq": seq, "ingest_ts_ms": ts_ms, "event": received.event})
            reached = max(reached, run["cut_end_ingest_seq"])
            yield writer.line("run", {**run, "run_id": run["id"], "status": run["state"]})
            for event in self.outputs:
                if event["run_id"] == run["id"]:
                    yield writer.line("output", {"event": event})
        yield writer.end()


PLANNER = ("close_time", "find_cut_end", "count_records", "keep_lasts", "keep_cadence")
WORKER = ("find_snapshot", "find_state")
OPERATIONS = ("settle_completed", "settle_failed", "retry_run")


def asked_of_room(name: str) -> Callable[..., Any]:
    return lambda room, *args, **named: getattr(room, name)(*args, **named)


@contextlib.contextmanager
def furnished(present: Callable[[], Room]) -> Iterator[None]:
    """The planner and the worker find the present room wherever they would ask the database."""

    @contextlib.contextmanager
    def statement() -> Iterator[Room]:
        yield present()

    @contextlib.contextmanager
    def transaction() -> Iterator[Room]:
        """Others come first, between the time that was closed and the lock."""
        room = present()
        waiting, room.meanwhile = room.meanwhile, []
        for act in waiting:
            act()
        yield room

    with pytest.MonkeyPatch.context() as patch:
        for name in PLANNER:
            patch.setattr(planning, name, asked_of_room(name))
        patch.setattr(planning, "MOST_TICKS", 2)
        patch.setattr(planning, "PLAN", asked_of_room("plan"))
        patch.setattr(planning, "tell", lambda *_: None)
        patch.setattr(planning, "get_status", lambda room: dict(room.control))
        patch.setattr(planning, "get_config", lambda room: (1, room.config))
        patch.setattr(
            planning, "list_lasts", lambda room, symbols: {s: room.lasts[s] for s in symbols if s in room.lasts}
        )
        for name in WORKER:
            patch.setattr(tasks, name, asked_of_room(name))
        patch.setattr(tasks.control, "get_version", lambda room, _version: room.config)
        patch.setattr(tasks.log, "disabled", True)
        patch.setattr(tasks.hints, "ended", lambda *_, **__: None)
        for name in OPERATIONS:
            patch.setattr(operations, name, asked_of_room(name))
        patch.setattr(operations, "keep_evidence", lambda *_: None)
        for module in (planning, tasks):
            patch.setattr(module, "statement", statement)
            patch.setattr(module, "transaction", transaction)
        yield


def calm(room: Room) -> Room:
    """The same log and the same ticks, each in its time: records come, the tick is planned, its runs are made."""
    quiet = Room(room.config)
    log = [
        (ts_ms, [json.loads(r.event) for _, _, r in room.log[first - 1 : last]])
        for first, last, ts_ms, _ in room.appends
    ]
    with furnished(lambda: quiet):
        for tick in room.ticks:
            while log and log[0][0] <= tick:
                ts_ms, sent = log.pop(0)
                quiet.append(*sent, clock_ms=ts_ms)
            quiet.now_ms = max(quiet.now_ms, tick)
            planning.make_runs(quiet, 1, quiet.config, planning.Pass(tick + 1, next_tick_ms=tick), 1)  # type: ignore[arg-type]
            quiet.finish()
    return quiet
