"""Engine runs while everything around them is killed: each planned tick is run once, in order, and replays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from orchestrator_cli.migrate import ROOT
from tests.engine.market import event
from tests.service.engine import NOW, STREAM, SYMBOLS, EngineService, Feed
from tests.service.running import frozen
from tests.service.test_killing import kill, valkey_of
from tests.service.test_streaming import Reader
from tests.service.waiting import eventually

BTC, ETH, SOL = SYMBOLS
LATE = f"SELECT {NOW} - next_tick_ms > %s AS is_late FROM engine_control"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Gate:
    """The engine waits at it while its file is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.began = path.with_suffix(".began")
        path.touch()

    def host(self) -> int:
        """The host of the engine that waits."""
        eventually(self.began.exists, within=60, what="the engine waits at the gate")
        return int(self.began.read_text())

    def open(self) -> None:
        self.path.unlink()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "gate")
    yield made
    made.path.unlink(missing_ok=True)


def history_of(service: EngineService, topic: str, after: int) -> list[dict[str, Any]]:
    question = """
        SELECT number, attempts, state FROM ledger JOIN engine_runs ON id = subject_id
         WHERE topic = %s AND number > %s ORDER BY seq
    """
    return service.rows(question, topic, after)


def test_a_worker_that_is_killed_in_mid_run_costs_no_attempt_and_no_order(engine: EngineService, gate: Gate) -> None:
    with Feed(engine) as feed:
        feed.order(BTC, gate=str(gate.path))
        worker = parent_of(gate.host())
        assert parent_of(worker) == engine.pid_of("cpu")
        os.kill(worker, signal.SIGKILL)
        feed.await_ticks(2)
        gate.open()
        feed.orders.clear()
        feed.await_ticks(1)
    lost = history_of(engine, "engine_run_lost", feed.number)
    assert [(run["attempts"], run["state"]) for run in lost][:1] == [(1, "completed")]


def test_ticks_that_a_late_beat_left_are_caught_up_in_order(engine: EngineService) -> None:
    with Feed(engine) as feed:
        os.kill(engine.pid_of("beat"), signal.SIGSTOP)
        eventually(lambda: engine.row(LATE, 3000)["is_late"], what="ticks are due that nobody plans")
        kill(engine, "beat")
        feed.await_ticks(3)


def test_a_planner_that_is_killed_is_followed_by_another_within_seconds(engine: EngineService) -> None:
    with Feed(engine) as feed:
        kill(engine, "system")
        eventually(lambda: not engine.row(LATE, 3000)["is_late"], within=30, what="nothing is late any more")
        feed.await_ticks(2)


