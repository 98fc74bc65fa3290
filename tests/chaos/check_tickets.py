"""Checks of what callers were promised: their tickets, their executions, their keys and their answers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from models.tickets import events
from models.tickets.transitions import STOPPING
from tests.chaos.evidence import Evidence, Violation
from tests.chaos.history import Call

LONGEST_SETTLING = 60.0
OK, ACCEPTED, CREATED = 200, 202, 201
STALE = "stale_fence"

EXPECTED_FAILURES = frozenset(
    {
        "outcome_unknown",
        "database_unavailable",
        "locked",  # a process that was frozen while it spoke to a simulated robot kept it from others
        "lease_lost",
        "revoked",
        "shutdown",
        "expired",
        "emergency_stop",
        "cancelled",
        "stop",
        "brake",
    }
)
"""What faults, e-stops, stops and cancellations may make of an execution. Nothing else has a reason in a run."""

EXPECTED_STATUSES = {
    "create": {CREATED, 409, 503},
    "batch": {CREATED, 409, 503},
    "execute": {OK, ACCEPTED, 409, 503},
    "cancel": {OK, 409, 503},
    "bulk_execute": {ACCEPTED, 409, 503},
    "bulk_cancel": {ACCEPTED, 409, 503},
    "bulk_replay": {ACCEPTED, 409, 503},
    "engage": {OK, 503},
    "release": {OK, 409, 503},
    "pause": {OK, 503},
    "resume": {OK, 503},
    "run": {OK, ACCEPTED, 409, 503},
    "read": {OK, 503},
    "append": {CREATED, 409, 422, 503},
    "push": {CREATED},
    "engine": {OK, 409, 503},
}


def made_by(call: Call) -> list[str]:
    """The tickets that an acknowledged create or batch named."""
    if call.kind == "batch":
        return [ticket["id"] for ticket in call.answer["tickets"]]
    return [call.answer["id"]]


def check_creates(evidence: Evidence) -> Iterator[Violation]:
    for call in evidence.calls_of("create", "batch"):
        lost = [one for one in made_by(call) if one not in evidence.ticket] if call.is_acknowledged else []
        if lost:
            yield Violation("every acknowledged create exists", f"{call.correlation_id}: {lost}")


def check_acceptances(evidence: Evidence) -> Iterator[Violation]:
    """An acknowledged execute was recorded once, and no execution was accepted that nobody asked for."""
    by_request = Counter(row["correlation_id"] for row in evidence.queued.values())
    for call in evidence.calls_of("execute"):
        if call.is_acknowledged and by_request[call.correlation_id] != 1:
            shown = f"{call.correlation_id} was recorded {by_request[call.correlation_id]} times"
            yield Violation("an accepted execution is recorded once", shown)
    asking = {"execute", "bulk_execute", "bulk_replay"}
    for pair, row in evidence.queued.items():
        asked = evidence.requests.get(row["correlation_id"])
        if asked is None or asked.kind not in asking:
            yield Violation("no execution without an execute", f"{pair} under {row['correlation_id']}")


def check_outcomes(evidence: Evidence) -> Iterator[Violation]:
    for pair, row in evidence.queued.items():
        ends = evidence.outcomes.get(pair, [])
        if len(ends) != 1:
            told = [(end["topic"], end["reason"]) for end in ends]
            yield Violation("every accepted execution has exactly one outcome", f"{pair} seq {row['seq']}: {told}")
    for pair, ends in evidence.outcomes.items():
        if pair not in evidence.queued and (pair[1] != 0 or len(ends) != 1):
            yield Violation("no outcome without an execution", f"{pair}: {[end['topic'] for end in ends]}")
        for end in ends:
            is_known = end["reason"] in EXPECTED_FAILURES or (
                end["reason"] == STALE and is_overtaken_by_stop(evidence, pair[0])
            )
            if end["to_state"] == "failed" and not is_known:
                told = f"{pair}: {end['reason']}: {end['body'].get('error')}"
                yield Violation("executions fail for a known reason alone", told)


def is_overtaken_by_stop(evidence: Evidence, ticket_id: str) -> bool:
    """Whether a stop of the ticket's robot was taken under a newer fence, so that the robot may have refused it."""
    robot = evidence.ticket[ticket_id]["target"]
    stops = [row["id"] for row in evidence.tickets if row["command"] in STOPPING and row["target"] == robot]
    newest = max((row["fence"] for stop in stops for row in evidence.taken.get(stop, [])), default=0)
    return newest > min((row["fence"] for row in evidence.taken.get(ticket_id, [])), default=newest)


