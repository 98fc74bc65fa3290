"""Checks of the engine's log: what was accepted is in it once, under the numbers that were answered, and nothing else.

Every event that a run sends has a name of its own, its `source_event_id`: the name of its batch, and its place in it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson

from tests.chaos.evidence import Evidence, Row, Violation, grouped
from tests.chaos.history import Call

REFUSED_STATUSES = frozenset({400, 413, 422})
REFUSED_CODES = frozenset({"buffer_full", "buffer_busy", "engine_stopped", "engine_not_configured"})
"""What an answer says when nothing was appended. After any other one without success the commit may have come."""

Found = dict[str, list[Row]]


def sent_as(record: Row) -> Any:
    return orjson.loads(record["event"])


def name_of(event: Row) -> str:
    return str(event.get("source_event_id"))


def found_records(evidence: Evidence) -> Found:
    """The records under each name that a sender gave."""
    return grouped(evidence.records, lambda record: name_of(sent_as(record)))


def check_numbers(evidence: Evidence) -> Iterator[Violation]:
    """From 1 on without a gap, in a time that never goes back, and counted as they are."""
    told = [record["ingest_seq"] for record in evidence.records]
    if told != list(range(1, len(told) + 1)):
        wrong = next(seq for seq, expected in itertools.zip_longest(told, range(1, len(told) + 1)) if seq != expected)
        yield Violation("numbers are gapless from 1", f"{len(told)} records; the first that is wrong: {wrong}")
    for one, following in itertools.pairwise(evidence.records):
        if following["ingest_ts_ms"] < one["ingest_ts_ms"]:
            shown = f"{following['ingest_seq']}: {following['ingest_ts_ms']} after {one['ingest_ts_ms']}"
            yield Violation("time in the log never goes back", shown)
    for engine in evidence.engine:
        if engine["last_seq"] != len(told):
            yield Violation("numbers are gapless from 1", f"{len(told)} records, the head says {engine['last_seq']}")
    kept = Counter((record["source_id"], record["event_type"]) for record in evidence.records)
    counted = {(row["source_id"], row["event_type"]): row["events"] for row in evidence.totals}
    if counted != dict(kept):
        yield Violation("the log's totals count what is there", f"counted {counted}, there are {dict(kept)}")


def check_batches(evidence: Evidence) -> Iterator[Violation]:
    """What was accepted is there once, as it was sent, under the numbers that were answered; what was not, leaves
    nothing, or is there whole when nobody was told.
    """
    found = found_records(evidence)
    for batch, calls in grouped_calls(evidence).items():
        sent = calls[0].request["body"]
        records = [found.get(name_of(event), []) for event in sent]
        accepted = [call.answer for call in calls if call.is_acknowledged]
        if accepted:
            yield from check_accepted(batch, sent, records, accepted)
        elif any(records):
            yield from check_unanswered(batch, sent, records, calls)


def grouped_calls(evidence: Evidence) -> dict[str, list[Call]]:
    """The requests of each batch: with a key it may have been sent again."""
    batches: dict[str, list[Call]] = {}
    for call in evidence.calls_of("append"):
        batches.setdefault(call.request["batch"], []).append(call)
    return batches


def check_accepted(batch: str, sent: list[Row], records: list[list[Row]], accepted: list[Row]) -> Iterator[Violation]:
    first, last = accepted[0]["first_ingest_seq"], accepted[0]["last_ingest_seq"]
    if any(answer != accepted[0] for answer in accepted) or accepted[0]["accepted"] != len(sent):
        yield Violation("a batch has one answer", f"{batch} of {len(sent)}: {accepted}")
    seqs = [[record["ingest_seq"] for record in each] for each in records]
    if seqs != [[seq] for seq in range(first, last + 1)]:
        shown = f"{batch} was answered {first} to {last}, it is at {seqs}"
        yield Violation("an accepted batch is in the log once, as answered", shown)
    yield from check_whole(batch, sent, records)


def check_unanswered(batch: str, sent: list[Row], records: list[list[Row]], calls: list[Call]) -> Iterator[Violation]:
    if all(is_refusal(call) for call in calls):
        shown = f"{batch}: {[call.status for call in calls]}, and {sum(map(len, records))} records"
        yield Violation("a refused batch leaves nothing", shown)
    seqs = [record["ingest_seq"] for each in records for record in each]
    if seqs != list(range(seqs[0], seqs[0] + len(sent))):
        yield Violation("a batch is in the log whole or not at all", f"{batch} of {len(sent)} is at {seqs}")
    yield from check_whole(batch, sent, records)


def is_refusal(call: Call) -> bool:
    """Whether the answer says that nothing was appended."""
    code = call.answer.get("code") if isinstance(call.answer, dict) else None
    return call.status in REFUSED_STATUSES or (call.status is not None and code in REFUSED_CODES)


def check_whole(batch: str, sent: list[Row], records: list[list[Row]]) -> Iterator[Violation]:
    """One time for the whole batch, and each event as it was sent."""
    times = {record["ingest_ts_ms"] for each in records for record in each}
    if len(times) > 1:
        yield Violation("a batch has one time", f"{batch}: {sorted(times)}")
    for event, each in zip(sent, records, strict=True):
        if any(sent_as(record) != event for record in each):
            yield Violation("an event is kept as it was sent", f"{batch}: {name_of(event)}")


def check_nothing_else(evidence: Evidence) -> Iterator[Violation]:
    """Nothing is in the log that nobody sent, or that is no event."""
    sent = {name_of(event) for call in evidence.calls_of("append") for event in call.request["body"]}
    sent |= {name_of(call.request["event"]) for call in evidence.calls_of("push") if not call.request["is_wrong"]}
    for name, records in found_records(evidence).items():
        if name not in sent:
            yield Violation("nothing is in the log that was not sent", f"{name} at {records[0]['ingest_seq']}")


def check_pushes(evidence: Evidence) -> Iterator[Violation]:
    """What the subscription took from its stream is in the log as it was pushed: at least once."""
    found = found_records(evidence)
    pushed = {name_of(call.request["event"]): call.request for call in evidence.calls_of("push")}
    for call in evidence.calls_of("taken"):
        for name in call.request["names"]:
            request = pushed[name]
            if not request["is_wrong"] and name not in found:
                yield Violation("what is taken from the stream is in the log", f"{name}, seen gone by {call.who}")
    for name, request in pushed.items():
        if any(sent_as(record) != request["event"] for record in found.get(name, [])):
            yield Violation("an event is kept as it was sent", name)
