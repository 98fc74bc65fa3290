"""Checks of engine runs: planned once for each tick, over the records that had come by then, in their lane's order."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from models.engine import events
from models.engine.cuts import run_id
from tests.chaos.evidence import Evidence, Row, Violation, grouped

MISSED = "engine_ticks_missed"
ENDED = ("completed", "failed")
MISSING = "missing_snapshot_inputs"
Planned = tuple[str, int]
Cut = tuple[int, int]


@dataclass
class Plan:
    """What must have been planned: it follows from the log, the configuration, the first tick and the missed ones."""

    evidence: Evidence
    cuts: dict[Planned, Cut] = field(default_factory=dict)
    skipped: int = 0
    ticks: int = 0

    @cached_property
    def engine(self) -> Row:
        return self.evidence.engine[0]

    @cached_property
    def schedule(self) -> Row:
        return dict(self.engine["config"]["scheduler"])

    @property
    def interval_ms(self) -> int:
        return int(self.schedule["timer_interval_ms"])

    @cached_property
    def symbols(self) -> list[str]:
        return sorted({symbol for source in self.engine["config"]["sources"] for symbol in source["symbols"]})

    @cached_property
    def first_of(self) -> dict[str, int]:
        """The first record of each symbol."""
        found: dict[str, int] = {}
        for record in self.evidence.records:
            found.setdefault(record["symbol"], record["ingest_seq"])
        return found

    @cached_property
    def times(self) -> list[int]:
        return [record["ingest_ts_ms"] for record in self.evidence.records]

    @cached_property
    def missed(self) -> list[Row]:
        return [row for row in self.evidence.ledger if row["topic"] == MISSED]

    def end_at(self, tick_ms: int) -> int:
        """The last record that had come by then; numbers are gapless, so that it is how many there were."""
        return bisect.bisect_right(self.times, tick_ms)

    def make(self) -> Plan:
        left_out = {
            tick
            for row in self.missed
            for tick in range(row["body"]["from_ms"], row["body"]["to_ms"] + 1, self.interval_ms)
        }
        ends: dict[str, int] = {}
        for tick in self.all_ticks():
            if tick not in left_out:
                self.plan_tick(tick, ends)
        return self

    def all_ticks(self) -> Iterator[int]:
        for cadence in self.evidence.cadences:
            yield from range(cadence["first_tick_ms"], self.engine["next_tick_ms"], self.interval_ms)

    def plan_tick(self, tick: int, ends: dict[str, int]) -> None:
        self.ticks += 1
        end = self.end_at(tick)
        for symbol in self.symbols:
            start = ends[symbol] + 1 if symbol in ends else self.first_of.get(symbol, end + 1)
            if start <= end:
                self.cuts[symbol, tick] = start, end
                ends[symbol] = end
            else:
                self.skipped += 1


def check_plan(evidence: Evidence) -> Iterator[Violation]:
    """One run for each tick of each symbol about which something is known, and none else; what was left out is told."""
    if not evidence.engine:
        return
    if len(evidence.cadences) > 1:
        yield Violation("a cadence goes on by its interval alone", str(evidence.cadences))
        return
    plan = Plan(evidence).make()
    found = grouped(evidence.runs, lambda run: (run["symbol"], run["planned_ts_ms"]))
    for planned in sorted(plan.cuts.keys() | found.keys()):
        yield from check_planned(planned, plan.cuts.get(planned), found.get(planned, []))
    yield from check_missed(plan)
    engine = plan.engine
    counted = engine["ticks"], engine["skipped_ticks"], engine["missed_ticks"]
    should = plan.ticks, plan.skipped, sum(row["body"]["missed"] for row in plan.missed)
    if counted != should:
        told = f"ticks, skipped, missed are {counted}, there were {should}"
        yield Violation("ticks, skips and misses are counted", told)


def check_planned(planned: Planned, cut: Cut | None, runs: list[Row]) -> Iterator[Violation]:
    if len(runs) != (cut is not None):
        shown = f"{planned}: {[run['number'] for run in runs]}, its cut is {cut}"
        yield Violation("every planned tick has exactly one run of each symbol", shown)
        return
    for run in runs:
        if (run["cut_start_ingest_seq"], run["cut_end_ingest_seq"]) != cut:
            shown = f"{planned}: {run['cut_start_ingest_seq']} to {run['cut_end_ingest_seq']}, and not {cut}"
            yield Violation("a cut is what had come by its time", shown)


def check_missed(plan: Plan) -> Iterator[Violation]:
    """Ticks are left out only when more than the bound of them were due."""
    bound = plan.schedule["max_catch_up_ticks"]
    for row in plan.missed:
        body, behind = row["body"], 1000 * row["at"] - row["body"]["to_ms"]
        ticks = range(body["from_ms"], body["to_ms"] + 1, plan.interval_ms)
        if behind <= bound * plan.interval_ms or body["missed"] != len(ticks):
            shown = f"{body}, {behind:.0f} ms after the last of them"
            yield Violation("ticks are missed beyond the stated bound alone", shown)


def check_runs_follow_from_the_log(evidence: Evidence) -> Iterator[Violation]:
    """Each run's timestamp, identity, counts and selected record are what its cut says."""
    for run in evidence.runs:
        alignment = evidence.engine[0]["config"]["engine"]["alignment_ms"]
        cut = evidence.records[run["cut_start_ingest_seq"] - 1 : run["cut_end_ingest_seq"]]
        mine = [record for record in cut if record["symbol"] == run["symbol"]]
        timestamp = run["planned_ts_ms"] // alignment * alignment
        fitting = [record["ingest_seq"] for record in mine if record["snapshot_ts_ms"] == timestamp]
        should = {
            "engine_timestamp_ms": timestamp,
            "id": run_id(run["symbol"], timestamp, run["cut_end_ingest_seq"], run["engine_mode"]),
            "counts_by_event_type": dict(Counter(record["event_type"] for record in mine)),
            "snapshot_ingest_seq": max(fitting, default=None),
        }
        if run["state"] not in ENDED:
            del should["snapshot_ingest_seq"]
        wrong = {name: (run[name], value) for name, value in should.items() if run[name] != value}
        if wrong:
            yield Violation("a run follows from the records of its cut", f"number {run['number']}: {wrong}")


