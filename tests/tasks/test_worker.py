"""A real Celery worker beside this process, as a node of pytest-celery."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pytest_celery import CeleryTestWorker

from models.kernel.backlog import Ready
from models.kernel.jobs import NORMAL
from orchestrator_cli.migrate import ROOT
from orchestrator_tasks import publisher
from orchestrator_tasks.app import app
from orchestrator_tasks.dispatcher import Dispatcher
from orchestrator_tasks.tickets import tasks  # noqa: F401 - registers what the tickets owe
from tests.service.waiting import eventually
from tests.tasks import nodes
from tests.tasks.owed import Job, Owed, rows

QUICK = {"ORCHESTRATOR_SIM_TIME_SCALE": "100"}


@pytest.fixture
def worker(owed: Owed, valkey: redis.Redis, broker: str, tmp_path: Path) -> Iterator[CeleryTestWorker]:
    url = nodes.broker_node(broker).config()["url"]
    environment = {**os.environ, **QUICK, "BROKER_URL": url, "PYTHONPATH": str(ROOT)}
    node = nodes.worker_node(nodes.WorkerProcess("io", tmp_path / "io.log", environment).start(), app)
    try:
        assert node.ready()
        yield node
    finally:
        node.teardown()
    assert node.container.status == "exited"


def ended(job: Job) -> bool:
    return bool(job.ticket["completed_at"])


def test_a_worker_carries_out_what_the_dispatcher_sends_also_after_a_flush_and_after_its_own_death(
    worker: CeleryTestWorker, owed: Owed, valkey: redis.Redis
) -> None:
    dispatcher = Dispatcher()
    first = owed("drive")
    dispatcher.refill("io")
    eventually(lambda: ended(first), what="the first is carried out")

    valkey.flushall()
    second = owed("drive")
    dispatcher.refill("io")
    eventually(lambda: ended(second), what="the second is carried out, though the broker forgot everything")

    worker.kill()
    third = owed("drive")
    dispatcher.refill("io")
    assert publisher.count_messages("io") == 1
    worker.restart()
    eventually(lambda: ended(third), what="the third is carried out by the next worker")
    assert {job.ticket["state"] for job in (first, second, third)} == {"completed"}
    assert len(rows("SELECT FROM sim_motions")) == 3


def test_what_a_worker_does_is_told_to_flower(worker: CeleryTestWorker, owed: Owed, valkey: redis.Redis) -> None:
    with valkey.pubsub() as heard:
        heard.psubscribe("*celeryev/task.*")
        assert heard.get_message(timeout=20)  # it listens
        owed("scan")
        Dispatcher().refill("io")
        told: set[str] = set()
        while not {"task-received", "task-started", "task-succeeded"} <= told:
            message = heard.get_message(timeout=20)
            assert message, f"only {told} are told"
            told |= {event["type"] for event in json.loads(base64.b64decode(json.loads(message["data"])["body"]))}


def test_a_worker_logs_the_correlation_id_of_the_message_not_of_the_row(worker: CeleryTestWorker, owed: Owed) -> None:
    job = owed("scan")
    publisher.publish([Ready(job.id, "tickets.execute", job.ticket_id, "io", NORMAL, "from-the-header")])
    eventually(lambda: ended(job))
    worker.assert_log_exists('"correlation_id":"from-the-header"')
    assert worker.hostname() == "io@io"
    assert worker.worker_queue == "io"
