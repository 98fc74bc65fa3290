"""Carrying one delivery out: take, sign, send under a deadline, settle or try again later."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from celery import current_task

from models.kernel import clock
from models.kernel.backlog import park_job, put_off_job
from models.kernel.errors import LeaseLost, OrchestratorError
from models.kernel.jobs import Work, register
from models.kernel.logs import about
from models.kernel.messages import CORRELATION
from models.kernel.once import once
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
from orchestrator_tasks.kernel.places import Places
from orchestrator_tasks.kernel.posting import SHUTDOWN, Answer, Call, Message, post
from orchestrator_tasks.kernel.worker import worker

log = logging.getLogger(__name__)

LEASE_MARGIN_SECONDS = 10.0  # of the lookup and the connection, beside the receiver's own time

SPARED_THREADS = 4  # of the worker's, for schedules and operations, however many receivers hang
LONGEST_TURN_SECONDS = 2.0  # after which a receiver's lane waits for its next turn
SLOW_SECONDS = 2.0  # a receiver whose last call took longer goes behind the others
GOES_ON = {DELIVERED, PENDING, FAILED}

Row = Mapping[str, Any]

register(Work(task=TASK, queue=QUEUE, lost=deliveries.lose_deliveries, expired=deliveries.expire_deliveries))


@app.task(name=TASK)
def deliver(job_id: int, subject_id: str) -> int:
    """Make the delivery if it is still owed, and go on with its lane for a while; answers how many tries that were.

    A message for each would cost a receiver with much to hear a turn of the dispatcher each time.
    """
    receiver = find_receiver_of(job_id)
    if receiver is None:
        log.info("nothing to do: the job is gone or taken")
        return 0
    with room().place(receiver["tenant"], receiver["lane"]) as given:
        tries = take_turn(job_id, subject_id, getattr(current_task.request, CORRELATION, None)) if given else 0
        if not given or room().is_slow(receiver["lane"]):
            put_off(job_id, subject_id, tries)
    hints.owed(QUEUE)
    return tries


@once
def room() -> Places:
    """How many receivers this process calls at once."""
    return Places(settings().system_concurrency - SPARED_THREADS)


def find_receiver_of(job_id: int) -> Row | None:
    with statement() as connection:
        return deliveries.find_lane(connection, job_id)


def put_off(job_id: int, subject_id: str, tries: int) -> None:
    """What is next for a receiver that found no place, or was slow, goes behind what others are owed."""
    following = find_following(subject_id) if tries else (job_id, subject_id, None)
    if following is not None:
        with statement() as connection:
            put_off_job(connection, following[0])


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
        answer = send_timed(taken, receiver)
    try:
        return record(taken, answer)
    except LeaseLost:
        log.warning("the delivery's outcome came too late", extra={"status_code": answer.status_code})
        return "lease lost"
    except OrchestratorError as error:
        # The lease runs out, and the reaper has the delivery tried again: at least once is what is promised.
        log.warning("the delivery's outcome could not be recorded", extra={"error": error.message})
        return "not recorded"


def take(job_id: int) -> Row | None:
    with statement() as connection:
        try:
            return deliveries.take_delivery(connection, job_id, worker())
        except LaneBusy:
            park_job(connection, job_id)
            return None


def send_timed(taken: Row, receiver: Row) -> Answer:
    """Send, and remember whether the receiver kept its place for long."""
    began = clock.monotonic()
    answer = send(taken, receiver)
    took = clock.monotonic() - began
    if room().remember(deliveries.lane_named(taken["webhook_id"]), slow=took > SLOW_SECONDS):
        log.warning(
            "a slow receiver: it is called behind the others",
            extra={"webhook_id": taken["webhook_id"], "took_seconds": round(took, 1)},
        )
    return answer


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
