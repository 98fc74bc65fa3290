"""Checks of the kernel's own rules: ledgers are paths, fences rise, leases exclude each other, schedules fire once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from models.engine.states import ENGINE, RUN
from models.kernel.bulk_moves import OPERATION
from models.kernel.machine import Machine
from models.kernel.webhooks.tables import DELIVERY, WEBHOOK
from models.tickets.states import TICKET
from tests.chaos.evidence import Evidence, Row, Violation, grouped

MACHINES: dict[str, Machine] = {
    machine.kind: machine for machine in (TICKET, OPERATION, DELIVERY, WEBHOOK, RUN, ENGINE)
}
BORN_BEFORE = frozenset({ENGINE.kind})
"""Whose first revision no ledger tells: the schema made it."""


def check_ledgers(evidence: Evidence) -> Iterator[Violation]:
    moves = (row for row in evidence.ledger if row["to_state"] is not None)
    for (kind, subject_id), rows in grouped(moves, lambda row: (row["subject_kind"], row["subject_id"])).items():
        if kind not in MACHINES:
            yield Violation("only what has a machine has states", f"{kind} {subject_id}")
        elif wrong := wrong_step(MACHINES[kind], rows):
            yield Violation("every ledger is a path through its machine", f"{kind} {subject_id}: {wrong}")
    both = [*evidence.of_tickets, *evidence.of_runs]
    last = {row["subject_id"]: row for row in both if row["to_state"] is not None}
    for subject in (*evidence.tickets, *evidence.runs):
        row = last.get(subject["id"])
        told = (row["to_state"], row["revision"]) if row else None
        if told != (subject["state"], subject["revision"]):
            shown = f"{subject['id']}: {told}, the row says {subject['state']}, {subject['revision']}"
            yield Violation("the ledger ends where the row is", shown)


def wrong_step(machine: Machine, rows: list[Row]) -> str | None:
    """The first step that is no edge, or whose number is not the next; rows are in the order of their seq."""
    begun = machine.kind in BORN_BEFORE
    at = machine.initial if begun else None
    for number, row in enumerate(rows, start=2 if begun else 1):
        step = f"seq {row['seq']}: {row['from_state']} -> {row['to_state']} as revision {row['revision']}"
        if row["revision"] != number or row["from_state"] != at:
            return f"{step}, after {at} as {number - 1}"
        if at is None and row["to_state"] != machine.initial:
            return f"{step} is no beginning"
        if at is not None and not machine.allows(at, row["to_state"]):
            return f"{step} is no edge"
        at = row["to_state"]
    return None


def check_leases(evidence: Evidence) -> Iterator[Violation]:
    fences = [row["fence"] for row in evidence.leases if row["act"] == "taken"]
    if len(fences) != len(set(fences)):
        yield Violation("no fence is given twice", f"{len(fences) - len(set(fences))} of {len(fences)}")
    by_job = grouped(evidence.leases, lambda row: (row["subject_kind"], row["subject_id"]))
    by_lane = grouped((row for row in evidence.leases if row["lane"] is not None), lambda row: row["lane"])
    for of, rows in itertools.chain(by_job.items(), by_lane.items()):
        yield from check_one_at_a_time(str(of), sorted(rows, key=lambda row: (row["at"], row["n"])))


def check_one_at_a_time(of: str, rows: list[Row]) -> Iterator[Violation]:
    """Taken and ended take turns, each pair under one fence, and the next fence is higher."""
    live: int | None = None
    highest = 0
    for row in rows:
        if row["act"] == "taken":
            if live is not None:
                yield Violation("at most one lease is live", f"{of}: {row['fence']} beside {live}")
            if row["fence"] <= highest:
                yield Violation("fences only rise", f"{of}: {row['fence']} after {highest}")
            live, highest = row["fence"], max(highest, row["fence"])
        else:
            if live != row["fence"]:
                yield Violation("at most one lease is live", f"{of}: {row['fence']} ended while {live} was live")
            live = None


def check_schedules(evidence: Evidence) -> Iterator[Violation]:
    for name, fires in grouped(evidence.fires, lambda row: row["name"]).items():
        due = [row["due"] for row in fires]
        numbers = [row["number"] for row in fires]
        if len(due) != len(set(due)) or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            twice = sorted({each for each in due if due.count(each) > 1})
            yield Violation("a schedule fires once for each due time", f"{name}: twice {twice[:5]}")
        for row in fires:
            if row["paused"]:
                yield Violation("a paused schedule does not fire", f"{name} number {row['number']}")
        for since, until in pauses(evidence, name):
            inside = [row["number"] for row in fires if since < row["at"] < until]
            if inside:
                yield Violation("a paused schedule does not fire", f"{name}: numbers {inside}")


def pauses(evidence: Evidence, name: str) -> list[tuple[float, float]]:
    """From the answer to a pause to the next request to resume, whether or not that was answered."""
    calls = sorted(
        (call for call in evidence.calls_of("pause", "resume") if call.request["name"] == name),
        key=lambda call: call.began,
    )
    found = []
    for place, call in enumerate(calls):
        if call.kind == "pause" and call.is_acknowledged:
            resumes = [other.began for other in calls[place + 1 :] if other.kind == "resume"]
            # a resume without an answer may be carried out at any later time, as one that came before may still be
            before = [other for other in calls[:place] if other.kind == "resume" and other.status is None]
            if not before:
                found.append((call.ended, min(resumes, default=evidence.now)))
    return found


def check_readers(evidence: Evidence) -> Iterator[Violation]:
    """Each reader began at the earliest event and heard every one that it wanted, once and in order."""
    from models.tickets.events import PUBLIC_TOPICS

    public = [row for row in evidence.of_tickets if row["topic"] in PUBLIC_TOPICS]
    for reader in evidence.readers:
        wanted = [row["seq"] for row in public if reader.target in (None, row["body"].get("target"))]
        heard = [event["seq"] for event in reader.events]
        if heard == wanted:
            continue
        missed, extra = sorted(set(wanted) - set(heard)), sorted(set(heard) - set(wanted))
        twice = len(heard) - len(set(heard))
        told = f"{reader.name}: missed {missed[:10]}, extra {extra[:10]}, {twice} twice, of {len(wanted)}"
        yield Violation("a reader hears each event once and in order", told)
