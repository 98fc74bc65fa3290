"""The runs of one message, which one thread carries out in turn.

What has ended waits to be recorded with the others, and what has not begun holds its lease meanwhile. Neither waits for
a run that takes long: SOON_SECONDS after the first began, a thread beside the one that is busy records what has ended
and gives back what has not begun.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from models.engine.operations import Attempt
from models.engine.transitions import QUEUE
from models.kernel.errors import OrchestratorError
from orchestrator_tasks import hints
from orchestrator_tasks.engine import together
from orchestrator_tasks.engine.hosts import Interrupt
from orchestrator_tasks.engine.together import Given, Made
from orchestrator_tasks.keeper import Keeper
from orchestrator_tasks.kernel.crew import HANDED_BACK, SOON_SECONDS, Order, hand_back

log = logging.getLogger(__name__)


@dataclass
class Turn:
    """One run of a message; without an attempt it is to be taken by itself, without what it is given looked at."""

    order: Order
    attempt: Attempt | None = None
    given: Given | None = None
    interrupt: Interrupt = field(default_factory=Interrupt)
    lease: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def hold(self, keeper: Keeper) -> None:
        """Keep the lease until it is let go of, by whichever thread."""
        if self.attempt is not None:
            held = self.attempt.job_id, self.attempt.fence, self.attempt.timeout_seconds
            self.lease.enter_context(keeper.holding(*held, self.interrupt))


class Message:
    """`record` settles attempts that were made and says what became of each."""

    def __init__(self, turns: Sequence[Turn], record: Callable[[Sequence[Made]], Iterable[str]]) -> None:
        self.turns = deque(turns)
        self.ended: list[tuple[Turn, Made]] = []
        self.became: Counter[str] = Counter()
        self.record = record
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def wound_up_soon(self) -> Iterator[None]:
        """At the latest when the block ends; what is begun then is recorded at its own end."""
        timer = threading.Timer(SOON_SECONDS, self.wind_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            self.wind_up()

    def next(self) -> Turn | None:
        """Whose turn it is now; None when none is left."""
        with self.lock:
            return self.turns.popleft() if self.turns else None

    def note(self, turn: Turn, result: Made | str) -> None:
        """What a turn came to: an attempt that is to be recorded, or what became of the run."""
        with self.lock:
            if isinstance(result, str):
                turn.lease.close()
                self.became[result] += 1
            else:
                self.ended.append((turn, result))

    def wind_up(self) -> None:
        """Leave nothing behind but what is being carried out."""
        try:
            with self.lock, contextlib.ExitStack() as last:
                last.callback(self.settle)
                self.end_turns()
        except Exception:
            log.exception("a message could not be wound up; its leases run out")

    def settle(self) -> None:
        ended, self.ended = self.ended, []
        if not ended:
            return
        try:
            self.became.update(self.record([made for _, made in ended]))
        finally:
            for turn, _ in ended:
                turn.lease.close()

    def end_turns(self) -> None:
        """Others may have what has not begun: it is as if nobody had taken it."""
        left = list(self.turns)
        self.turns.clear()
        for turn in left:
            turn.lease.close()
        if untaken := [turn.order for turn in left if turn.attempt is None]:
            hand_back(untaken)
        if taken := [turn.attempt for turn in left if turn.attempt is not None]:
            give_back(taken)
        if left:
            self.became[HANDED_BACK] += len(left)


def give_back(attempts: Sequence[Attempt]) -> None:
    try:
        together.give_back(attempts)
    except OrchestratorError as error:
        extra = {"runs": len(attempts), "error": error.message}
        log.warning("attempts could not be given back; their leases run out", extra=extra)
    hints.owed(QUEUE)
