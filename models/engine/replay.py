"""Replay: the events of an export's runs, made again from its records by the same engine.

One pass over the lines. In memory are, of each symbol, its states and the records of the cut that is open. Nothing
is read from elsewhere: no database, no clock, no chance.

The run's record says what cannot be computed: which cut was planned, and how many attempts it took. A run that timed
out is not called again: how long an engine takes is no part of what it computes, and one that loops would keep the
replay for ever. Its failure is told as it was recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from models.engine import events
from models.engine.cadence import planned_time
from models.engine.canonical import canonical, normalise
from models.engine.config import HYSTERESIS
from models.engine.cuts import Open, run_id
from models.engine.lines import BrokenExport, Line, read_lines
from models.engine.snapshots import SnapshotNotBuilt, engine_input
from models.engine.states import COMPLETED, FAILED

MISSING_INPUTS, MISSING_DETAIL = "missing_snapshot_inputs", "missing SnapshotInputs"
NOT_CALLED_AGAIN = frozenset({"engine_timeout", "publish_failure"})
"""Failures of the machine that a run ran on: they are told as they were recorded."""
ENGINE_FAILURE = "engine_failure"
LONGEST_DETAIL = 500


class Engine(Protocol):
    """One call of the engine."""

    def __call__(self, request: Mapping[str, Any], /) -> Mapping[str, Any]:
        """`{"ok": {...}}`, or `error_kind` and `error_detail`.

        A request has `mode`, `input`, with hysteresis `state` and `config`, and as `limits` the `engine` table of the
        run's configuration, for who keeps its bounds.
        """


@dataclass(frozen=True, slots=True)
class Replayed:
    """One run, made again: its events and their canonical JSON, and beside them what was recorded and published.

    `derived` is what the records say of the run, by the names that the run's own record has for it.
    """

    line: int
    run: Mapping[str, Any]
    derived: dict[str, Any]
    snapshot: tuple[int, str] | None
    events: list[dict[str, Any]]
    texts: list[str]
    published: list[dict[str, Any]]


def replay(
    lines: Iterable[str | bytes], engine: Engine, *, guarded: Engine | None = None, checked: bool = True
) -> Iterator[Replayed]:
    """Each run of an export with its events made again, in the order planned.

    `guarded` is asked instead of `engine` for runs that are recorded as failed: what they do to a process may be more
    than to raise. Raises BrokenExport, which names the line.
    """
    made = Replay(engine, guarded or engine)
    under_way: Replayed | None = None
    for line in read_lines(lines, checked=checked):
        if line.kind == "output" and under_way is not None:
            under_way.published.append(line.body["event"])
            continue
        if under_way is not None:
            if line.kind == "record":
                end_before(line.body["ingest_ts_ms"], under_way.derived)
            yield under_way
        under_way = made.take(line)


class Replay:
    """What a replay knows as it goes."""

    def __init__(self, engine: Engine, guarded: Engine) -> None:
        self.engine = engine
        self.guarded = guarded
        self.configs: dict[int, Mapping[str, Any]] = {}
        self.symbols: dict[str, Open] = {}
        self.last_seq = 0
        self.last_ts_ms = 0
        self.last_number = 0
        self.takes = {
            "header": self.begin,
            "config": self.take_config,
            "state": self.take_state,
            "record": self.take_record,
        }

    def take(self, line: Line) -> Replayed | None:
        """Take a line in; of a run, what comes of it."""
        if line.kind == "run":
            return self.take_run(line)
        if line.kind in self.takes:
            self.takes[line.kind](line)
        return None

    def begin(self, line: Line) -> None:
        self.last_seq = line.body["first_ingest_seq"] - 1
        for symbol, cuts in line.body["symbols"].items():
            if not (isinstance(cuts, list) and len(cuts) == 2 and all(type(seq) is int for seq in cuts)):  # noqa: PLR2004
                raise BrokenExport(line.number, f"symbols says of {symbol!r} no start and end of its cuts")
            self.symbols[symbol] = Open(*cuts)

    def take_config(self, line: Line) -> None:
        self.configs[line.body["version"]] = line.body["body"]

    def take_state(self, line: Line) -> None:
        """The newest before the beginning; exports from before there were epochs name none."""
        self.opened(line).states[epoch_of(line.body, line.number)] = line.body["state"]

    def opened(self, line: Line) -> Open:
        try:
            return self.symbols[line.body["symbol"]]
        except KeyError:
            raise BrokenExport(line.number, f"the header names no symbol {line.body['symbol']!r}") from None

    def take_record(self, line: Line) -> None:
        seq, ts_ms, text = line.body["ingest_seq"], line.body["ingest_ts_ms"], line.body["event"]
        if seq != self.last_seq + 1:
            raise BrokenExport(
                line.number, f"ingest_seq is {seq}, and must be {self.last_seq + 1}: records are missing"
            )
        if ts_ms < self.last_ts_ms:
            raise BrokenExport(line.number, f"ingest_ts_ms goes back from {self.last_ts_ms} to {ts_ms}")
        self.last_seq, self.last_ts_ms = seq, ts_ms
        symbol, event_type, timestamp_ms = envelope(line.number, text)
        opened = self.symbols.get(symbol)
        if opened is not None and opened.start <= seq <= opened.last:
            opened.take(seq, event_type, timestamp_ms, text)

    def take_run(self, line: Line) -> Replayed:
        run, opened = line.body, self.opened(line)
        end = run["cut_end_ingest_seq"]
        if end > self.last_seq:
            raise BrokenExport(line.number, f"its cut ends at {end}, but the records before it at {self.last_seq}")
        if run["number"] <= self.last_number:
            raise BrokenExport(line.number, f"run number {run['number']} comes after {self.last_number}")
        self.last_number = run["number"]
        snapshot = opened.find_snapshot(run["engine_timestamp_ms"], end)
        derived = {
            "run_id": run_id(run["symbol"], run["engine_timestamp_ms"], end, run["engine_mode"]),
            "cut_start_ingest_seq": opened.start,
            "counts_by_event_type": opened.count(end),
            "snapshot_ingest_seq": snapshot and snapshot[0],
        }
        opened.close(end)
        told = {**run, **derived, "id": derived["run_id"], "snapshot_ingest_seq": run.get("snapshot_ingest_seq")}
        made = self.events_of(told, opened, snapshot, line.number)
        derived |= ending(made[-1]) | self.planned(run)
        return Replayed(line.number, run, derived, snapshot, made, [*map(text_of, made)], [])

    def events_of(
        self, run: dict[str, Any], opened: Open, snapshot: tuple[int, str] | None, number: int
    ) -> list[dict[str, Any]]:
        """The run's events; moves the symbol's state on."""
        outcome = self.outcome(run, opened, snapshot, number)
        made = [events.started_event(run)]
        if "ok" not in outcome:
            kind, detail = outcome["error_kind"], storable(outcome["error_detail"])
            return [*made, events.failed_event({**run, "error_kind": kind, "error_detail": detail})]
        answered = outcome["ok"]
        if run["engine_mode"] == HYSTERESIS:
            if answered["state"] is not None:  # none is no news: the state before stays the last one stored
                epoch = epoch_of(self.limits_of(run, number), number)
                opened.states[epoch] = orjson.loads(canonical(answered["state"]))
            made.append(events.decision_event(run, answered["hysteresis_decision"]))
        return [*made, events.completed_event(run, answered["regime_output"])]

    def outcome(
        self, run: Mapping[str, Any], opened: Open, snapshot: tuple[int, str] | None, number: int
    ) -> Mapping[str, Any]:
        """What the engine answers, or how the run fails before or without it."""
        if snapshot is None:
            return {"error_kind": MISSING_INPUTS, "error_detail": MISSING_DETAIL}
        try:
            given = engine_input(snapshot[1], run["engine_timestamp_ms"])
        except SnapshotNotBuilt as error:
            return {"error_kind": error.code, "error_detail": error.message}
        if was_not_the_engine(run):
            return {"error_kind": run["error_kind"], "error_detail": run["error_detail"]}
        limits = self.limits_of(run, number)
        request = {"mode": run["engine_mode"], "input": given, "limits": limits}
        if run["engine_mode"] == HYSTERESIS:
            state = opened.states.get(epoch_of(limits, number))
            request |= {"state": state, "config": limits.get("hysteresis")}
        return (self.engine if run["status"] == COMPLETED else self.guarded)(request)

    def planned(self, run: Mapping[str, Any]) -> dict[str, int]:
        """The time that it was planned for, if its cut ends with the last record that there is yet."""
        came_ms = self.last_ts_ms if run["cut_end_ingest_seq"] == self.last_seq else 0
        right = planned_time(self.configs.get(run["config_version"], {}), run, came_ms)
        return {} if right is None else {"planned_ts_ms": right}

    def limits_of(self, run: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        """How the run's configuration has the engine called."""
        limits = self.configs.get(run["config_version"], {}).get("engine")
        if not isinstance(limits, Mapping):
            raise BrokenExport(number, f"the configuration {run['config_version']} is not in the export")
        return limits


