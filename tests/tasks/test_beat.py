"""Beats in processes of their own: however many tick and whichever dies, each due time fires once."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis

from models.kernel.schedules import declare
from models.kernel.session import statement
from orchestrator_cli.embedded.valkey import Valkey
from orchestrator_cli.migrate import ROOT
from orchestrator_tasks import publisher
from orchestrator_tasks.app import app
from orchestrator_tasks.beat import MOST_TICKS, BoundedScheduler
from tests.service.waiting import eventually
from tests.tasks.nodes import WorkerProcess
from tests.tasks.owed import change, rows
from tests.tasks.probe import TABLE

PACE = 2.0


class Beats:
    """Any number of `celery beat`, and one worker of the queue they tick in."""

    def __init__(self, broker_url: str, logs: Path) -> None:
        self.logs = logs
        self.environment = {**os.environ, "BROKER_URL": broker_url, "PYTHONPATH": str(ROOT)}
        words = ("--include", "tests.tasks.probe", "--without-gossip", "--without-mingle")
        self.worker = WorkerProcess("system", logs / "system.log", self.environment, *words)
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "celery", "--app", "orchestrator_tasks.app", "beat"]
        with (self.logs / "beat.log").open("ab") as log:
            self.running.append(subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log))
        return self.running[-1]

    def said(self) -> str:
        return (self.logs / "beat.log").read_text()

    def stop(self) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait(20)
        self.worker.teardown()


@pytest.fixture
def beats(database: str, valkey: redis.Redis, broker: str, tmp_path: Path) -> Iterator[Beats]:
    with beats_and_worker(broker, tmp_path) as beats:
        yield beats


@contextlib.contextmanager
def beats_and_worker(broker_url: str, logs: Path) -> Iterator[Beats]:
    """A schedule that leaves a trace, and a worker that knows its duty."""
    change(TABLE)
    beats = Beats(broker_url, logs)
    try:
        beats.worker.start().ready()
        with statement() as connection:
            declare(connection, {"probe": PACE}, source="test")
        yield beats
    finally:
        beats.stop()


def probe() -> dict[str, Any]:
    return rows("SELECT *, extract(epoch FROM next_at)::float8 AS due FROM schedules WHERE name = 'probe'")[0]


def count() -> int:
    return int(rows("SELECT count(*) AS n FROM probes")[0]["n"])


def more(n: int) -> Callable[[], bool]:
    """Whether so many more runs were done since now."""
    seen = count()
    return lambda: count() >= seen + n


def assert_each_due_time_fired_once(first_due: float) -> None:
    """Every run has a due time of its own, and every due time has a run or is counted as missed."""
    eventually(lambda: not probe()["running_until"], what="the last run has ended")
    row = probe()
    at = [r["at"] for r in rows("SELECT extract(epoch FROM at)::float8 AS at FROM probes ORDER BY id")]
    slots = [int((moment - first_due) // PACE) for moment in at]
    assert len(set(slots)) == len(slots) == row["runs"]
    assert row["runs"] + row["misses"] == round((row["due"] - first_due) / PACE)


def test_two_beats_fire_each_due_time_once_also_when_one_of_them_is_killed(beats: Beats) -> None:
    first_due = probe()["due"]
    active, _standby = beats.start(), beats.start()
    eventually(lambda: count() >= 3, within=60, what="the first due times fire")
    beating = "SELECT FROM processes WHERE role = 'beat'"
    eventually(lambda: len(rows(beating)) == 2, within=60, what="both beats tick")
    active.kill()
    active.wait(20)
    eventually(more(3), within=30, what="the due times go on with one beat")
    change("UPDATE schedules SET paused = true")
    assert_each_due_time_fired_once(first_due)
    at = [r["at"] for r in rows("SELECT extract(epoch FROM at)::float8 AS at FROM probes ORDER BY id")][1:]
    assert max(later - earlier for earlier, later in pairwise(at)) < 2 * PACE


def test_ticks_that_are_lost_cost_no_more_than_time(beats: Beats, valkey: redis.Redis) -> None:
    first_due = probe()["due"]
    beats.start()
    eventually(lambda: count() >= 1, within=60, what="the first due time fires")
    for _ in range(3):
        valkey.flushall()
        eventually(more(1), within=30, what="the next due time fires")
    change("UPDATE schedules SET paused = true")
    assert_each_due_time_fired_once(first_due)


def test_beat_and_worker_outlive_their_broker(database: str, broker: str, tmp_path: Path) -> None:
    own = Valkey(tmp_path / "valkey")
    own.start()
    try:
        with beats_and_worker(own.url(), tmp_path) as beats:
            first_due = probe()["due"]
            beat = beats.start()
            eventually(lambda: count() >= 1, within=60, what="the first due time fires")
            own.stop()
            eventually(lambda: "ticks are held back" in beats.said(), within=30, what="beat notices")
            own.start()
            eventually(more(2), within=60, what="the due times go on")
            assert beat.poll() is None
            change("UPDATE schedules SET paused = true")
            assert_each_due_time_fired_once(first_due)
    finally:
        own.stop()


def test_a_beat_without_a_database_ends_and_says_why(broker: str, tmp_path: Path, environment: Any) -> None:
    environment.setenv("DATABASE_URL", f"postgresql://nobody@/none?host={tmp_path}")
    beats = Beats(broker, tmp_path)
    assert beats.start().wait(60) != 0
    assert "The database cannot answer right now" in beats.said()


def scheduler() -> BoundedScheduler:
    return BoundedScheduler(app=app)


def test_ticks_do_not_pile_up_while_nobody_takes_them(
    database: str, valkey: redis.Redis, set_to: Callable[..., None]
) -> None:
    set_to(dispatch_window=3)
    ticking = scheduler()
    for _ in range(50):
        ticking.apply_entry(ticking.schedule["tick"], producer=ticking.producer)
    assert publisher.count_messages("system") == 3 + MOST_TICKS
    assert ticking.holding_back
    valkey.flushall()
    ticking.apply_entry(ticking.schedule["tick"], producer=ticking.producer)
    assert publisher.count_messages("system") == 1
    assert not ticking.holding_back


def test_a_tick_goes_ahead_of_other_work_and_does_not_wait_for_ever(database: str, valkey: redis.Redis) -> None:
    ticking = scheduler()
    ticking.apply_entry(ticking.schedule["tick"], producer=ticking.producer)
    assert valkey.llen("system") == 1  # the list that is read before system:1, system:2 and system:3
    assert '"expires": "' in valkey.lindex("system", 0).decode()


def test_without_a_broker_no_tick_is_sent_and_nothing_fails(database: str, dead_broker: None) -> None:
    ticking = scheduler()
    ticking.apply_entry(ticking.schedule["tick"], producer=None)
    assert ticking.holding_back
