"""The checker is checked: a kernel without one of its rules is caught, and the whole one passes on the same stage."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson
import pytest
import redis
from sqlalchemy import Connection, false, true

from models.kernel import backlog, feed, job_parts, latch, schedules
from models.kernel.errors import LeaseLost
from models.kernel.feed import Follower, list_rows
from models.kernel.messages import lists_of
from models.kernel.session import statement, transaction
from models.tickets import operations, robots, transitions
from models.tickets.events import PUBLIC_TOPICS
from models.tickets.operations import Outcome
from models.tickets.queries import Clearance
from models.tickets.states import EXECUTING, TERMINAL
from orchestrator_tasks.dispatcher import Dispatcher
from orchestrator_tasks.tickets import tasks, together
from orchestrator_tasks.tickets.drivers.base import Interrupt
from tests.chaos.checker import check
from tests.chaos.conftest import Stage
from tests.chaos.evidence import Heard
from tests.service.waiting import eventually
from tests.tasks.owed import change, rows

Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch], None]

DRIVE = {"command": "drive", "params": {"speed": 1.0, "direction": 0, "duration_seconds": 0.3}}
DONE = Outcome("completed", result={"executed": True})


def whole(_patch: Patch) -> None:
    """No rule is taken away."""


def promises(stage: Stage, **others: Any) -> set[str]:
    """Which promises the checker finds broken."""
    return {violation.promise for violation in check(stage.evidence(**others))}


# settle without fence


def settle_without_fence(patch: Patch) -> None:
    patch.setattr(job_parts, "guard_of", lambda _job, _given: true())
    mutant = transitions.ending(
        frozenset({EXECUTING}), TERMINAL, job_parts.Job.END, transitions.letter_and_stop_if_unknown
    )
    assert mutant.prepared
    patch.undo()
    patch.setattr(transitions, "SETTLE", mutant)


@pytest.mark.parametrize(
    ("mutate", "broken"),
    [
        (whole, set()),
        (
            settle_without_fence,
            {
                "what is recorded as completed was carried out",
                "an attempt is settled by the worker that holds its lease",
            },
        ),
    ],
)
def test_a_ghost_that_settles_another_s_attempt_is_caught(
    stage: Stage, mutate: Mutation, broken: set[str], environment: Patch
) -> None:
    ticket_id = stage.execute(stage.create(**DRIVE))
    ghost = stage.take(ticket_id)
    with statement() as connection:
        assert operations.release_ticket(connection, ghost, "worker:test")
    live = stage.take(ticket_id)
    begin(live)
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        settle(ghost, Outcome("completed", result={"executed": "long ago"}))
        eventually(lambda: is_over(live), what="the robot has arrived")
        settle(live, DONE)
    assert promises(stage) == broken


def begin(attempt: operations.Attempt) -> None:
    params = attempt.params
    with transaction() as connection:
        robots.begin_motion(
            connection,
            attempt.target,
            attempt.fence,
            attempt.ticket_id,
            speed=params["speed"],
            direction=params["direction"],
            seconds=params["duration_seconds"],
            time_scale=1.0,
            not_after=attempt.not_after,
        )


def is_over(attempt: operations.Attempt) -> datetime | None:
    with transaction() as connection:
        return robots.finish_motion(connection, attempt.target, attempt.fence).ended_at


def settle(attempt: operations.Attempt, outcome: Outcome) -> None:
    try:
        with statement() as connection:
            operations.settle_ticket(connection, attempt, outcome, "worker:test")
    except LeaseLost:
        pass


# publish without re-send


def publish_without_resend(patch: Patch) -> None:
    patch.setattr(backlog, "send_again", lambda *_: 0)


@pytest.mark.parametrize(
    ("mutate", "broken"),
    [
        (whole, set()),
        (
            publish_without_resend,
            {
                "every accepted execution has exactly one outcome",
                "all is settled within 60 s of the last fault",
            },
        ),
    ],
)
def test_a_message_that_is_lost_and_never_sent_again_is_caught(
    stage: Stage, valkey: redis.Redis, mutate: Mutation, broken: set[str], monkeypatch: Patch
) -> None:
    mutate(monkeypatch)
    for _ in range(3):
        stage.execute(stage.create())
    dispatcher = Dispatcher()
    dispatcher.refill_all()
    assert len(messages(valkey)) == 3
    valkey.flushall()
    change("UPDATE jobs SET dispatched_at = dispatched_at - interval '1 hour' WHERE dispatched_at IS NOT NULL")
    dispatcher.refill_all()
    for message in messages(valkey):
        tasks.perform(message["job_id"], message["subject_id"], None)
    assert promises(stage) == broken


def messages(valkey: redis.Redis) -> list[dict[str, Any]]:
    """What the messages in the queue ask a worker to do."""
    found = [raw for name in lists_of("io") for raw in valkey.lrange(name, 0, -1)]  # type: ignore[union-attr]
    return [dict(orjson.loads(base64.b64decode(orjson.loads(raw)["body"]))[1]) for raw in found]


# reader without the gap rule


def read_without_gap_rule(patch: Patch) -> None:
    def read(self: Follower, connection: Connection, limit: int = feed.LONGEST_READ) -> Any:
        found = list_rows(connection, self.position, limit)
        self.position = max([self.position, *(row["seq"] for row in found)])
        return found

    patch.setattr(Follower, "read", read)


@pytest.mark.parametrize(
    ("mutate", "broken"),
    [(whole, set()), (read_without_gap_rule, {"a reader hears each event once and in order"})],
)
def test_a_reader_that_does_not_wait_for_late_commits_is_caught(
    stage: Stage, mutate: Mutation, broken: set[str], monkeypatch: Patch
) -> None:
    mutate(monkeypatch)
    follower, heard = Follower(0), Heard("reader")

    def listen() -> None:
        with statement() as connection:
            read = [row for row in follower.read(connection) if row["topic"] in PUBLIC_TOPICS]
            heard.events += [{"seq": row["seq"]} for row in read]

    with transaction() as late:
        operations.create_tickets(late, [{**DRIVE, **STILL}], stage.caller("late"))
        stage.create()
        listen()
    listen()
    listen()
    assert promises(stage, readers=[heard]) == broken


STILL = {"priority": "normal", "timeout_seconds": 30, "metadata": {}, "target": "r2"}

# claim without the latch


def worker_without_latch(patch: Patch) -> None:
    def never(_connection: Any, held: Any) -> dict[int, Clearance]:
        return {job_id: Clearance(stop_owed=False, emergency=None) for job_id, _, _ in held}

    patch.setattr(together, "find_clearances", never)


def robot_without_latch(patch: Patch) -> None:
    patch.setattr(robots, "is_engaged", lambda *_: false())
    patch.setattr(robots, "BEGIN", robots.begin_statement())


def claim_without_latch(patch: Patch) -> None:
    worker_without_latch(patch)
    robot_without_latch(patch)


@pytest.mark.parametrize(
    ("mutate", "broken"),
    [
        (whole, set()),
        (worker_without_latch, set()),  # the robot refuses by itself
        (robot_without_latch, set()),  # the worker looks before
        (claim_without_latch, {"nothing begins after an e-stop"}),
    ],
)
def test_a_motion_that_begins_after_an_estop_is_caught(
    stage: Stage, mutate: Mutation, broken: set[str], monkeypatch: Patch, scaled: Callable[[float], None]
) -> None:
    scaled(10)
    ticket_id = stage.execute(stage.create(**DRIVE))
    attempt = stage.take(ticket_id)
    mutate(monkeypatch)
    engaged(stage)
    outcome = tasks.drive(attempt, Interrupt())
    settle(attempt, outcome)
    assert promises(stage) == broken
    assert len(rows("SELECT FROM sim_motions")) == len(broken)


def engaged(stage: Stage) -> None:
    """An e-stop whose caller dies before the sweep."""
    call = stage.history.begin("tester", "engage", {"scope": "all"})
    with statement() as connection:
        assert latch.engage_latch(connection, "all", "test", stage.caller(call.correlation_id))
    stage.history.end(call, 200, {})


# and some more


def claim_schedules_twice(patch: Patch) -> None:
    """The due time does not move on, and whoever runs holds nothing."""
    real = schedules.claim

    def claim(connection: Connection, duties: Any) -> Any:
        (before,) = rows("SELECT next_at FROM schedules")
        run = real(connection, duties)
        change("UPDATE schedules SET next_at = :at, running_until = NULL", at=before["next_at"])
        return run

    patch.setattr(schedules, "claim", claim)


@pytest.mark.parametrize(
    ("mutate", "broken"), [(whole, set()), (claim_schedules_twice, {"a schedule fires once for each due time"})]
)
def test_a_schedule_that_fires_twice_is_caught(
    stage: Stage, mutate: Mutation, broken: set[str], monkeypatch: Patch
) -> None:
    mutate(monkeypatch)
    change("DELETE FROM schedules")
    with statement() as connection:
        schedules.declare(connection, {"tallies": 3600})
    for _ in range(2):
        with statement() as connection:
            schedules.claim(connection, {"tallies"})
    assert promises(stage) == broken
