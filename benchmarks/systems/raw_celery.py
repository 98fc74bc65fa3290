"""Raw Celery: a task that does nothing, and nobody who remembers it. Settings as in the service, or it would be slower.

Messages are taken early (Celery's own default prefetch), acknowledged early, no result is kept.
"""

from __future__ import annotations

import os
import time

from celery import Celery

from benchmarks.systems.marks import mark

QUEUE = "raw"

app = Celery("raw", broker=os.environ["BENCH_BROKER_URL"])
app.conf.update(
    task_default_queue=QUEUE,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_redirect_stdouts=False,
)


@app.task(name="raw.execute")
def execute(ticket_id: str) -> None:
    mark(ticket_id, time.monotonic_ns())
