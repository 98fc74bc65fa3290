"""A worker's threads: a place that becomes free is filled at once."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from celery.concurrency.prefork import TaskPool as Processes
from celery.concurrency.thread import TaskPool

from orchestrator_tasks.app import worker_is_made
from orchestrator_tasks.pool import WakingPool

DEADLINE_SECONDS = 20.0


class Hub:
    """The part of an event loop that a pool needs."""

    def __init__(self, pool: WakingPool) -> None:
        pool.register_with_event_loop(self)

    def add_reader(self, end: int, callback: object) -> None:
        self.end, self.callback = end, callback

    def is_woken(self, within: float = 0.0) -> bool:
        return bool(select.select([self.end], [], [], within)[0])


@pytest.fixture
def pool() -> Iterator[WakingPool]:
    made = WakingPool(limit=2)
    yield made
    made.on_stop()
    os.close(made.heard)
    os.close(made.said)


def occupy(pool: WakingPool) -> threading.Event:
    """A place, until the event is set."""
    let_go = threading.Event()
    pool.on_apply(lambda: let_go.wait(DEADLINE_SECONDS), (), callback=lambda _: None)
    return let_go


def test_a_full_pool_wakes_its_worker_when_a_place_becomes_free(pool: WakingPool) -> None:
    hub = Hub(pool)
    first, second = occupy(pool), occupy(pool)
    assert not hub.is_woken()
    first.set()
    assert hub.is_woken(DEADLINE_SECONDS)
    pool.hear()
    assert not hub.is_woken()
    second.set()


def test_of_a_pool_with_free_places_nobody_is_told(pool: WakingPool) -> None:
    hub = Hub(pool)
    done = pool.on_apply(lambda: None, (), callback=lambda _: None)
    done.f.result(DEADLINE_SECONDS)
    pool.on_stop()  # its thread has said all that it will
    assert not hub.is_woken()


def test_places_are_counted_over_any_number_of_tasks(pool: WakingPool) -> None:
    hub = Hub(pool)
    for _ in range(3):
        held = [occupy(pool), occupy(pool)]
        for each in held:
            each.set()
        assert hub.is_woken(DEADLINE_SECONDS)
        while pool.taken:
            assert hub.is_woken(DEADLINE_SECONDS)
        pool.hear()


def test_workers_with_threads_have_this_pool_and_those_with_processes_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator_tasks.app.refuse_without_servers", lambda: None)
    for given, chosen in ((TaskPool, WakingPool), (Processes, Processes)):
        worker = SimpleNamespace(hostname="io@here", pool_cls=given)
        worker_is_made(worker)
        assert worker.pool_cls is chosen
