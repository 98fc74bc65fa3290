"""Carrying one delivery out: take, sign, send under a deadline, settle or try again later."""

from __future__ import annotations

import functools
import logging
import socket
import threading
from collections.abc import Mapping
from typing import Any

import orjson
from celery import current_task

from models.kernel import clock
from models.kernel.backlog import park_job
from models.kernel.errors import LeaseLost, OrchestratorError
from models.kernel.jobs import Work, register
from models.kernel.logs import about
from models.kernel.session import statement, transaction
from models.kernel.settings import settings
from models.kernel.transition import LaneBusy
from models.kernel.webhooks import deliveries, signing
from models.kernel.webhooks import subscriptions as webhooks
from models.kernel.webhooks.moves import QUEUE, TASK
from models.kernel.webhooks.tables import DELIVERED, FAILED, PENDING
from orchestrator_tasks import hints
from orchestrator_tasks.app import app
from orchestrator_tasks.keeper import keeper
from orchestrator_tasks.kernel.posting import SHUTDOWN, Answer, Call, Message, post
from orchestrator_tasks.publisher import CORRELATION

log = logging.getLogger(__name__)

LEASE_MARGIN_SECONDS = 10.0  # of the lookup and the connection, beside the receiver's own time

SPARED_THREADS = 4  # of the worker's, for schedules and operations, however many receivers hang
LONGEST_TURN_SECONDS = 2.0  # after which a receiver's lane waits for its next turn
GOES_ON = {DELIVERED, PENDING, FAILED}

Row = Mapping[str, Any]

register(Work(task=TASK, queue=QUEUE, lost=deliveries.lose_deliveries, expired=deliveries.expire_deliveries))


@app.task(name=TASK)
def deliver(job_id: int, subject_id: str) -> int:
    """Make the delivery if it is still owed, and go on with its lane for a while; answers how many tries that were.

    A message for each would cost a receiver with much to hear a turn of the dispatcher each time.
    """
    if not room().acquire(blocking=False):
        log.warning("too many receivers are being waited for; this one is called later")
        return 0
    try:
        return take_turn(job_id, subject_id, getattr(current_task.request, CORRELATION, None))
    finally:
        room().release()
        hints.send((hints.WORK, ""))


@functools.cache
def room() -> threading.BoundedSemaphore:
    """How many receivers this process calls at once. A job that finds none is sent again when its message is old."""
    return threading.BoundedSemaphore(max(1, settings().system_concurrency - SPARED_THREADS))


def take_turn(job_id: int, subject_id: str, correlation_id: str | None) -> int:
    """Make a delivery and those that follow it in its lane, for LONGEST_TURN_SECONDS; answers how many tries."""
    until = clock.monotonic() + LONGEST_TURN_SECONDS
    tries = 0
    following: tuple[int, str, str | None] | None = (job_id, subject_id, correlation_id)
    while following is not None:
        job_id, delivery_id, correlation_id = following
        with about(correlation_id=correlation_id, delivery_id=delivery_id, action="deliver"):
            if perform(job_id) not in GOES_ON:
                break
        tries += 1
        following = find_following(subject_id) if clock.monotonic() < until else None
    return tries


def find_following(delivery_id: str) -> tuple[int, str, str] | None:
    with statement() as connection:
        return deliveries.find_following_job(connection, delivery_id)


def perform(job_id: int) -> str:
    taken = take(job_id)
    if taken is None:
        log.info("nothing to do: the job is gone, taken or not due")
        return "not taken"
    with statement() as connection:
        receiver = webhooks.find_receiver(connection, taken["webhook_id"])
    if receiver is None:
        answer = Answer(error="The subscription is disabled", error_code=deliveries.WEBHOOK_DISABLED)
    else:
        answer = send(taken, receiver)
    try:
        return record(taken, answer)
    except LeaseLost:
        log.warning("the delivery's outcome came too late", extra={"status_code": answer.status_code})
        return "lease lost"
    except OrchestratorError as error:
        # The lease runs out, and the reaper has the delivery tried again: at least once is what is promised.
        log.warning("the delivery's outcome could not be recorded", extra={"error": error.message})
        return "not recorded"


def worker() -> str:
    return f"worker:{socket.gethostname()}"


def take(job_id: int) -> Row | None:
    with statement() as connection:
        try:
            return deliveries.take_delivery(connection, job_id, worker())
        except LaneBusy:
            park_job(connection, job_id)
            return None


def send(taken: Row, receiver: Row) -> Answer:
    """Sign and send while the lease is kept; the end of the process cuts the call short."""
    body = orjson.dumps(taken["payload"])
    headers = signing.headers(receiver["secrets"], taken["id"], clock.utcnow(), body)
    seconds = settings().webhook_timeout
    call = Call(seconds)
    with keeper.holding(taken["job_id"], taken["fence"], seconds + LEASE_MARGIN_SECONDS, call):
        if keeper.is_shutting_down():
            call.set(SHUTDOWN)
        return post(Message(receiver["url"], body, headers), seconds, call, turn=taken["attempt"] - 1)


def record(taken: Row, answer: Answer) -> str:
    """Write down what became of a try. Raises LeaseLost."""
    if answer.cut_short:
        with statement() as connection:
            deliveries.release_delivery(connection, taken, worker())
        return "given back"
    row = deliveries.answer_of(answer.status_code, answer.error, answer.error_code)
    facts = {"webhook_id": taken["webhook_id"], **row, "tries": taken["tries"]}
    if answer.delivered:
        with statement() as connection:
            deliveries.settle_delivery(connection, taken, DELIVERED, row, worker())
        log.info("delivered", extra=facts)
        return DELIVERED
    if not answer.final and answer.error_code != deliveries.WEBHOOK_DISABLED and has_tries(taken):
        with statement() as connection:
            delay = deliveries.retry_delivery(connection, taken, row, worker(), answer.wished)
        log.info("not delivered, to be tried again", extra={**facts, "delay_seconds": delay})
        return PENDING
    fail(taken, answer, row)
    log.warning("not delivered", extra=facts)
    return FAILED


def has_tries(taken: Row) -> bool:
    return bool(taken["attempt"] < taken["max_attempts"])


def fail(taken: Row, answer: Answer, row: Row) -> None:
    """The delivery has failed; so may have the subscription, which is disabled in the same transaction."""
    with transaction() as connection:
        failures = deliveries.settle_delivery(connection, taken, FAILED, row, worker())
        reason = disabling_reason(answer, failures)
        off = reason and webhooks.disable_webhook(
            connection, taken["webhook_id"], reason, worker(), taken["correlation_id"]
        )
    if off:
        log.error("webhook disabled", extra={"webhook_id": taken["webhook_id"], "reason": reason})


def disabling_reason(answer: Answer, failures: int) -> str | None:
    if answer.error_code == "receiver_gone":
        return "receiver_gone"
    return "too_many_failures" if failures >= settings().webhook_disable_after else None
