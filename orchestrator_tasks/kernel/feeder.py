"""The feeder: a thread of the dispatcher that turns news into deliveries, without holding up the dispatching.

Every dispatcher has one; a row lock lets one of them work at a time. While nobody
subscribes a pass costs one statement.
"""

from __future__ import annotations

import logging
import threading

from models.kernel.errors import OrchestratorError
from models.kernel.session import statement
from models.kernel.webhooks.deliveries import strand_deliveries
from models.kernel.webhooks.feeding import feed_webhooks
from models.kernel.webhooks.moves import QUEUE
from orchestrator_tasks import hints

log = logging.getLogger(__name__)

PACE_SECONDS = 0.25
STRAND_EVERY = 8  # passes


class Feeder:
    """One feeding thread."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, name="feeder", daemon=True)
        self.passes = 0

    def start(self) -> Feeder:
        self.thread.start()
        return self

    def run(self) -> None:
        while not self.over.is_set():
            try:
                more = self.feed()
            except OrchestratorError as error:
                log.warning("a pass of the feeder failed", extra={"error": error.message, "code": error.code})
                more = False
            except Exception:
                log.exception("a pass of the feeder failed in a way it should not")
                more = False
            if not more:
                self.over.wait(PACE_SECONDS)

    def feed(self) -> bool:
        """One pass; whether the next one has work to do already."""
        made, more = feed_webhooks()
        if made:
            hints.owed(QUEUE)
        self.passes += 1
        if self.passes % STRAND_EVERY == 0:
            with statement() as connection:
                strand_deliveries(connection)
        return more

    def stop(self) -> None:
        self.over.set()
        self.thread.join(timeout=5.0)
