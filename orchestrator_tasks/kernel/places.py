"""Who may be called at once: the places of one process, shared so that nobody keeps others from being tried.

One tenant gets most of the places and never all, a receiver one. A receiver that kept it
for long the last time is slow, and all the slow ones share a few: whoever hangs waits for
others that hang, and not the others for it. What is known of receivers is this process's
own and is learnt anew after a start, at the price of one long call each.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator

MOST_REMEMBERED = 10_000  # slow receivers; of more the oldest is forgotten, and tried as if it were new


class Places:
    """`total` places: at most three quarters for one tenant, and a third for slow receivers."""

    def __init__(self, total: int) -> None:
        self.total = max(1, total)
        self.of_tenant = max(1, self.total * 3 // 4)
        self.of_slow = max(1, self.total // 3)
        self.lock = threading.Lock()
        self.tenants: Counter[str] = Counter()
        self.receivers: set[str] = set()
        self.slow_taken = 0
        self.slow: OrderedDict[str, None] = OrderedDict()

    @contextlib.contextmanager
    def place(self, tenant: str, receiver: str) -> Iterator[bool]:
        """Hold a place for a receiver, if it gets one now; says whether."""
        with self.lock:
            slow = receiver in self.slow
            given = receiver not in self.receivers and self.has_room(tenant, slow=slow)
            if given:
                self.receivers.add(receiver)
                self.tenants[tenant] += 1
                self.slow_taken += slow
        try:
            yield given
        finally:
            if given:
                self.leave(tenant, receiver, slow=slow)

    def has_room(self, tenant: str, *, slow: bool) -> bool:
        if slow and self.slow_taken >= self.of_slow:
            return False
        return len(self.receivers) < self.total and self.tenants[tenant] < self.of_tenant

    def leave(self, tenant: str, receiver: str, *, slow: bool) -> None:
        with self.lock:
            self.receivers.remove(receiver)
            self.slow_taken -= slow
            self.tenants[tenant] -= 1
            self.tenants += Counter()  # drops those that hold none

    def is_slow(self, receiver: str) -> bool:
        with self.lock:
            return receiver in self.slow

    def remember(self, receiver: str, *, slow: bool) -> bool:
        """What its last call was like; says whether it was not slow before and is now."""
        with self.lock:
            known = receiver in self.slow
            self.slow.pop(receiver, None)
            if slow:
                self.slow[receiver] = None
            if len(self.slow) > MOST_REMEMBERED:
                self.slow.popitem(last=False)
        return slow and not known
