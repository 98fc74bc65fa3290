"""One run: start everything, let callers and nemesis loose, end the faults, wait until all has ended, judge."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import orjson
import psycopg2

from tests.chaos import checker, engine
from tests.chaos.callers import ASYNC, CREW, Caller, World, release
from tests.chaos.check_motions import slowest_rest
from tests.chaos.check_tickets import LONGEST_SETTLING
from tests.chaos.cluster import Cluster
from tests.chaos.evidence import Evidence, Heard
from tests.chaos.history import Call, History
from tests.chaos.market import Stream, feed
from tests.chaos.nemesis import rage
from tests.chaos.plan import make_plan
from tests.chaos.readers import TICKETS, Blocks, Messages, Reader
from tests.chaos.recorder import read_evidence
from tests.chaos.saturation import LOW_WITHIN, saturate
from tests.service.running import WINDOW
from tests.service.waiting import eventually

LIVE = "SELECT count(*) AS n FROM tickets WHERE state IN ('queued', 'executing')"
OWED = "SELECT count(*) AS n FROM stop_orders WHERE done_at IS NULL"
OPEN = "SELECT count(*) AS n FROM bulk_operations WHERE state IN ('queued', 'running')"
LAST = "SELECT max(seq) AS seq FROM ledger WHERE subject_kind = 'ticket' AND topic <> 'refused'"

LAST_WORDS_SECONDS = 2.0  # for those that hear a part, and nobody knows which is their last


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def carry_out(seed: int, seconds: float, keep: Path) -> int:
    """Answers the exit code: 0 when every promise was kept."""
    keep.mkdir(parents=True)
    say(f"seed {seed}, {seconds:g} s of faults, history in {keep}")
    history = History(keep / "history.jsonl")
    cluster = Cluster(keep / "home")
    try:
        cluster.start()
        evidence, readers = burn(cluster, seed, seconds, history)
    finally:
        cluster.stop()
        history.close()
    for reader in readers:
        reader.stop()  # their streams have ended with the service
    save(evidence, keep / "evidence.json")
    say(figures(evidence, history))
    code = judge(evidence, f"repeat with: python -m tests.chaos --minutes {seconds / 60:g} --seed {seed}")
    if code == 0:
        (keep / "home" / "logs").rename(keep / "logs")
        shutil.rmtree(keep / "home")  # databases are large
    return code


def burn(cluster: Cluster, seed: int, seconds: float, history: History) -> tuple[Evidence, list[Reader]]:
    service = cluster.service
    world, stream = World(service.url, service.token, seed, history), Stream(cluster.valkey.url(), history)
    engine.start_engine(cluster, world)
    readers: list[Reader] = [
        Blocks(world, "all-by-sse").start(),
        Messages(world, "all-by-websocket").start(),
        Blocks(world, "one-robot-by-sse", TICKETS, "r1").start(),
    ]
    listeners = engine.listen(world)
    engine.open_market(world, stream)
    saturate(world)
    for name, act in CREW.items():
        world.start(name, act)
    rage(cluster, make_plan(seed, seconds), seconds, history, say)
    cluster.heal()
    healed_at = time.monotonic()
    world.stop()
    cluster.wait_until_ready()
    healer = Caller(world, "healer")
    calm = engine.drain_stream(stream, LONGEST_SETTLING)
    lose_messages(cluster, healer)
    calm = engine.drain_engine(cluster, healer, LONGEST_SETTLING) and calm
    settled_after = settle(cluster, healer, healed_at) if calm else None
    hear_the_rest(readers, listeners, cluster)
    evidence = Evidence(
        calls=history.calls,
        readers=[reader.heard for reader in readers],
        listeners=[listener.heard for listener in listeners],
        pushed=stream.pushed_outputs(),
        counted=counts(world),
        now=time.time(),
        settled_after=settled_after,
        low_within=LOW_WITHIN,
        replayed=engine.replay_all(cluster),
        **read_evidence(cluster.service.rows),
    )
    return evidence, [*readers, *listeners]


def lose_messages(cluster: Cluster, healer: Caller) -> None:
    """One loss that no e-stop and no cancellation hides: what was accepted must be carried out without a message."""
    release(healer, "all")
    cluster.freeze("io")
    feed(healer)
    for _ in range(WINDOW // 2):
        made = healer.ask("create", "POST", "/ticket", {"command": "scan", "target": "last"})
        if made.is_acknowledged:
            healer.ask("execute", "POST", "/execute", {"ticket_id": made.answer["id"]}, headers=ASYNC)
    threading.Event().wait(1.0)  # until the dispatcher has sent them
    cluster.flush("valkey")
    cluster.thaw("io")
    engine.trade_once_more(healer)


def settle(cluster: Cluster, healer: Caller, healed_at: float) -> float | None:
    """Release what is still engaged and wait until nothing is owed: how long after the last fault that was."""
    for row in cluster.service.rows("SELECT scope FROM latches WHERE released_at IS NULL"):
        release(healer, row["scope"])
    for row in cluster.service.rows("SELECT name FROM schedules WHERE paused"):
        healer.ask("resume", "POST", f"/scheduler/jobs/{row['name']}/resume", about={"name": row["name"]})

    def over() -> bool:
        try:
            return not any(
                cluster.service.row(question)["n"]
                for question in (LIVE, OWED, OPEN, engine.LIVE_RUNS, engine.UNPUBLISHED)
            )
        except psycopg2.OperationalError:
            return False

    try:
        eventually(over, within=2 * LONGEST_SETTLING, what="all has ended")
    except AssertionError:
        return None
    return round(time.monotonic() - healed_at, 2)


def hear_the_rest(readers: list[Reader], listeners: list[Reader], cluster: Cluster) -> None:
    """Give readers the time for it, and tell them to end; what one then lacks, the checker says."""
    last, told = cluster.service.row(LAST)["seq"] or 0, cluster.service.row(engine.TOLD)["n"]
    ends = {
        **{reader: lambda events: events and events[-1]["seq"] >= last for reader in readers},
        **{listener: lambda events: len(events) >= told for listener in listeners},
    }
    whole = [reader for reader in ends if reader.heard.target is None]
    with contextlib.suppress(AssertionError):
        eventually(lambda: all(ends[reader](reader.heard.events) for reader in whole), 20, "readers heard the last")
    threading.Event().wait(LAST_WORDS_SECONDS)
    for reader in ends:
        reader.over.set()


def counts(world: World) -> dict[str, int]:
    answer = httpx.get(f"{world.url}/", timeout=20, trust_env=False)
    return dict(answer.json()["tickets"])


def figures(evidence: Evidence, history: History) -> str:
    """What the run came to."""
    kinds = Counter(call.kind for call in evidence.calls)
    answers = Counter(str(call.status) for call in evidence.calls)
    ends = Counter(end["reason"] or end["to_state"] for ends in evidence.outcomes.values() for end in ends)
    strokes = Counter(f"{stroke['act']} {stroke['victim']}".strip() for stroke in history.strokes)
    lines = [
        f"requests {len(evidence.calls)}: {dict(kinds)}",
        f"answers: {dict(answers)}",
        f"executions {len(evidence.queued)}, outcomes: {dict(ends)}",
        f"motions {len(evidence.motions)}, leases {sum(row['act'] == 'taken' for row in evidence.leases)}, "
        f"ledger rows {len(evidence.ledger)}, e-stops {sum(not row['released'] for row in evidence.latches)}, "
        f"firings {len(evidence.fires)}",
        *engine_figures(evidence, kinds),
        *(
            f"{r.name}: {len(r.events)} events, {r.connections} connections"
            for r in [*evidence.readers, *evidence.listeners]
        ),
        f"strokes {len(history.strokes)}: {dict(strokes)}",
        f"all settled {evidence.settled_after} s after the last fault; no robot moved on for longer than "
        f"{slowest_rest(evidence):.2f} s after an e-stop",
    ]
    return "\n".join(lines)


def engine_figures(evidence: Evidence, kinds: Counter[str]) -> list[str]:
    row = evidence.engine[0]
    ends = Counter(run["error_kind"] or run["state"] for run in evidence.runs)
    moves = Counter(row["topic"] for row in evidence.ledger if row["subject_kind"].startswith("engine"))
    return [
        f"batches {kinds['append']}, entries {kinds['push']}, records {len(evidence.records)}",
        f"ticks {row['ticks']}, skipped {row['skipped_ticks']}, missed {row['missed_ticks']}; runs: {dict(ends)}, "
        f"at most {max((run['attempts'] for run in evidence.runs), default=0)} attempts; paused {row['blocks']} times",
        f"engine's ledger: {dict(moves)}; replay: {evidence.replayed}",
    ]


def judge(evidence: Evidence, repeat: str = "") -> int:
    violations = checker.check(evidence)
    for violation in violations[:40]:
        say(f"VIOLATION  {violation.promise}: {violation.shown_by}")
    say(f"{len(violations)} violations. {repeat if violations else ''}")
    return 1 if violations else 0


def save(evidence: Evidence, path: Path) -> None:
    plain: dict[str, Any] = {name: value for name, value in vars(evidence).items() if name in FIELDS}
    plain["calls"] = [asdict(call) for call in evidence.calls]
    for name in HEARD:
        plain[name] = [asdict(reader) for reader in getattr(evidence, name)]
    path.write_bytes(orjson.dumps(plain))


def load(path: Path) -> Evidence:
    plain = orjson.loads(path.read_bytes())
    plain["calls"] = [Call(**call) for call in plain["calls"]]
    for name in HEARD:
        plain[name] = [Heard(**reader) for reader in plain[name]]
    return Evidence(**plain)


HEARD = ("readers", "listeners")
FIELDS = frozenset(Evidence.__dataclass_fields__)
