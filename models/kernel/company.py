"""Acts that go together: whoever comes while somebody is at it goes along with the next.

Most of what a small act costs is the round trip, the statement's start and the commit. So one thread of a process
carries such acts out at a time, and those that come meanwhile go together in the next statement: whoever finds nobody
at it goes at once, and nobody ever waits for company. Measured in `docs/adr/0023` and `docs/adr/0024`.

    comes, nobody is at it  it leads: takes along whoever waits by now, carries all out, hands on the lead, tells them
    comes, somebody is      it waits for the answer, or for the lead

What is answered is committed. A statement that one of a company spoils (a row that the database refuses, or one that
somebody holds) changes nothing, and each goes by itself then. Any other failure reaches everyone whom it hit.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import DataError, IntegrityError

from models.kernel.errors import Conflict, Unavailable
from models.kernel.session import is_reserved
from models.kernel.settings import settings

MOST_TOGETHER = 64  # in one statement
SPOILT = (IntegrityError, DataError, TypeError, Conflict)
"""By one row: the database refuses it, JSON cannot say it, its lane is busy, or somebody holds it."""


class ThisThread(threading.local):
    alone = False


this_thread = ThisThread()


def go_alone() -> None:
    """From now on this thread waits for nobody, and goes together with nobody."""
    this_thread.alone = True


Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(eq=False, slots=True)
class Entry(Generic[Item, Answer]):
    """What one caller wants done, and how it went."""

    item: Item
    answers: list[Answer | Exception] = field(default_factory=list)
    goes_alone: bool = False
    word: queue.SimpleQueue[bool] = field(default_factory=queue.SimpleQueue)
    """What this caller waits for: true gives it the lead, false says that it is done."""

    def answer(self) -> Answer:
        if not self.answers:
            raise Unavailable("What became of this is not known", code="database_unavailable")
        answer = self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Company(Generic[Item, Answer]):
    """Acts of one kind in this process.

    `together` carries out any number of them in one statement, and answers for each, in order, with what it came to
    or with the exception that its caller is to see.
    """

    def __init__(self, together: Callable[[Sequence[Item]], Sequence[Answer | Exception]]) -> None:
        self.together = together
        self.begin_anew()
        companies.add(self)

    def begin_anew(self) -> None:
        self.lock = threading.Lock()
        self.waiting: list[Entry[Item, Answer]] = []
        self.is_busy = False

    def go(self, item: Item) -> Answer:
        """Have it done, with others if there are any. Raises what `together` raises or answers; Unavailable."""
        own = Entry[Item, Answer](item)
        if is_reserved() or this_thread.alone:
            self.carry_out([own])
        else:
            self.join(own)
        if own.goes_alone:
            self.carry_out([own])
        return own.answer()

    def join(self, own: Entry[Item, Answer]) -> None:
        with self.lock:
            leads = not self.is_busy
            if leads:
                self.is_busy = True
            else:
                self.waiting.append(own)
        if leads or self.is_given_the_lead(own):
            self.lead(own)

    def is_given_the_lead(self, own: Entry[Item, Answer]) -> bool:
        """Wait for a word. Raises Unavailable when none comes in the time that two statements may take."""
        chosen = settings()
        with contextlib.suppress(queue.Empty):
            return own.word.get(timeout=chosen.lock_timeout + 2 * chosen.statement_timeout)
        with self.lock:
            if own in self.waiting:
                self.waiting.remove(own)
            with contextlib.suppress(queue.Empty):  # it came just now
                return own.word.get_nowait()
        raise Unavailable("The database cannot answer right now", code="database_unavailable")

    def lead(self, own: Entry[Item, Answer]) -> None:
        with self.lock:
            group = [own, *self.waiting[: MOST_TOGETHER - 1]]
            del self.waiting[: MOST_TOGETHER - 1]
        try:
            self.carry_out(group)
        finally:
            self.hand_on()
            for entry in group[1:]:
                entry.word.put(False)

    def hand_on(self) -> None:
        with self.lock:
            if self.waiting:
                self.waiting.pop(0).word.put(True)
            else:
                self.is_busy = False

    def carry_out(self, group: list[Entry[Item, Answer]]) -> None:
        try:
            answers = self.together([entry.item for entry in group])
        except Exception as error:
            for entry in group:
                entry.goes_alone = len(group) > 1 and isinstance(error, SPOILT)
                entry.answers = [error]
        else:
            for entry, answer in zip(group, answers, strict=True):
                entry.answers = [answer]


companies: weakref.WeakSet[Company[Any, Any]] = weakref.WeakSet()


def begin_anew() -> None:
    """A lead that was held in the parent is held by nobody in the child."""
    for company in companies:
        company.begin_anew()


os.register_at_fork(after_in_child=begin_anew)
