"""What a process has one of."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.kernel.once import Once, once


def test_threads_that_ask_at_the_same_time_are_given_the_same() -> None:
    asking = threading.Barrier(8)
    slow = threading.Event()

    @once
    def thing() -> object:
        slow.wait(0.05)  # the others ask meanwhile
        return object()

    def ask(_: int) -> object:
        asking.wait(5)
        return thing()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1


def test_what_cannot_be_made_is_tried_again() -> None:
    answers = iter((None, "made"))

    @once
    def thing() -> str:
        answer = next(answers)
        if answer is None:
            raise ValueError("not yet")
        return answer

    with pytest.raises(ValueError, match="not yet"):
        thing()
    assert not thing.is_made
    assert thing() == "made"


def test_what_was_forgotten_is_made_anew() -> None:
    thing: Once[object] = once(object)
    first = thing()
    thing.cache_clear()
    assert thing() is not first


def test_a_child_is_not_held_up_by_a_thread_of_its_parent_that_was_making_it() -> None:
    making, made = threading.Event(), threading.Event()

    @once
    def thing() -> int:
        if threading.current_thread() is not threading.main_thread():
            making.set()
            made.wait(10)
        return os.getpid()

    threading.Thread(target=thing).start()
    assert making.wait(5)
    child = os.fork()
    if not child:
        signal.alarm(5)  # ends a child that waits for ever
        os._exit(0 if thing() == os.getpid() else 1)
    _, status = os.waitpid(child, 0)
    made.set()
    assert status == 0
