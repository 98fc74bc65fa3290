"""The engine under fire: started by the run itself, brought to rest after the last fault, and then replayed."""

from __future__ import annotations

import subprocess
from typing import Any

import orjson
import psycopg2

from orchestrator_cli.migrate import ROOT
from tests.chaos.callers import TRIES, Caller, World
from tests.chaos.cluster import Cluster
from tests.chaos.market import Pusher, Stream, batch_of, feed
from tests.chaos.readers import OUTPUTS, Blocks, Messages, Reader
from tests.cli.service import command
from tests.service.waiting import eventually

EXAMPLE = "examples.regime_engine.engine"
LONGEST_COMMAND = 120
CADENCE = "SELECT min(first_tick_ms) AS first_tick_ms FROM chaos_cadences"
NOW_MS = "floor(extract(epoch FROM clock_timestamp()) * 1000)"
IS_LATE = f"""
    SELECT state <> 'running' OR next_tick_ms <= {NOW_MS}
        OR last_seq > (SELECT coalesce(max(cut_end_ingest_seq), 0) FROM engine_runs) AS is_late
      FROM engine_control, engine_head
"""
LIVE_RUNS = "SELECT count(*) AS n FROM engine_runs WHERE state NOT IN ('completed', 'failed')"
UNPUBLISHED = """
    SELECT count(*) AS n FROM engine_outputs WHERE seq > (SELECT coalesce(max(seq), 0) FROM engine_publications)
"""
TOLD = "SELECT count(*) AS n FROM engine_outputs"


def start_engine(cluster: Cluster, world: World) -> None:
    """From here on a tick is planned every second."""
    caller = Caller(world, "operator")
    eventually(
        lambda: caller.ask("engine", "POST", "/engine/start").is_acknowledged, within=30, what="the engine is started"
    )
    world.first_tick_ms = eventually(
        lambda: cluster.service.row(CADENCE)["first_tick_ms"], within=30, what="the cadence begins"
    )
    caller.hang_up()


def open_market(world: World, stream: Stream) -> None:
    for name in ("feeder-1", "feeder-2"):
        world.start(name, feed)
    world.start("pusher", Pusher(world, stream).act)


def listen(world: World) -> list[Reader]:
    return [
        Blocks(world, "outputs-by-sse", OUTPUTS).start(),
        Messages(world, "outputs-by-websocket", OUTPUTS).start(),
        Blocks(world, "one-symbol-by-sse", OUTPUTS, "BTC-USD").start(),
    ]


def drain_stream(stream: Stream, within: float) -> bool:
    """Whether all that was pushed in the last era is taken: no loss of memory may follow before."""
    try:
        eventually(lambda: stream.look("healer"), within, "the subscription's stream is empty")
    except AssertionError:
        return False
    return True


def trade_once_more(healer: Caller) -> None:
    """Something for the last tick, whose outputs come after the last loss of memory."""
    body = batch_of(healer, "last")
    for _ in range(TRIES):
        if healer.ask("append", "POST", "/engine/events", body, key="last", about={"batch": "last"}).is_acknowledged:
            return


def drain_engine(cluster: Cluster, healer: Caller, within: float) -> bool:
    """Whether every due tick is planned, every record in a cut, and no other tick will be planned."""
    try:
        eventually(lambda: not is_late(cluster), within, "the planner has caught up")
        eventually(lambda: healer.ask("engine", "POST", "/engine/drain").is_acknowledged, within, "it is drained")
    except AssertionError:
        return False
    return True


def is_late(cluster: Cluster) -> bool:
    try:
        return bool(cluster.service.row(IS_LATE)["is_late"])
    except psycopg2.OperationalError:
        return True


def replay_all(cluster: Cluster) -> dict[str, Any]:
    """What `orchestrator engine replay --verify` says of an export of everything."""
    file = str(cluster.home.with_name("runs.jsonl.gz"))
    exported = engine_command(cluster, "export", file)
    replayed = engine_command(cluster, "replay", file, "--verify", "--engine", EXAMPLE)
    return {**replayed, "exported": exported}


def engine_command(cluster: Cluster, *arguments: str) -> dict[str, Any]:
    made = subprocess.run(
        [*command("engine", *arguments), "--json"],
        env=cluster.service.environment,
        cwd=ROOT,
        capture_output=True,
        timeout=LONGEST_COMMAND,
        check=False,
    )
    try:
        return dict(orjson.loads(made.stdout))
    except orjson.JSONDecodeError:
        return {"failed": made.returncode, "said": made.stderr.decode()[-1000:]}
