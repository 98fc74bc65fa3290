"""Raw Celery on the prefork pool: a task that does nothing, and the last one says that all are done."""

from __future__ import annotations

import os

import redis
from celery import Celery

QUEUE = "raw"
DONE = "raw.done"

app = Celery("raw", broker=os.environ["BENCH_BROKER_URL"])
app.conf.update(
    task_default_queue=QUEUE,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_redirect_stdouts=False,
)


@app.task(name="raw.noop")
def noop(number: int, last: bool) -> None:
    if last:
        with redis.Redis.from_url(os.environ["BENCH_REDIS_URL"]) as client:
            client.lpush(DONE, number)
