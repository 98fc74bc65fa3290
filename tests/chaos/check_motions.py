"""Checks of what robots did: once, when asked, in time, one thing at a time, and not after an e-stop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from models.tickets.tables import EVERYTHING
from tests.chaos.evidence import Evidence, Row, Violation, grouped

CLOCK_SLACK = 0.001
LONGEST_TAKE = 5.0
"""Seconds that a take may wait for locks between its look at the expiry and its start."""


def ended(motion: Row) -> float:
    """When the robot came to rest: it does so by itself at `until`."""
    return float(motion["ended_at"] if motion["ended_at"] is not None else motion["until"])


def check_motions_are_owed(evidence: Evidence) -> Iterator[Violation]:
    """Each motion has the fence of a lease of its own ticket, and no execution moved twice."""
    moved: dict[tuple[str, int], list[Row]] = {}
    for motion in evidence.motions:
        execution = evidence.execution_of.get(motion["fence"])
        if execution is None or execution[0] != motion["ticket_id"]:
            yield Violation("no motion without an execute", f"{motion['ticket_id']} under fence {motion['fence']}")
            continue
        if execution not in evidence.queued:
            yield Violation("no motion without an execute", f"{execution} was never accepted")
        moved.setdefault(execution, []).append(motion)
    for execution, motions in moved.items():
        if len(motions) > 1:
            yield Violation("no motion is carried out twice", f"{execution}: {[m['fence'] for m in motions]}")


def check_motions_come_in_time(evidence: Evidence) -> Iterator[Violation]:
    for ticket_id, starts in evidence.started.items():
        ticket = evidence.ticket[ticket_id]
        for start in starts:
            late = start["at"] - (ticket["expires_at"] or math.inf)
            if int(start["body"]["execution"]) == ticket["execution"] and late > LONGEST_TAKE:
                yield Violation("nothing starts after its expiry", f"{ticket_id}: {late:.2f} s late")
    for motion in evidence.motions:
        begun = evidence.start_of_fence.get(motion["fence"])
        bound = evidence.ticket[motion["ticket_id"]]["timeout_seconds"] if begun else 0
        if begun and motion["began_at"] > begun["at"] + bound + LONGEST_TAKE:
            yield Violation("no motion begins after its time", f"{motion['ticket_id']} fence {motion['fence']}")


def check_robots_do_one_thing(evidence: Evidence) -> Iterator[Violation]:
    for target, motions in grouped(evidence.motions, lambda motion: motion["target"]).items():
        in_order = sorted(motions, key=lambda motion: motion["began_at"])
        for one, next_ in itertools.pairwise(in_order):
            if ended(one) > next_["began_at"] + CLOCK_SLACK:
                yield Violation("a robot does one thing at a time", f"{target}: {one['fence']} and {next_['fence']}")
            if next_["fence"] <= one["fence"]:
                yield Violation("a robot's fences only rise", f"{target}: {one['fence']}, then {next_['fence']}")


def check_completed_drives(evidence: Evidence) -> Iterator[Violation]:
    """A drive that is recorded as completed had moved, to its end, before the record."""
    motion_of = {evidence.execution_of.get(motion["fence"]): motion for motion in evidence.motions}
    for execution, ends in evidence.outcomes.items():
        ticket = evidence.ticket.get(execution[0])
        if ticket is None or ticket["command"] != "drive" or ends[0]["to_state"] != "completed":
            continue
        motion = motion_of.get(execution)
        if motion is None:
            yield Violation("what is recorded as completed was carried out", f"{execution}: nothing moved")
        elif motion["end_reason"] != "elapsed" or motion["until"] > ends[0]["at"] + CLOCK_SLACK:
            told = (
                f"{execution}: {motion['end_reason']}, until {motion['until'] - ends[0]['at']:.3f} s after the record"
            )
            yield Violation("what is recorded as completed was carried out", told)


class Window(NamedTuple):
    """A time in which nothing may begin: from after the commit of an e-stop to before that of its release."""

    scope: str
    since: float
    until: float

    def covers(self, motion: Row) -> bool:
        over = self.scope in (EVERYTHING, motion["target"])
        return over and self.since < motion["began_at"] < self.until


def windows(evidence: Evidence) -> list[Window]:
    """The trigger speaks before the commit. An engagement has committed when the ledger was told, or the caller."""
    told = {
        (row["subject_id"], row["correlation_id"]): row["at"]
        for row in evidence.ledger
        if row["topic"] == "estop_engaged"
    }
    answered = {
        (call.request["scope"], call.correlation_id): call.ended
        for call in evidence.calls_of("engage")
        if call.is_acknowledged
    }
    found = []
    for scope, rows in grouped(evidence.latches, lambda row: row["scope"]).items():
        for row, following in itertools.zip_longest(rows, rows[1:]):
            if row["released"]:
                continue
            key = scope, row["correlation_id"]
            since = min(told.get(key, math.inf), answered.get(key, math.inf))
            until = following["at"] if following is not None else math.inf
            found.append(Window(scope, since, until))
    return found


def check_estops(evidence: Evidence) -> Iterator[Violation]:
    for window in windows(evidence):
        for motion in evidence.motions:
            if window.covers(motion):
                late = motion["began_at"] - window.since
                told = f"{motion['ticket_id']} on {motion['target']} {late:.3f} s after the e-stop of {window.scope}"
                yield Violation("nothing begins after an e-stop", told)


def check_everything_came_to_rest(evidence: Evidence) -> Iterator[Violation]:
    for motion in evidence.motions:
        if motion["ended_at"] is None and motion["until"] > evidence.now:
            yield Violation("every robot is at rest when all has ended", f"{motion['target']}: {motion['ticket_id']}")


def slowest_rest(evidence: Evidence) -> float:
    """The longest that a robot moved on after an e-stop had committed, in seconds; no promise, for faults delay it."""
    moved_on = [
        ended(motion) - window.since
        for window in windows(evidence)
        for motion in evidence.motions
        if window.scope in (EVERYTHING, motion["target"]) and motion["began_at"] <= window.since < ended(motion)
    ]
    return max(moved_on, default=0.0)
