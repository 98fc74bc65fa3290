"""The relay as a process: it reads a stream into the log, pushes outputs to another, and ends when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from models.kernel import clock
from models.kernel.hints import redis_url
from orchestrator_cli.migrate import ROOT
from orchestrator_tasks.engine.__main__ import carry_on
from tests.engine import desk
from tests.engine.market import text_of
from tests.service.waiting import eventually


class Idle:
    """A duty that goes on until it is stopped."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def run(self) -> None:
        self.over.wait(20)

    def stop(self) -> None:
        self.over.set()


class Brief(Idle):
    """A duty that ends by itself."""

    def run(self) -> None:
        return


@pytest.fixture
def valkey(broker: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url(broker), decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def streams(database: str, valkey: redis.Redis) -> Iterator[tuple[str, str]]:
    """The names of the streams that are read from and pushed to."""
    own = database.partition("?")[0].rpartition("/")[2]
    names = f"in:{own}", f"out:{own}"
    yield names
    valkey.delete(*names, f"{names[0]}:refused")


@pytest.fixture
def relay(database: str, broker: str, streams: tuple[str, str], tmp_path: Path) -> Iterator[Any]:
    with (tmp_path / "relay.log").open("wb") as log:
        command = [sys.executable, "-m", "orchestrator_tasks.engine"]
        process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=log, stderr=log)
        yield process
        process.kill()
        process.wait(10)


def present() -> bool:
    return bool(desk.rows("SELECT id FROM processes WHERE role = 'relay'"))


def test_it_relays_both_ways_and_ends_within_two_seconds(
    relay: subprocess.Popen[bytes], valkey: redis.Redis, streams: tuple[str, str]
) -> None:
    incoming, outgoing = streams
    desk.running(subscription={"stream": incoming}, output_publish={"stream": outgoing})
    desk.complete(desk.take(desk.planned_run()))
    event = text_of(desk.trade()).decode()
    valkey.xadd(incoming, {"event": event})
    eventually(lambda: desk.rows("SELECT event FROM engine_inputs WHERE event = :e", e=event), what="it is in the log")
    eventually(lambda: valkey.xlen(outgoing) == 2, what="the outputs are in the stream")
    assert present()
    began = clock.monotonic()
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(10) == 0
    assert clock.monotonic() - began < 2.5
    assert not present()


def test_it_waits_for_a_configuration(relay: subprocess.Popen[bytes], valkey: redis.Redis) -> None:
    eventually(present, what="the relay is there")
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(10) == 0


def test_a_duty_that_ends_by_itself_ends_the_process() -> None:
    idle = Idle()
    carry_on([idle, Brief()], threading.Event())
    assert idle.over.is_set()


def test_duties_are_stopped_once_it_is_over() -> None:
    over, duties = threading.Event(), [Idle(), Idle()]
    over.set()
    carry_on(duties, over)
    assert all(duty.over.is_set() for duty in duties)
