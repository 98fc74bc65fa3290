"""Beat's scheduler: it ticks, and stops ticking while nobody listens."""

from __future__ import annotations

import logging
from typing import Any

from celery.beat import Scheduler

from models.kernel.errors import Unavailable
from models.kernel.settings import settings
from orchestrator_tasks.publisher import count_messages

log = logging.getLogger(__name__)

MOST_TICKS = 10
"""How many may wait beyond the dispatcher's window; without a bound, a night without workers fills the broker."""


class BoundedScheduler(Scheduler):
    """In memory: due times live in Postgres, so that a beat which starts anew has forgotten nothing."""

    holding_back = False

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        held = self.reason_to_hold_back(entry.options["queue"])
        if held and not self.holding_back:
            log.warning("ticks are held back", extra={"reason": held})
        self.holding_back = bool(held)
        if not held:
            super().apply_entry(entry, producer=producer)

    def reason_to_hold_back(self, queue: str) -> str:
        try:
            waiting = count_messages(queue)
        except Unavailable as error:
            return error.message
        return f"{waiting} messages wait in {queue}" if waiting >= settings().dispatch_window + MOST_TICKS else ""
