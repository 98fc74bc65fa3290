"""Sending what was just accepted, while its queue is calm: nobody need be woken to do it.

The statement that accepted it has marked it as sent (`Spec.sends_to`). A message that gets lost on the way is sent
again by the dispatcher, as all are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from models.kernel.backlog import Ready, hand_back_jobs
from models.kernel.errors import OrchestratorError
from models.kernel.messages import job_message, list_of
from models.kernel.session import statement
from orchestrator_web import hints

log = logging.getLogger(__name__)


def send_or_hint(queue: str, sent: Mapping[str, Any] | None) -> None:
    """Send the message of this job if that falls to us, else wake the dispatcher for its queue."""
    if sent is None:
        hints.work_is_owed(queue)
    else:
        send(Ready(**sent))


def send(job: Ready) -> None:
    """Put the job's message into its list; if that fails, the job is the dispatcher's."""
    name, text = list_of(job.queue, job.priority), job_message(job)
    if not hints.reach(lambda server: server.lpush(name, text), "a message was not sent"):
        give_up(job)


def give_up(job: Ready) -> None:
    """While the database is away too, the job stays marked as sent until its message counts as lost."""
    try:
        with statement() as connection:
            hand_back_jobs(connection, [job.id])
    except OrchestratorError as error:
        log.warning("a job could not be handed back", extra={"error": error.message})