def check_ends(evidence: Evidence) -> Iterator[Violation]:
    """Every run has ended: completed, or failed because its inputs were missing. Nothing else has a reason here."""
    for run in evidence.runs:
        if run["state"] not in ENDED:
            yield Violation("every planned run ends", f"number {run['number']}: {run['state']}")
            continue
        should = (None, "completed") if run["snapshot_ingest_seq"] is not None else (MISSING, "failed")
        if (run["error_kind"], run["state"]) != should:
            shown = f"number {run['number']}: {run['error_kind']}: {run['error_detail']}"
            yield Violation("runs fail for a known reason alone", shown)
    for job in evidence.jobs:
        if job["subject_kind"] == "engine_run":
            yield Violation("nothing is owed when all has ended", str(job))


def check_turns(evidence: Evidence) -> Iterator[Violation]:
    """In each symbol's lane runs are taken, and told of, in rising order of their timestamps, one after the other."""
    run_of = {run["id"]: run for run in evidence.runs}
    taken = (row for row in evidence.leases if row["act"] == "taken" and row["subject_kind"] == "engine_run")
    by_lane = grouped(taken, lambda row: row["lane"])
    told = grouped(evidence.outputs, lambda row: row["symbol"])
    for lane, ids in [
        *((lane, [row["subject_id"] for row in rows]) for lane, rows in by_lane.items()),
        *((f"outputs of {symbol}", [row["run_id"] for row in rows]) for symbol, rows in told.items()),
    ]:
        for one, next_ in itertools.pairwise(run_of[run] for run in ids if run in run_of):
            if one is not next_ and next_["engine_timestamp_ms"] <= one["engine_timestamp_ms"]:
                shown = f"{lane}: number {next_['number']} after {one['number']}"
                yield Violation("runs of a symbol are carried out in the order of their timestamps", shown)


