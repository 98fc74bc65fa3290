"""One run: start everything, let callers and nemesis loose, end the faults, wait until all has ended, judge."""

from __future__ import annotations

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

from tests.chaos import checker
from tests.chaos.callers import ASYNC, CREW, Caller, World, release
from tests.chaos.check_motions import slowest_rest
from tests.chaos.check_tickets import LONGEST_SETTLING
from tests.chaos.cluster import Cluster
from tests.chaos.evidence import Evidence, Heard
from tests.chaos.history import Call, History
from tests.chaos.nemesis import rage
from tests.chaos.plan import make_plan
from tests.chaos.readers import Blocks, Messages, Reader
from tests.chaos.recorder import read_evidence
from tests.chaos.saturation import LOW_WITHIN, saturate
from tests.service.running import WINDOW
from tests.service.waiting import eventually

LIVE = "SELECT count(*) AS n FROM tickets WHERE state IN ('queued', 'executing')"
OWED = "SELECT count(*) AS n FROM stop_orders WHERE done_at IS NULL"
OPEN = "SELECT count(*) AS n FROM bulk_operations WHERE state IN ('queued', 'running')"
LAST = "SELECT max(seq) AS seq FROM ledger WHERE subject_kind = 'ticket' AND topic <> 'refused'"


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
        evidence = burn(cluster, seed, seconds, history)
    finally:
        cluster.stop()
        history.close()
    save(evidence, keep / "evidence.json")
    say(figures(evidence, history))
    code = judge(evidence, f"repeat with: python -m tests.chaos --minutes {seconds / 60:g} --seed {seed}")
    if code == 0:
        shutil.rmtree(keep / "home")  # databases are large; without a violation nobody looks for it in the logs
    return code


def burn(cluster: Cluster, seed: int, seconds: float, history: History) -> Evidence:
    service = cluster.service
    world = World(service.url, service.token, seed, history)
    readers: list[Reader] = [
        Blocks(world, "all-by-sse").start(),
        Messages(world, "all-by-websocket").start(),
        Blocks(world, "one-robot-by-sse", "r1").start(),
    ]
    saturate(world)
    for name, act in CREW.items():
        world.start(name, act)
    rage(cluster, make_plan(seed, seconds), seconds, history, say)
    cluster.heal()
    healed_at = time.monotonic()
    world.stop()
    cluster.wait_until_ready()
    healer = Caller(world, "healer")
    lose_messages(cluster, healer)
    settled_after = settle(cluster, healer, healed_at)
    last = cluster.service.row(LAST)["seq"] or 0
    for reader in readers:
        drained(reader, last)
        reader.stop()
    return Evidence(
        calls=history.calls,
        readers=[reader.heard for reader in readers],
        counted=counts(world),
        now=time.time(),
        settled_after=settled_after,
        low_within=LOW_WITHIN,
        **read_evidence(cluster.service.rows),
    )


def lose_messages(cluster: Cluster, healer: Caller) -> None:
    """One loss that no e-stop and no cancellation hides: what was accepted must be carried out without a message."""
    release(healer, "all")
    cluster.freeze("io")
    for _ in range(WINDOW // 2):
        made = healer.ask("create", "POST", "/ticket", {"command": "scan", "target": "last"})
        if made.is_acknowledged:
            healer.ask("execute", "POST", "/execute", {"ticket_id": made.answer["id"]}, headers=ASYNC)
    threading.Event().wait(1.0)  # until the dispatcher has sent them
    cluster.flush("valkey")
    cluster.thaw("io")


def settle(cluster: Cluster, healer: Caller, healed_at: float) -> float | None:
    """Release what is still engaged and wait until nothing is owed: how long after the last fault that was."""
    for row in cluster.service.rows("SELECT scope FROM latches WHERE released_at IS NULL"):
        release(healer, row["scope"])
    for row in cluster.service.rows("SELECT name FROM schedules WHERE paused"):
        healer.ask("resume", "POST", f"/scheduler/jobs/{row['name']}/resume", about={"name": row["name"]})

    def over() -> bool:
        try:
            return not any(cluster.service.row(question)["n"] for question in (LIVE, OWED, OPEN))
        except psycopg2.OperationalError:
            return False

    try:
        eventually(over, within=2 * LONGEST_SETTLING, what="all has ended")
    except AssertionError:
        return None
    return round(time.monotonic() - healed_at, 2)


def drained(reader: Reader, last: int) -> None:
    """Give a reader the time to hear the rest; what it then lacks, the checker says."""
    until = time.monotonic() + 20
    pause = threading.Event()
    while time.monotonic() < until and reader.heard.target is None:
        if reader.heard.events and reader.heard.events[-1]["seq"] >= last:
            return
        pause.wait(0.1)
    pause.wait(2.0)


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
        *(f"{r.name}: {len(r.events)} events, {r.connections} connections" for r in evidence.readers),
        f"strokes {len(history.strokes)}: {dict(strokes)}",
        f"all settled {evidence.settled_after} s after the last fault; no robot moved on for longer than "
        f"{slowest_rest(evidence):.2f} s after an e-stop",
    ]
    return "\n".join(lines)


def judge(evidence: Evidence, repeat: str = "") -> int:
    violations = checker.check(evidence)
    for violation in violations[:40]:
        say(f"VIOLATION  {violation.promise}: {violation.shown_by}")
    say(f"{len(violations)} violations. {repeat if violations else ''}")
    return 1 if violations else 0


def save(evidence: Evidence, path: Path) -> None:
    plain: dict[str, Any] = {name: value for name, value in vars(evidence).items() if name in FIELDS}
    plain["calls"] = [asdict(call) for call in evidence.calls]
    plain["readers"] = [asdict(reader) for reader in evidence.readers]
    path.write_bytes(orjson.dumps(plain))


def load(path: Path) -> Evidence:
    plain = orjson.loads(path.read_bytes())
    plain["calls"] = [Call(**call) for call in plain["calls"]]
    plain["readers"] = [Heard(**reader) for reader in plain["readers"]]
    return Evidence(**plain)


FIELDS = frozenset(Evidence.__dataclass_fields__)
