"""A task that only says that its queue is read: the answer goes to whoever sent it, and is soon forgotten."""

from __future__ import annotations

from models.kernel.hints import CANARY_SECONDS, canary_key
from orchestrator_tasks.app import app
from orchestrator_tasks.hints import client
from orchestrator_tasks.publisher import CANARY


@app.task(name=CANARY)
def answer_canary(canary: str, queue: str) -> None:
    """Leave the queue's name where the sender listens."""
    pipeline = client().pipeline(transaction=False)
    pipeline.rpush(canary_key(canary), queue)
    pipeline.expire(canary_key(canary), CANARY_SECONDS)
    pipeline.execute()