def check_answers(evidence: Evidence) -> Iterator[Violation]:
    """Whoever was told an outcome was told the recorded one; no answer is one that its path does not give."""
    by_request = {row["correlation_id"]: pair for pair, row in evidence.queued.items()}
    for call in evidence.calls_of("execute"):
        if call.status == OK:
            ends = evidence.outcomes.get(by_request.get(call.correlation_id, ("", 0)), [])
            recorded = [end["to_state"] for end in ends]
            if recorded != [call.answer["status"]]:
                told = f"{call.correlation_id} was told {call.answer['status']}, recorded {recorded}"
                yield Violation("the outcome that is told is the recorded one", told)
    for call in evidence.calls:
        known = EXPECTED_STATUSES.get(call.kind)
        if call.status is not None and known is not None and call.status not in known:
            told = f"{call.correlation_id} {call.kind}: {call.status} {str(call.answer)[:300]}"
            yield Violation("every answer is one that the path gives", told)


def check_keys(evidence: Evidence) -> Iterator[Violation]:
    """What was sent again under one key was made once, and every acknowledgement names the same."""
    groups: dict[str, list[Call]] = defaultdict(list)
    for call in evidence.calls_of("create", "batch"):
        if call.key is not None:
            groups[call.key].append(call)
    rows: dict[str, list[str]] = defaultdict(list)
    for ticket in evidence.tickets:
        if "key" in ticket["metadata"]:
            rows[ticket["metadata"]["key"]].append(ticket["id"])
    for key, calls in groups.items():
        answers = {tuple(sorted(made_by(call))) for call in calls if call.is_acknowledged}
        size = calls[0].request.get("size", 1)
        kept = sorted(rows[key])
        if len(answers) > 1 or len(kept) not in (0, size) or (answers and answers != {tuple(kept)}):
            yield Violation("an idempotency key makes one thing", f"{key}: answers {answers}, kept {kept}")


def check_settled(evidence: Evidence) -> Iterator[Violation]:
    if evidence.settled_after is None or evidence.settled_after > LONGEST_SETTLING:
        live = [(t["id"], t["state"]) for t in evidence.tickets if t["state"] in ("queued", "executing")]
        told = f"{evidence.settled_after} s; {len(live)} live: {live[:5]}; jobs {evidence.jobs[:3]}"
        yield Violation(f"all is settled within {LONGEST_SETTLING:g} s of the last fault", told)
        return
    for job in evidence.jobs:
        if job["subject_kind"] == "ticket":
            yield Violation("nothing is owed when all has ended", str(job))
    for stop in evidence.stops:
        if stop["done_at"] is None:
            yield Violation("every stop is taken", str(stop))


def check_counts(evidence: Evidence) -> Iterator[Violation]:
    if evidence.counted is None:
        return
    kept = Counter(ticket["state"] for ticket in evidence.tickets)
    told = {state: count for state, count in evidence.counted.items() if count and state != "total"}
    if told != dict(kept):
        yield Violation("the counts count what is there", f"told {told}, there are {dict(kept)}")


def check_aging(evidence: Evidence) -> Iterator[Violation]:
    """A low ticket among high ones that saturate the workers is started within the bound that the run states."""
    if evidence.low_within is None:
        return
    for ticket in evidence.tickets:
        if ticket["metadata"].get("role") != "low" or (ticket["id"], 1) not in evidence.queued:
            continue
        queued = evidence.queued[ticket["id"], 1]
        starts = evidence.started.get(ticket["id"], [])
        waited = starts[0]["at"] - queued["at"] if starts else evidence.now - queued["at"]
        if waited > evidence.low_within:
            passed = [
                row
                for rows in evidence.started.values()
                for row in rows
                if queued["at"] < row["at"] < queued["at"] + waited
            ]
            told = f"{ticket['id']} waited {waited:.1f} s; {len(passed)} others started meanwhile"
            yield Violation(f"a low ticket is started within {evidence.low_within:g} s", told)


def check_evidence_of_ghosts(evidence: Evidence) -> Iterator[Violation]:
    """Late evidence under the fence that the outcome was recorded under says what was recorded: else another settled.

    A worker whose settle committed unheard settles again, and leaves evidence of what it has itself recorded.
    """
    last_fence: dict[int, int] = {}
    for lease in evidence.leases:
        if lease["act"] == "ended":
            last_fence[lease["job_id"]] = lease["fence"]
    for row in evidence.of_tickets:
        if row["topic"] != events.EVIDENCE or last_fence.get(row["body"]["job_id"]) != row["body"]["fence"]:
            continue
        for end in evidence.outcomes.get((row["subject_id"], int(row["body"]["execution"])), []):
            settled_by_worker = end["actor"].startswith("worker:") and end["reason"] not in ("stop", "brake")
            same = (end["to_state"], end["body"].get("result")) == (row["body"]["to"], row["body"].get("result"))
            if settled_by_worker and not same:
                told = f"{row['subject_id']}: recorded {end['to_state']}, its own worker says {row['body']['to']}"
                yield Violation("an attempt is settled by the worker that holds its lease", told)
