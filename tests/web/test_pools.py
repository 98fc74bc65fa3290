"""The pool of request threads: every caller hears of its own call, and the event loop is woken once for many."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from orchestrator_web.pools import Pool
from tests.web.server import run, until


class Gate:
    """A call that says that it has begun, and goes on when it is told to."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, answer: Any = None) -> Any:
        self.entered.release()
        self.opened.wait(20)
        return answer


def test_each_caller_gets_what_its_own_call_answers_or_raises() -> None:
    pool = Pool(4, "test")

    async def scenario() -> None:
        calls = [pool.run(divmod, number, number % 3) for number in range(60)]
        for number, call in enumerate(calls):
            if number % 3:
                assert await call == divmod(number, number % 3)
            else:
                with pytest.raises(ZeroDivisionError):
                    await call
        assert pool.busy == 0

    run(scenario)


def test_threads_are_started_as_they_are_needed_and_never_more_than_allowed() -> None:
    pool, gate = Pool(3, "test"), Gate()

    async def scenario() -> None:
        for _ in range(5):
            await pool.run(int)
        assert pool.started == 1
        waiting = [pool.run(gate, number) for number in range(7)]
        for _ in range(3):
            await asyncio.to_thread(gate.entered.acquire)
        assert (pool.started, gate.entered.acquire(blocking=False)) == (3, False)
        gate.opened.set()
        assert await asyncio.gather(*waiting) == list(range(7))

    run(scenario)


def test_what_is_done_while_the_loop_is_busy_is_told_at_once() -> None:
    pool = Pool(4, "test")

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        words, tell = [], loop.call_soon_threadsafe

        def count(*word: Any, **more: Any) -> Any:
            words.append(word)
            return tell(*word, **more)

        loop.call_soon_threadsafe = count  # type: ignore[method-assign]
        calls = [pool.run(int, number) for number in range(40)]
        while len(pool.done) < len(calls):  # the loop looks at nothing meanwhile
            pass
        assert await asyncio.gather(*calls) == list(range(40))
        assert len(words) <= pool.most

    run(scenario)


def test_a_caller_that_has_left_keeps_nobody_waiting() -> None:
    pool, gate = Pool(1, "test"), Gate()

    async def scenario() -> None:
        left = asyncio.ensure_future(pool.run(gate))
        await asyncio.to_thread(gate.entered.acquire)
        left.cancel()
        behind = pool.run(int, 7)
        gate.opened.set()
        assert await behind == 7
        assert pool.busy == 0

    run(scenario)


def test_a_pool_outlives_the_loop_that_it_worked_for() -> None:
    pool, gate = Pool(1, "test"), Gate()

    async def leave() -> None:
        pool.run(gate)
        await asyncio.to_thread(gate.entered.acquire)

    async def come() -> None:
        gate.opened.set()
        assert await pool.run(int, 7) == 7
        await until(lambda: pool.busy == 0)

    run(leave)
    run(come)


def test_each_thread_is_prepared_before_its_first_call() -> None:
    mine = threading.local()
    pool = Pool(2, "test", lambda: setattr(mine, "is_ready", True))

    async def scenario() -> None:
        assert await asyncio.gather(*(pool.run(lambda: mine.is_ready) for _ in range(10))) == [True] * 10

    run(scenario)
