"""The checks one by one: a sound history passes, and each broken promise is found in one that is not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.check_motions import windows
from tests.chaos.checker import check
from tests.chaos.evidence import Evidence, Heard, Row
from tests.chaos.history import Call

ID = "tick-20261121-00000001"


def told(seq: int, topic: str, step: tuple[str | None, str], at: float, request: str = "", **body: Any) -> Row:
    return {
        "seq": seq,
        "subject_kind": "ticket",
        "subject_id": ID,
        "revision": seq,
        "from_state": step[0],
        "to_state": step[1],
        "topic": topic,
        "actor": "worker:here",
        "reason": None,
        "correlation_id": request,
        "body": {"execution": 1, "target": "r1", **body},
        "at": at,
    }


TICKET: Row = {
    "id": ID,
    "command": "drive",
    "target": "r1",
    "state": "completed",
    "revision": 4,
    "execution": 1,
    "timeout_seconds": 30,
    "metadata": {"key": "k"},
    "expires_at": 302.0,
}
LEASE: Row = {"job_id": 7, "subject_kind": "ticket", "subject_id": ID, "lane": "robot:r1", "fence": 11}
MOTION: Row = {"target": "r1", "fence": 11, "ticket_id": ID, "end_reason": "elapsed"}


def sound() -> Evidence:
    """One drive: created under a key, executed, moved, completed; an e-stop afterwards; a schedule; a reader."""
    return Evidence(
        calls=[
            Call("c", "create", "c.1", {}, 0.5, "k", 1.1, 201, {"id": ID}),
            Call("c", "execute", "c.2", {}, 1.5, None, 5.1, 200, {"status": "completed"}),
            Call("c", "engage", "c.3", {"scope": "all"}, 6.0, None, 6.4, 200, {}),
            Call("c", "pause", "c.4", {"name": "tallies"}, 7.0, None, 7.5, 200, {}),
            Call("c", "resume", "c.5", {"name": "tallies"}, 9.0, None, 9.5, 200, {}),
        ],
        readers=[Heard("reader", events=[{"seq": seq} for seq in (1, 2, 3, 4)])],
        ledger=[
            told(1, "ticket_created", (None, "pending"), 1.0, "c.1"),
            told(2, "ticket_queued", ("pending", "queued"), 2.0, "c.2"),
            told(3, "execution_started", ("queued", "executing"), 3.0, "c.2"),
            told(4, "execution_completed", ("executing", "completed"), 5.0, "c.2", result={"x": 1}),
        ],
        tickets=[copy.deepcopy(TICKET)],
        motions=[{**MOTION, "began_at": 3.5, "until": 4.5, "ended_at": 4.5}],
        leases=[{**LEASE, "n": 1, "act": "taken", "at": 3.0}, {**LEASE, "n": 2, "act": "ended", "at": 5.0}],
        fires=[{"name": "tallies", "number": n, "due": f"due {n}", "paused": False, "at": float(n)} for n in (5, 6)],
        latches=[
            {"scope": "all", "correlation_id": "c.3", "released": False, "at": 6.1},
            {"scope": "all", "correlation_id": "c.3", "released": True, "at": 8.0},
        ],
        counted={"total": 1, "completed": 1, "failed": 0},
        now=20.0,
        low_within=5.0,
    )


def promises(change: Callable[[Evidence], object]) -> set[str]:
    evidence = copy.deepcopy(sound())
    change(evidence)
    return {violation.promise for violation in check(evidence)}


def test_a_sound_history_breaks_no_promise() -> None:
    assert check(sound()) == []


def moved_again(e: Evidence) -> None:
    """The lease was given back and taken again, and the robot moved under both fences."""
    e.ledger[3:3] = [
        told(4, "execution_released", ("executing", "queued"), 4.6),
        told(5, "execution_started", ("queued", "executing"), 4.7),
    ]
    e.ledger[5] |= {"seq": 6, "revision": 6}
    e.tickets[0]["revision"] = 6
    e.leases[1]["at"] = 4.6
    e.leases += [{**e.leases[0], "n": 3, "fence": 12, "at": 4.7}, {**e.leases[1], "n": 4, "fence": 12, "at": 5.0}]
    e.motions.append({**e.motions[0], "fence": 12, "began_at": 4.8, "until": 4.9, "ended_at": 4.9})
    e.readers.clear()


def low_waited(e: Evidence) -> None:
    e.tickets[0]["metadata"] = {"role": "low"}
    e.ledger[2]["at"] = 8.0
    e.ledger[3]["at"] = e.leases[1]["at"] = 9.0
    e.calls[0].key = None


def kept_twice(e: Evidence) -> None:
    other = ID[:-1] + "2"
    e.tickets.append({**e.tickets[0], "id": other, "state": "pending", "revision": 1, "execution": 0})
    e.ledger.append({**told(5, "ticket_created", (None, "pending"), 6.0), "subject_id": other, "revision": 1})
    e.readers[0].events.append({"seq": 5})
    e.counted = {"completed": 1, "pending": 1}


def unrecorded(e: Evidence) -> None:
    e.calls[1].status, e.calls[1].correlation_id = 202, "c.9"


def leased_again(e: Evidence) -> None:
    e.leases.extend([{**row, "at": row["at"] + 3} for row in e.leases])


def second_lease(e: Evidence) -> None:
    e.leases.insert(1, {**e.leases[0], "n": 3, "subject_id": "another", "fence": 12, "at": 4.0})


CASES: dict[str, tuple[str, Callable[[Evidence], object]]] = {
    "a create is lost": ("every acknowledged create exists", lambda e: e.calls[0].answer.update(id="gone")),
    "an execute is lost": ("an accepted execution is recorded once", unrecorded),
    "nobody asked": ("no execution without an execute", lambda e: e.calls.pop(1)),
    "no outcome": ("every accepted execution has exactly one outcome", lambda e: e.ledger.pop()),
    "two outcomes": (
        "every accepted execution has exactly one outcome",
        lambda e: e.ledger.append({**e.ledger[-1], "seq": 5}),
    ),
    "an outcome of nothing": ("no outcome without an execution", lambda e: e.ledger[3]["body"].update(execution=2)),
    "an unknown reason": (
        "executions fail for a known reason alone",
        lambda e: e.ledger[3].update(to_state="failed", reason="bug"),
    ),
    "overtaken by nobody": (
        "executions fail for a known reason alone",
        lambda e: e.ledger[3].update(to_state="failed", reason="stale_fence"),
    ),
    "told otherwise": (
        "the outcome that is told is the recorded one",
        lambda e: e.calls[1].answer.update(status="failed"),
    ),
    "a 500": ("every answer is one that the path gives", lambda e: setattr(e.calls[2], "status", 500)),
    "a key made two": ("an idempotency key makes one thing", kept_twice),
    "never settled": ("all is settled within 60 s of the last fault", lambda e: setattr(e, "settled_after", None)),
    "settled late": ("all is settled within 60 s of the last fault", lambda e: setattr(e, "settled_after", 61.0)),
    "still owed": ("nothing is owed when all has ended", lambda e: e.jobs.append({"subject_kind": "ticket"})),
    "a stop is owed": ("every stop is taken", lambda e: e.stops.append({"done_at": None})),
    "miscounted": ("the counts count what is there", lambda e: e.counted.update(failed=1)),
    "starved": ("a low ticket is started within 5 s", low_waited),
    "moved twice": ("no motion is carried out twice", moved_again),
    "moved unasked": ("no motion without an execute", lambda e: e.motions[0].update(fence=12)),
    "started late": ("nothing starts after its expiry", lambda e: e.tickets[0].update(expires_at=-3.0)),
    "began late": ("no motion begins after its time", lambda e: e.motions[0].update(began_at=40.0)),
    "two at a time": (
        "a robot does one thing at a time",
        lambda e: e.motions.append({**e.motions[0], "began_at": 4.0, "fence": 12}),
    ),
    "an old fence": (
        "a robot's fences only rise",
        lambda e: e.motions.append({**e.motions[0], "began_at": 4.6, "fence": 10}),
    ),
    "never moved": ("what is recorded as completed was carried out", lambda e: e.motions.clear()),
    "still moving": ("what is recorded as completed was carried out", lambda e: e.motions[0].update(until=5.5)),
    "after an e-stop": ("nothing begins after an e-stop", lambda e: e.motions[0].update(began_at=6.5)),
    "not at rest": (
        "every robot is at rest when all has ended",
        lambda e: e.motions[0].update(ended_at=None, until=21.0),
    ),
    "no edge": ("every ledger is a path through its machine", lambda e: e.ledger[2].update(to_state="completed")),
    "a revision left out": ("every ledger is a path through its machine", lambda e: e.ledger[2].update(revision=4)),
    "the row is elsewhere": ("the ledger ends where the row is", lambda e: e.tickets[0].update(state="failed")),
    "two leases": ("at most one lease is live", second_lease),
    "a fence twice": ("no fence is given twice", leased_again),
    "fired twice": ("a schedule fires once for each due time", lambda e: e.fires[1].update(due="due 5")),
    "fired while paused": ("a paused schedule does not fire", lambda e: e.fires[1].update(at=8.0)),
    "fired as paused": ("a paused schedule does not fire", lambda e: e.fires[1].update(paused=True)),
    "an event missed": ("a reader hears each event once and in order", lambda e: e.readers[0].events.pop(1)),
    "an event twice": ("a reader hears each event once and in order", lambda e: e.readers[0].events.append({"seq": 4})),
    "out of order": ("a reader hears each event once and in order", lambda e: e.readers[0].events.reverse()),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_promise_is_found(case: str) -> None:
    promise, change = CASES[case]
    assert promise in promises(change)


def test_a_robot_may_refuse_what_a_newer_stop_has_overtaken() -> None:
    def overtaken(e: Evidence) -> None:
        e.ledger[3].update(to_state="failed", reason="stale_fence")
        e.tickets.append({**e.tickets[0], "id": "stop", "command": "stop"})
        e.leases.append({**e.leases[0], "n": 3, "subject_id": "stop", "lane": None, "fence": 12})

    assert "executions fail for a known reason alone" not in promises(overtaken)


def test_an_estop_counts_from_the_moment_at_which_somebody_knew_that_it_had_committed() -> None:
    evidence = sound()
    (window,) = windows(evidence)
    assert (window.scope, window.since, window.until) == ("all", 6.4, 8.0)
    evidence.calls[2].status = None
    assert windows(evidence)[0].since == math.inf
    evidence.ledger.append({**told(5, "estop_engaged", (None, ""), 6.2, "c.3"), "subject_id": "all", "to_state": None})
    assert windows(evidence)[0].since == 6.2


def test_a_pause_counts_only_while_no_unanswered_resume_may_still_come() -> None:
    def fired_in_it(e: Evidence) -> None:
        e.fires[1]["at"] = 8.0
        e.calls.insert(0, Call("c", "resume", "c.0", {"name": "tallies"}, 0.1, None, 6.0))

    assert promises(fired_in_it) == set()