def check_outputs(evidence: Evidence) -> Iterator[Violation]:
    """Every run that ended has exactly its outputs, once, in order, under the ledger's numbers; none ever changes."""
    for run in evidence.runs:
        types = [output["event_type"] for output in evidence.outputs_of.get(run["id"], [])]
        if run["state"] in ENDED and types != types_of(run):
            yield Violation("a run has exactly its outputs, in order", f"number {run['number']}: {types}")
    known = {run["id"] for run in evidence.runs}
    for stray in evidence.outputs_of.keys() - known:
        yield Violation("a run has exactly its outputs, in order", f"{stray} is no run")
    in_ledger = [(row["seq"], row["subject_id"]) for row in evidence.of_runs if row["topic"] in events.PUBLIC_TOPICS]
    told = [(output["seq"], output["run_id"]) for output in evidence.outputs]
    if in_ledger != told:
        differ = sorted(set(in_ledger) ^ set(told))[:5]
        yield Violation("outputs and ledger tell the same", f"{len(told)} outputs, {len(in_ledger)} rows: {differ}")
    now = {row["seq"]: row["event"] for row in evidence.outputs}
    changed = [row["seq"] for row in evidence.told_outputs if now.get(row["seq"]) != row["event"]]
    if changed or len(now) != len(evidence.told_outputs):
        yield Violation("outputs never change", f"{changed[:5]}; {len(now)} of {len(evidence.told_outputs)}")


def types_of(run: Row) -> list[str]:
    if run["state"] == "failed":
        return [events.RUN_STARTED, events.RUN_FAILED]
    decided = [events.DECISION_PUBLISHED] if run["engine_mode"] == "hysteresis" else []
    return [events.RUN_STARTED, *decided, events.RUN_COMPLETED]


def check_listeners(evidence: Evidence) -> Iterator[Violation]:
    """Each reader of outputs heard every one of its symbol, byte for byte, once and in order."""
    for reader in evidence.listeners:
        wanted = [row["event"] for row in evidence.outputs if reader.target in (None, row["symbol"])]
        heard = [event["event"] for event in reader.events]
        if heard != wanted:
            place = next(n for n, pair in enumerate(itertools.zip_longest(heard, wanted)) if pair[0] != pair[1])
            told = f"{reader.name}: {len(heard)} of {len(wanted)}, at {place}: {shown_at(heard, wanted, place)}"
            yield Violation("a reader hears each output once and in order", told)


def shown_at(heard: list[Any], wanted: list[Any], place: int) -> str:
    texts = (str(each[place])[:200] if place < len(each) else "nothing" for each in (heard, wanted))
    return " instead of ".join(texts)


def check_stream(evidence: Evidence) -> Iterator[Violation]:
    """What the stream of outputs holds since it was lost last has no gap, comes in order, and reaches to the end."""
    if evidence.pushed is None:
        return
    first_times = list(dict.fromkeys(evidence.pushed))
    begin = first_times[0] if first_times else 0
    wanted = [row["seq"] for row in evidence.outputs if row["seq"] >= begin]
    if first_times != wanted:
        missed = sorted(set(wanted) - set(first_times))
        shown = f"missed {missed[:5]}, {len(first_times)} of {len(wanted)} from {begin} on"
        yield Violation("the stream of outputs lacks none and keeps their order", shown)


def check_replay(evidence: Evidence) -> Iterator[Violation]:
    """All of it, made again from its export, is what was told."""
    if evidence.replayed is None:
        return
    told = evidence.replayed
    ended = sum(run["state"] in ENDED for run in evidence.runs)
    if (told.get("verified"), told.get("runs"), told.get("events")) != (True, ended, len(evidence.outputs)):
        yield Violation("a replay makes every output again", f"{ended} runs, {len(evidence.outputs)} outputs: {told}")