def end_before(ts_ms: int, derived: dict[str, Any]) -> None:
    """The next record is in no cut yet: it cannot have come by the time that the last run was planned for."""
    if derived.get("planned_ts_ms", -1) >= ts_ms:
        derived["planned_ts_ms"] = ts_ms - 1


def epoch_of(said: Mapping[str, Any], number: int) -> int:
    """The epoch that a state, or a configuration's engine, says it is of; what was written before there were any: 0."""
    epoch = said.get("state_epoch", 0)
    if type(epoch) is not int:
        raise BrokenExport(number, f"state_epoch is {epoch!r:.50}, no whole number")
    return epoch


def text_of(event: Mapping[str, Any]) -> str:
    """The event's canonical JSON: what is not the engine's own in it is normal already."""
    whole = {**event, "payload": normalise(event["payload"])}
    return orjson.dumps(whole, option=orjson.OPT_SORT_KEYS).decode()


def ending(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's record says of its end, by the event that told it."""
    if told["event_type"] == events.RUN_COMPLETED:
        return {"status": COMPLETED, "error_kind": None, "error_detail": None}
    return {"status": FAILED, **{name: told["payload"][name] for name in ("error_kind", "error_detail")}}


def was_not_the_engine(run: Mapping[str, Any]) -> bool:
    """Whether the run failed of something that no call of the engine can show: its time was up, its workers were lost.

    What the engine answers is recorded together with the record that it was given.
    """
    unasked = run.get("error_kind") == ENGINE_FAILURE and run.get("snapshot_ingest_seq") is None
    return unasked or run.get("error_kind") in NOT_CALLED_AGAIN


def storable(detail: str) -> str:
    """A detail as runs keep it: what Postgres can hold, and of that the beginning."""
    return detail[:LONGEST_DETAIL].encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")[:LONGEST_DETAIL]


def envelope(number: int, text: str) -> tuple[str, str, Any]:
    """Symbol, event type and the timestamp in `normalized` of an event's text."""
    try:
        event = orjson.loads(text)
        normalized = event["normalized"]
        return event["symbol"], event["event_type"], normalized.get("timestamp_ms")
    except (orjson.JSONDecodeError, TypeError, KeyError, AttributeError):
        raise BrokenExport(number, "its event is not a raw market event") from None