def test_two_beats_plan_each_tick_once(engine: EngineService) -> None:
    beat = [sys.executable, "-m", "celery", "--app", "orchestrator_tasks.app", "beat"]
    with Feed(engine) as feed:
        second = subprocess.Popen(
            beat, env=engine.owner(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            eventually(lambda: engine.has_fresh("beat", besides=engine.pid_of("beat")), within=60)
            feed.await_ticks(3)
            assert second.poll() is None
        finally:
            second.terminate()
            second.wait(20)


def test_a_broker_that_forgets_everything_costs_nothing(engine: EngineService) -> None:
    with Feed(engine) as feed:
        with valkey_of(engine) as client:
            client.flushall()
        feed.await_ticks(2)


def test_postgres_that_is_killed_costs_nothing_that_was_accepted(engine: EngineService) -> None:
    with Feed(engine) as feed:
        kill(engine, "postgres")
        accepted = feed.accepted
        eventually(lambda: feed.accepted > accepted, within=60, what="events are accepted again")
        feed.await_ticks(2)


def test_an_engine_that_loops_for_one_symbol_keeps_no_other_waiting(engine: EngineService) -> None:
    engine.configure(engine={"timeout_ms": 1000})
    with Feed(engine) as feed:
        feed.order(ETH, loops=True)
        question = "SELECT FROM engine_runs WHERE number > %s AND symbol = %s AND error_kind = 'engine_timeout'"
        eventually(lambda: engine.rows(question, feed.number, ETH), within=90, what="a run has run out of time")
        feed.orders.clear()
        feed.await_ticks(1)
    others = [run for run in engine.runs(feed.number) if run["symbol"] != ETH]
    assert {run["error_kind"] for run in others} <= {None, "missing_snapshot_inputs"}


def test_a_service_that_is_stopped_goes_on_where_it_left_off(engine: EngineService, gate: Gate) -> None:
    with Feed(engine) as feed:
        feed.order(SOL, gate=str(gate.path))
        gate.host()
        engine.stop()
        gate.open()
        feed.orders.clear()
        engine.start()
        eventually(engine.is_ready, within=60, what="the service is ready")
        feed.await_ticks(2)
    assert all(run["state"] == "completed" for run in history_of(engine, "engine_run_released", feed.number))


class Outputs(Reader):
    """By server-sent events."""

    def connection(self) -> Iterator[dict[str, Any]]:
        headers = {"Last-Event-ID": self.cursor} if self.cursor else {}
        with (
            self.service.client() as client,
            client.stream("GET", "/engine/outputs/events", headers=headers, timeout=30) as answer,
        ):
            if answer.status_code != 200:
                self.refused.append(answer.status_code)
                raise EOFError
            self.connections += 1
            block: dict[str, str] = {}
            for line in answer.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    block[name] = value
                elif "data" in block and block["event"] != "problem":
                    yield {"id": block["id"], "seq": block["id"], "event": orjson.loads(block["data"])}
                    block = {}
                else:
                    if "id" in block:
                        yield {"id": block["id"]}
                    block = {}

    def __exit__(self, *_: object) -> None:
        self.over.set()
        assert self.reading is not None
        self.reading.result(60)
        self.pool.shutdown()


def outputs_of(engine: EngineService, which: str) -> list[dict[str, Any]]:
    return [orjson.loads(row["event"]) for row in engine.rows(f"SELECT event FROM engine_outputs WHERE {which}")]


def test_a_reader_of_outputs_hears_each_once_although_the_web_is_killed(engine: EngineService) -> None:
    with Feed(engine) as feed, Outputs(engine) as reader:
        kill(engine, "web")
        eventually(lambda: reader.connections >= 2, within=60, what="the reader came back")
        feed.await_ticks(2)
        (last,) = outputs_of(engine, "TRUE ORDER BY seq DESC LIMIT 1")
        eventually(lambda: last in [each["event"] for each in list(reader.events)], within=60, what="it heard the last")
    heard = [event["event"] for event in reader.events]
    told = outputs_of(engine, f"seq > {feed.output} ORDER BY seq")
    begin = told.index(heard[0])
    assert heard == told[begin : begin + len(heard)]


def test_a_broker_that_is_silent_for_long_pauses_the_planning_until_it_speaks_again(
    engine: EngineService, gate: Gate
) -> None:
    blocked = engine.status()["publish"]["blocked_ms"]
    with Feed(engine) as feed:
        feed.order(BTC, gate=str(gate.path))
        gate.host()
        with frozen(engine.pid_of("valkey")):
            gate.open()  # so that there is something to publish
            eventually(lambda: engine.control()["state"] == "degraded", within=60, what="the engine is degraded")
            assert engine.control()["scheduling_paused"]
            assert STREAM in engine.control()["paused_why"]
        feed.orders.clear()
        eventually(lambda: engine.control()["state"] == "running", within=60, what="it runs again")
        assert not engine.control()["scheduling_paused"]
        feed.await_ticks(3)
    assert engine.status()["publish"]["blocked_ms"] > blocked
    check_stream(engine, feed.output)


def check_stream(engine: EngineService, after: int) -> None:
    """Everything was pushed at least once, in order."""
    wanted = [str(row["seq"]) for row in engine.rows("SELECT seq FROM engine_outputs WHERE seq > %s ORDER BY 1", after)]

    def pushed() -> list[str]:
        with valkey_of(engine) as client:
            return [fields[b"seq"].decode() for _, fields in client.xrange(STREAM)]

    eventually(lambda: set(wanted) <= set(pushed()), within=30, what="all outputs are in the stream")
    firsts = [seq for seq in dict.fromkeys(pushed()) if seq in set(wanted)]
    assert firsts == wanted


def test_a_full_buffer_refuses_events_until_runs_have_read_what_it_holds(engine: EngineService) -> None:
    with Feed(engine):  # so that each symbol has a cut
        pass
    before = engine.status()["buffer"]
    engine.configure(buffer_retention={"max_records": before["depth"] + 1000})
    batch = [event("TradeTick", BTC)] * 100

    def refusal() -> httpx.Response | None:
        answer = engine.send(*batch)
        assert answer.status_code in (201, 503), answer.text
        return answer if answer.status_code == 503 else None

    refused = eventually(refusal, within=60, what="the buffer is full")
    assert refused is not None
    assert (refused.json()["code"], int(refused.headers["Retry-After"]) > 0) == ("buffer_full", True)
    full = engine.status()["buffer"]
    assert full["capacity"] - len(batch) < full["depth"] <= full["capacity"]
    assert refusal() is not None
    assert engine.status()["buffer"]["last_ingest_seq"] == full["last_ingest_seq"], "what is refused is not kept"
    engine.act("start")
    eventually(lambda: not refusal(), within=60, what="there is room again")
    engine.act("drain")
    assert engine.status()["buffer"]["first_ingest_seq"] > full["first_ingest_seq"]
