"""Whether a table of a million tickets answers as one of a thousand does."""

from __future__ import annotations

import json
import statistics

from benchmarks.bench import Bench
from benchmarks.harness import Measure, Row, Values
from benchmarks.load import carry_out
from benchmarks.measures.creates import TICKET
from benchmarks.service import Web

PICKS = 4
WINDOW = 24
TURNS = 3
LARGE, SMALL = "large", "small"
# Accepted a while ago and waiting: each with its two lines of the ledger and its job, one statement each.
FILL = """
INSERT INTO tickets (command, params, priority, timeout_seconds, metadata, target, tenant, created_by, state, revision,
                     correlation_id, execution, created_at, updated_at, expires_at)
SELECT 'scan', '{{"speed": 1.5}}', (ARRAY['normal', 'normal', 'normal', 'high'])[1 + n % 4], 300, '{{}}',
       'robot-' || n % 500, 'default', 'bench', 'queued', 2, 'fill-' || n, 1,
       clock_timestamp() - make_interval(secs => {count} - n), clock_timestamp(), clock_timestamp() + interval '1 day'
  FROM generate_series(1, {count}) AS n;
INSERT INTO ledger (subject_kind, subject_id, revision, from_state, to_state, topic, label, actor, correlation_id, body)
SELECT 'ticket', id, act.revision, act.from_state, act.to_state, act.topic, command, 'bench', correlation_id,
       jsonb_build_object('ticket_id', id, 'command', command, 'target', target)
  FROM tickets, (VALUES (1, NULL, 'pending', 'ticket_created'), (2, 'pending', 'queued', 'ticket_queued'))
       AS act (revision, from_state, to_state, topic);
INSERT INTO jobs (subject_kind, subject_id, task, queue, priority, tenant, args, correlation_id, timeout_seconds,
                  created_at, run_at, expires_at)
SELECT 'ticket', id, 'tickets.execute', 'io', CASE priority WHEN 'high' THEN 1 ELSE 2 END, 'default', '{{}}',
       correlation_id, 300, created_at, created_at, expires_at
  FROM tickets;
VACUUM ANALYZE tickets;
VACUUM ANALYZE ledger;
VACUUM ANALYZE jobs;
"""


def fill(bench: Bench, name: str, count: int) -> None:
    """A database with so many tickets that wait, once."""
    if bench.has_database(name):
        return
    bench.migrated_database(name)
    bench.freeze()
    for statement in FILL.format(count=count).split(";"):
        if statement.strip():
            bench.query(statement, database=name)
    bench.call(name, "benchmarks.systems.roll")
    bench.query("CHECKPOINT")


def filled(bench: Bench) -> dict[str, Web]:
    """The two sizes, each behind one web process of its own."""
    if not bench.sized:
        fill(bench, SMALL, bench.sizes.small)
        fill(bench, LARGE, bench.sizes.large)
        bench.sized = {name: bench.web(name) for name in (SMALL, LARGE)}
    for each in bench.sized.values():
        each.running.thaw()
    return bench.sized


def sizes(bench: Bench, number: int) -> Values:
    """One client, one request after the other, on one web process; the median time of a request on 1,000,000 tickets
    that wait (each with its job and its history) against that on 1,000, in alternation. `create`: POST /ticket.
    `first`: GET /tickets?limit=100, with the total. `deep`: the same page after the middle ticket, by its cursor.
    `claim`: what the dispatcher's pick of 24 jobs and a worker's take of each cost for one job, called as they call
    it, without web and broker.
    """
    webs = filled(bench)
    bench.freeze()
    found: dict[str, list[float]] = {}
    for turn in range(TURNS):
        for name in (SMALL, LARGE) if (number + turn) % 2 == 0 else (LARGE, SMALL):
            for what, values in of_size(bench, name, webs).items():
                # the first turn of the first round warms up: pages are read, statements are planned
                found.setdefault(f"{what}_{name}", []).extend(values if turn or number else [])
    for each in webs.values():
        each.running.freeze()
    return {what: statistics.median(values) for what, values in found.items()}


def of_size(bench: Bench, name: str, webs: dict[str, Web]) -> dict[str, list[float]]:
    web, reads = webs[name], bench.sizes.reads
    deep = f"/tickets?limit=100&cursor={middle_cursor(bench, name)}"
    asked = {
        "create": web.order("/ticket", [TICKET] * reads, 201, connections=1),
        "first": web.order("/tickets?limit=100", [""] * reads, 200, method="GET", connections=1),
        "deep": web.order(deep, [""] * reads, 200, method="GET", connections=1),
    }
    return {what: carry_out(order).latencies_ms for what, order in asked.items()} | claims(bench, name)


def middle_cursor(bench: Bench, name: str) -> str:
    count = bench.sizes.large if name == LARGE else bench.sizes.small
    question = "SELECT created_at, id FROM tickets ORDER BY created_at DESC, id DESC OFFSET %s LIMIT 1"
    created_at, ticket_id = bench.query(question, count // 2, database=name)[0]
    return bench.call(name, "benchmarks.systems.cursor", created_at.isoformat(), ticket_id).strip()


def claims(bench: Bench, name: str) -> dict[str, list[float]]:
    """Milliseconds of a claim of one job. What was taken is given back, so that as many wait in every round."""
    found = json.loads(bench.call(name, "benchmarks.systems.claims", str(PICKS)))
    give_back(bench, name)
    pick = statistics.median(found["picks"]) / WINDOW
    return {"claim": [pick + take for take in found["takes"]], "pick": [pick], "take": found["takes"]}


def give_back(bench: Bench, name: str) -> None:
    """As if nothing had been sent or taken."""
    bench.query(
        "WITH held AS (UPDATE jobs SET fence = NULL, lease_until = NULL, dispatched_at = NULL, dispatches = 0,"
        " attempt = 0 WHERE fence IS NOT NULL OR dispatched_at IS NOT NULL RETURNING subject_id)"
        " UPDATE tickets SET state = 'queued', started_at = NULL FROM held WHERE id = subject_id",
        database=name,
    )


def against(text: str, what: str) -> Row:
    return Row(f"{text} at 1,000,000 tickets against 1,000", f"{what}_{LARGE}", "ms", f"{what}_{SMALL}", at_most=1.3)


MEASURES = (
    Measure(
        "sizes",
        (
            against("create", "create"),
            against("claim", "claim"),
            against("list, first page with total,", "first"),
            against("list, deep keyset page with total,", "deep"),
        ),
        sizes,
    ),
)
