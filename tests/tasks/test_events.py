"""What Flower hears of tasks leaves a worker in few messages, and none of it while a task begins."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.events.dispatcher import EventDispatcher

from orchestrator_tasks.app import app
from orchestrator_tasks.events import MOST_KEPT, TogetherToFlower


class Loop:
    """A hub whose time passes when it is told to."""

    def __init__(self) -> None:
        self.tick: Callable[[], None] = lambda: None

    def call_repeatedly(self, _seconds: float, act: Callable[[], None]) -> Any:
        self.tick = act
        return SimpleNamespace(cancel=lambda: setattr(self, "tick", lambda: None))


class Worker:
    """A consumer, and the messages that left it."""

    def __init__(self) -> None:
        self.hub = Loop()
        self.sent: list[list[str]] = []
        self.event_dispatcher = EventDispatcher(
            app.connection_for_write("memory://"), app=app, buffer_group=["task"], on_send_buffered=self.flush
        )
        self.event_dispatcher._publish = lambda events, *_: self.sent.append([event["type"] for event in events])

    def flush(self) -> None:
        self.event_dispatcher.flush()

    def tells(self, *types: str) -> None:
        for each in types:
            self.event_dispatcher.send(each)


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_a_task_waits_for_none_of_its_events_to_be_sent(worker: Worker) -> None:
    worker.tells("task-received")
    assert worker.sent == [["task-received"]]  # as Celery does it
    TogetherToFlower(worker).start(worker)
    worker.tells("task-received", "task-started", "task-succeeded")
    assert len(worker.sent) == 1
    worker.hub.tick()
    assert worker.sent[1:] == [["task-received", "task-started", "task-succeeded"]]


def test_a_worker_that_stops_tells_what_it_has_not_told(worker: Worker) -> None:
    step = TogetherToFlower(worker)
    step.start(worker)
    worker.tells("task-succeeded")
    step.stop(worker)
    assert worker.sent == [["task-succeeded"]]


def test_no_more_than_so_many_are_kept(worker: Worker) -> None:
    TogetherToFlower(worker).start(worker)
    worker.tells(*["task-started"] * (MOST_KEPT + 1))
    assert [len(events) for events in worker.sent] == [MOST_KEPT]


def test_workers_are_built_with_it() -> None:
    assert TogetherToFlower in app.steps["consumer"]
