"""The checks of the engine one by one: a sound history passes, and each broken promise is found in one that is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest

from tests.chaos.checker import check
from tests.chaos.engine_history import (
    BATCHES,
    BTC,
    ETH,
    FIRST_MS,
    SECOND_MS,
    WRONG,
    event,
    run_of,
    sound,
    told_of,
)
from tests.chaos.evidence import Evidence


def promises(change: Callable[[Evidence], object]) -> set[str]:
    evidence = copy.deepcopy(sound())
    change(evidence)
    return {violation.promise for violation in check(evidence)}


def test_a_sound_history_breaks_no_promise() -> None:
    assert check(sound()) == []


def lost_record(e: Evidence) -> None:
    """The last of a batch is not there, and those behind it have moved up."""
    del e.records[1]
    for place, each in enumerate(e.records, 1):
        each["ingest_seq"] = place


def kept_again(e: Evidence) -> None:
    e.records.append({**e.records[0], "ingest_seq": 6, "ingest_ts_ms": 4000})


def partly_kept(e: Evidence) -> None:
    """Of the batch that nobody was told of one event is there, and the other is not."""
    e.calls[3].request["body"].append(event("c/1", ETH))


def refused_and_kept(e: Evidence) -> None:
    e.calls[3].status, e.calls[3].answer = 503, {"code": "buffer_full"}


def swapped(e: Evidence) -> None:
    """The two runs of BTC were carried out in the wrong order, each by itself."""
    e.runs[0], e.runs[1] = e.runs[1], e.runs[0]
    e.ledger, e.outputs, e.leases = told_of(e.runs)


def interleaved(e: Evidence) -> None:
    """The second run of BTC starts before the first has ended."""
    place = next(n for n, output in enumerate(e.outputs) if output["run_id"] == e.runs[1]["id"])
    e.outputs[1]["run_id"], e.outputs[place]["run_id"] = e.outputs[place]["run_id"], e.outputs[1]["run_id"]


def doubled(e: Evidence) -> None:
    e.runs.append({**e.runs[0], "number": 6, "id": "another"})


def missed_too_early(e: Evidence) -> None:
    """The second tick was left out at once, although nothing kept anybody from planning it."""
    body = {"missed": 1, "from_ms": SECOND_MS, "to_ms": SECOND_MS}
    e.ledger.append({**e.ledger[0], "seq": 99, "subject_kind": "engine", "topic": "engine_ticks_missed", "body": body})
    e.ledger[-1] |= {"to_state": None, "from_state": None, "at": 3.0}


def waiting(e: Evidence) -> None:
    e.runs[4]["state"] = "waiting"


def gave_up(e: Evidence) -> None:
    e.runs[0].update(state="failed", error_kind="engine_failure")


def gained(e: Evidence) -> None:
    """A record that had come by the first tick is in the cut of the second."""
    e.runs[0].update(cut_end_ingest_seq=1)
    e.runs[1].update(cut_start_ingest_seq=2)


CASES: dict[str, tuple[str, Callable[[Evidence], object]]] = {
    "a record is lost": ("an accepted batch is in the log once, as answered", lost_record),
    "a batch is kept twice": ("an accepted batch is in the log once, as answered", kept_again),
    "answered otherwise": (
        "an accepted batch is in the log once, as answered",
        lambda e: e.calls[2].answer.update(first_ingest_seq=4, last_ingest_seq=4),
    ),
    "a key has two answers": (
        "a batch has one answer",
        lambda e: e.calls.insert(2, copy.deepcopy(e.calls[1])) or e.calls[2].answer.update(accepted=1),
    ),
    "kept in part": ("a batch is in the log whole or not at all", partly_kept),
    "refused and kept": ("a refused batch leaves nothing", refused_and_kept),
    "two times in a batch": ("a batch has one time", lambda e: e.records[1].update(ingest_ts_ms=1401)),
    "kept otherwise": (
        "an event is kept as it was sent",
        lambda e: e.records[2].update(event=json.dumps({**BATCHES["b"][0], "more": 1})),
    ),
    "nobody sent it": ("nothing is in the log that was not sent", lambda e: e.calls.pop(3)),
    "no event is kept": (
        "nothing is in the log that was not sent",
        lambda e: e.records[4].update(event=json.dumps(WRONG)),
    ),
    "an entry is lost": (
        "what is taken from the stream is in the log",
        lambda e: e.records[3].update(event=json.dumps(event("c/0", ETH))),
    ),
    "a gap": ("numbers are gapless from 1", lambda e: e.records[4].update(ingest_seq=6)),
    "the head is ahead": ("numbers are gapless from 1", lambda e: e.engine[0].update(last_seq=6)),
    "time goes back": ("time in the log never goes back", lambda e: e.records[3].update(ingest_ts_ms=1599)),
    "miscounted events": ("the log's totals count what is there", lambda e: e.totals[0].update(events=3)),
    "a run is missing": ("every planned tick has exactly one run of each symbol", lambda e: e.runs.pop(2)),
    "a run is doubled": ("every planned tick has exactly one run of each symbol", doubled),
    "a cut gains a record": ("a cut is what had come by its time", gained),
    "a cut loses a record": ("a cut is what had come by its time", lambda e: e.runs[3].update(cut_start_ingest_seq=4)),
    "missed too early": ("ticks are missed beyond the stated bound alone", missed_too_early),
    "miscounted ticks": ("ticks, skips and misses are counted", lambda e: e.engine[0].update(skipped_ticks=0)),
    "a cadence begins anew": ("a cadence goes on by its interval alone", lambda e: e.cadences.append(e.cadences[0])),
    "another record selected": (
        "a run follows from the records of its cut",
        lambda e: e.runs[0].update(snapshot_ingest_seq=1),
    ),
    "another identity": ("a run follows from the records of its cut", lambda e: e.runs[0].update(id="0" * 64)),
    "a run never ends": ("every planned run ends", waiting),
    "a run fails unasked": ("runs fail for a known reason alone", gave_up),
    "a job is left": ("nothing is owed when all has ended", lambda e: e.jobs.append({"subject_kind": "engine_run"})),
    "overtaken": ("runs of a symbol are carried out in the order of their timestamps", swapped),
    "two at once": ("runs of a symbol are carried out in the order of their timestamps", interleaved),
    "an output is missing": ("a run has exactly its outputs, in order", lambda e: e.outputs.pop(2)),
    "an output is doubled": ("a run has exactly its outputs, in order", lambda e: e.outputs.append(e.outputs[-1])),
    "outputs out of order": ("a run has exactly its outputs, in order", lambda e: e.outputs.reverse()),
    "the ledger tells another": ("outputs and ledger tell the same", lambda e: e.outputs[-1].update(seq=99)),
    "an output changes": ("outputs never change", lambda e: e.outputs[0].update(event="another")),
    "an output goes": ("outputs never change", lambda e: e.outputs.pop()),
    "an output missed": ("a reader hears each output once and in order", lambda e: e.listeners[0].events.pop(3)),
    "an output heard twice": (
        "a reader hears each output once and in order",
        lambda e: e.listeners[1].events.append(e.listeners[1].events[-1]),
    ),
    "heard out of order": ("a reader hears each output once and in order", lambda e: e.listeners[0].events.reverse()),
    "heard otherwise": (
        "a reader hears each output once and in order",
        lambda e: e.listeners[0].events[0].update(event="another"),
    ),
    "not pushed": ("the stream of outputs lacks none and keeps their order", lambda e: e.pushed.pop(3)),
    "pushed out of order": ("the stream of outputs lacks none and keeps their order", lambda e: e.pushed.reverse()),
    "no replay": ("a replay makes every output again", lambda e: e.replayed.update(verified=False)),
    "a replay of a part": ("a replay makes every output again", lambda e: e.replayed.update(runs=3)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_promise_is_found(case: str) -> None:
    promise, change = CASES[case]
    assert promise in promises(change)


def test_an_entry_that_comes_twice_breaks_no_promise() -> None:
    def again(e: Evidence) -> None:
        e.records.insert(4, {**e.records[3], "ingest_seq": 5, "ingest_ts_ms": 2600})
        e.records[5]["ingest_seq"] = 6
        e.engine[0]["last_seq"] = 6

    found = promises(again)
    assert not {promise for promise in found if "log" in promise and "totals" not in promise}


def test_what_is_pushed_twice_breaks_no_promise() -> None:
    assert promises(lambda e: e.pushed.insert(3, e.pushed[2])) == set()


def test_a_tick_that_is_missed_beyond_the_bound_breaks_no_promise_and_its_records_fall_to_the_next() -> None:
    def missed(e: Evidence) -> None:
        body = {"missed": 1, "from_ms": FIRST_MS, "to_ms": FIRST_MS}
        note = {**e.ledger[0], "subject_kind": "engine", "from_state": None, "to_state": None, "at": 4.0}
        del e.runs[0]
        e.runs[0] = run_of(
            2,
            BTC,
            SECOND_MS,
            (1, 4),
            snapshot_ingest_seq=4,
            counts_by_event_type={"TradeTick": 1, "SnapshotInputs": 2},
        )
        e.ledger, e.outputs, e.leases = told_of(e.runs)
        e.ledger.append({**note, "seq": 99, "topic": "engine_ticks_missed", "body": body})
        e.told_outputs = [{"seq": output["seq"], "event": output["event"]} for output in e.outputs]
        e.engine[0].update(ticks=2, skipped_ticks=0, missed_ticks=1)
        e.listeners, e.pushed, e.replayed = [], None, None

    assert promises(missed) == set()
