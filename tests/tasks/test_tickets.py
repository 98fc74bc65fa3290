"""Carrying one ticket out, on a real database, with a driver that only records what reaches it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from models.kernel import clock
from models.kernel.backlog import wake_lanes
from models.kernel.errors import Unavailable
from models.kernel.hints import OUTCOMES, WORK
from models.kernel.jobs import list_expired
from models.kernel.session import statement, transaction
from models.kernel.settings import settings as service_settings
from models.tickets import operations, safety, transitions
from models.tickets.operations import Outcome
from orchestrator_tasks import hints
from orchestrator_tasks.keeper import Keeper
from orchestrator_tasks.tickets import tasks, together
from orchestrator_tasks.tickets.drivers.base import Command, DriverFailed, Interrupt, OutcomeUnknown
from tests.service.waiting import eventually
from tests.tasks.conftest import Clock
from tests.tasks.owed import Job, Owed, change, rows, run_out

DONE = {"command": "drive", "executed": True}


class Recorder:
    """A driver that moves nothing: it keeps the commands that reach it, and does what it was told to."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.stops: list[tuple[str, int, str]] = []
        self.act: Callable[[], object] = lambda: None

    def carry_out(self, command: Command, interrupt: Interrupt) -> dict[str, Any]:
        self.commands.append(command)
        self.act()
        return dict(DONE)

    def stop(self, target: str, fence: int, reason: str) -> None:
        self.stops.append((target, fence, reason))


@pytest.fixture
def driver(database: str, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(tasks, "driver", lambda: recorder)
    monkeypatch.setattr(hints, "send", lambda *_: None)
    monkeypatch.setattr(tasks, "keeper", Keeper())
    return recorder


def execute(job: Job) -> str:
    return str(tasks.execute(job_id=job.id, subject_id=job.ticket_id))


def fails(error: Exception) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


@pytest.mark.parametrize(("command", "channels"), [("scan", {OUTCOMES}), ("drive", {OUTCOMES, WORK})])
def test_dispatchers_are_told_of_an_end_only_where_a_lane_may_go_on(
    driver: Recorder, owed: Owed, monkeypatch: pytest.MonkeyPatch, command: str, channels: set[str]
) -> None:
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(hints, "send", lambda *hints: sent.extend(hints))
    job = owed(command)
    assert execute(job) == "completed"
    assert {channel for channel, _ in sent} == channels
    assert (OUTCOMES, job.ticket_id) in sent


def test_a_ticket_is_taken_driven_and_settled_once(driver: Recorder, owed: Owed) -> None:
    job = owed("drive")
    assert execute(job) == "completed"
    assert execute(job) == "not taken"
    assert job.ticket["result"] == DONE
    assert job.topics().count("execution_completed") == 1
    assert [command.ticket_id for command in driver.commands] == [job.ticket_id]


def test_of_messages_that_arrive_twice_at_once_one_drives(driver: Recorder, owed: Owed) -> None:
    job = owed("drive")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: execute(job), range(4)))
    assert sorted(answers) == ["completed", "not taken", "not taken", "not taken"]
    assert len(driver.commands) == 1


def test_a_drive_whose_robot_is_busy_waits_in_its_lane_and_is_woken(driver: Recorder, owed: Owed) -> None:
    first, second = owed("drive"), owed("drive")
    driver.act = lambda: answers.append(execute(second)) if not answers else None
    answers: list[str] = []
    assert execute(first) == "completed"
    assert answers == ["not taken"]
    assert rows("SELECT waits FROM jobs WHERE id = :id", id=second.id) == [{"waits": False}]
    assert execute(second) == "completed"


class TestAMotionWhoseRobotIsOwedAStop:
    """The stop of the motion before it would hit it."""

    @pytest.fixture
    def following(self, driver: Recorder, owed: Owed) -> Job:
        revoked = owed("drive")
        revoked.take()
        owed.cancel(revoked.ticket_id)
        return owed("drive", timeout_seconds=1)

    def taken(self) -> None:
        change("UPDATE stop_orders SET done_at = clock_timestamp()")

    def test_begins_as_soon_as_the_stop_is_taken(
        self, driver: Recorder, following: Job, time: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clock, "pause", lambda _: self.taken())
        assert execute(following) == "completed"
        assert [command.ticket_id for command in driver.commands] == [following.ticket_id]

    def test_goes_back_to_its_lane_untaken_so_that_its_timeout_does_not_run(
        self, driver: Recorder, following: Job, time: Clock
    ) -> None:
        assert execute(following) == "not taken"
        assert driver.commands == []
        assert following.topics() == ["ticket_created", "ticket_queued"]
        (job,) = rows("SELECT waits, attempt, fence FROM jobs")
        assert job == {"waits": True, "attempt": 0, "fence": None}
        with statement() as connection:
            assert wake_lanes(connection) == 1
        self.taken()
        assert execute(following) == "completed"

    def test_keeps_its_place_before_those_behind_it(
        self, driver: Recorder, owed: Owed, following: Job, time: Clock
    ) -> None:
        behind = owed("drive")
        assert [execute(following), execute(behind)] == ["not taken"] * 2
        with statement() as connection:
            wake_lanes(connection)
        ready = rows("SELECT id FROM jobs WHERE NOT waits")
        assert ready == [{"id": following.id}]

    def test_expires_where_it_waits(self, driver: Recorder, following: Job, time: Clock) -> None:
        execute(following)
        change("UPDATE jobs SET expires_at = clock_timestamp()")
        with statement() as connection:
            operations.expire_tickets(connection, list_expired(connection)[transitions.TASK])
        assert following.ticket["error_code"] == "expired"

    def test_is_given_back_when_the_stop_was_ordered_as_it_was_taken(
        self, driver: Recorder, owed: Owed, following: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        behind = owed("drive")
        self.taken()
        take = tasks.take

        def take_and_order(job_id: int) -> Any:
            attempt = take(job_id)
            change("UPDATE stop_orders SET done_at = NULL")
            return attempt

        monkeypatch.setattr(tasks, "take", take_and_order)
        assert execute(following) == "given back"
        assert driver.commands == []
        assert (following.ticket["state"], following.ticket["started_at"]) == ("queued", None)
        waiting = {row["id"]: (row["waits"], row["attempt"]) for row in rows("SELECT id, waits, attempt FROM jobs")}
        assert waiting == {following.id: (False, 0), behind.id: (True, 0)}

    @pytest.mark.parametrize("command", ["scan", "stop", "brake"])
    def test_keeps_nothing_else_from_the_robot(
        self, driver: Recorder, owed: Owed, following: Job, command: str
    ) -> None:
        assert execute(owed(command)) == "completed"


def test_a_command_is_told_until_when_its_lease_lets_it_begin(driver: Recorder, owed: Owed) -> None:
    began = clock.monotonic()
    assert execute(owed("drive", timeout_seconds=300)) == "completed"
    lease = service_settings().lease_seconds
    assert began < driver.commands[0].begin_by <= clock.monotonic() + lease


def test_a_stop_ends_what_was_moving_and_tells_its_caller_so(driver: Recorder, owed: Owed) -> None:
    moving, elsewhere = owed("drive"), owed("drive", target="other")
    attempts = [moving.take(), elsewhere.take()]
    assert execute(owed("stop")) == "completed"
    ended = moving.ticket
    assert (ended["state"], ended["error_code"]) == ("failed", "stop")
    assert ended["error"] == "The robot was stopped on the way: stop"
    assert elsewhere.ticket["state"] == "executing"
    assert tasks.settle(attempts[0], Outcome("completed", result=DONE)) == "lease lost"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DriverFailed("refused by the bus", code="actuator_refused"), "actuator_refused"),
        (OutcomeUnknown("no answer"), "outcome_unknown"),
        (RuntimeError("a bug"), "outcome_unknown"),
    ],
)
def test_a_driver_that_fails_fails_the_ticket_with_its_reason(
    driver: Recorder, owed: Owed, error: Exception, code: str
) -> None:
    job = owed("drive")
    driver.act = fails(error)
    assert execute(job) == "failed"
    assert job.ticket["error_code"] == code
    assert job.ticket["error"]


def test_an_outcome_is_settled_when_the_database_is_back(
    driver: Recorder, owed: Owed, away: threading.Event, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = owed("drive")
    driver.act = away.set
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        time.advance(seconds)
        if len(pauses) == 6:
            away.clear()

    monkeypatch.setattr(clock, "pause", pause)
    assert execute(job) == "completed"
    assert len(pauses) == 6
    assert pauses == sorted(pauses)
    assert job.topics().count("execution_completed") == 1


def test_an_outcome_that_cannot_be_recorded_is_given_up_in_the_end(
    driver: Recorder, owed: Owed, away: threading.Event, time: Clock
) -> None:
    job = owed("drive")
    driver.act = away.set
    began = time()
    assert execute(job) == "not recorded"
    assert time() - began == pytest.approx(tasks.SETTLE_PATIENCE_SECONDS, abs=2)
    away.clear()
    assert job.ticket["state"] == "executing"


def test_an_outcome_is_settled_although_somebody_held_its_row_for_longer_than_a_lock_is_waited_for(
    driver: Recorder, owed: Owed, set_to: Callable[..., None]
) -> None:
    set_to(lock_timeout=0.1)
    job = owed("drive")
    attempt = job.take()
    outcome = Outcome("completed", result=DONE)
    refused = threading.Event()
    settle_tickets = operations.settle_tickets

    def noting(*arguments: Any) -> Any:
        try:
            return settle_tickets(*arguments)
        except Exception:
            refused.set()
            raise

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(operations, "settle_tickets", noting)
        with transaction() as connection:
            connection.execute(text("SELECT FROM tickets WHERE id = :id FOR UPDATE"), {"id": job.ticket_id})
            settling = pool.submit(tasks.settle, attempt, outcome)
            assert refused.wait(20)
        assert settling.result(20) == "completed"
    assert job.ticket["state"] == "completed"


def test_the_outcome_of_a_ghost_is_kept_as_evidence_and_changes_nothing(driver: Recorder, owed: Owed) -> None:
    job = owed("drive")

    def reap() -> None:
        (held,) = rows("SELECT id, fence FROM jobs WHERE id = :id", id=job.id)
        with statement() as connection:
            operations.lose_tickets(
                connection, [operations.Held(held["id"], job.ticket_id, held["fence"], attempt=1, max_attempts=1)]
            )

    driver.act = reap
    assert execute(job) == "lease lost"
    assert (job.ticket["state"], job.ticket["error_code"]) == ("failed", "outcome_unknown")
    (evidence,) = rows("SELECT * FROM ledger WHERE topic = 'late_outcome'")
    assert (evidence["subject_id"], evidence["to_state"]) == (job.ticket_id, None)
    assert evidence["body"]["to"] == "completed"
    assert evidence["body"]["result"] == DONE
    assert job.topics().count("execution_failed") == 1


def test_a_worker_that_is_shutting_down_gives_back_what_it_has_not_begun(driver: Recorder, owed: Owed) -> None:
    job = owed("drive")
    tasks.keeper.begin_shutdown()
    assert execute(job) == "given back"
    assert driver.commands == []
    assert job.ticket["state"] == "queued"
    assert rows("SELECT attempt, fence FROM jobs") == [{"attempt": 0, "fence": None}]


def test_a_job_past_its_time_is_not_started(driver: Recorder, owed: Owed) -> None:
    job = owed("drive", expires=0.001)
    eventually(lambda: rows("SELECT FROM jobs WHERE expires_at < clock_timestamp()"))
    assert execute(job) == "not taken"
    assert driver.commands == []


def test_a_database_that_is_away_before_the_driver_is_called_moves_nothing(
    driver: Recorder, owed: Owed, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = owed("drive")
    monkeypatch.setattr(together, "find_clearances", fails_with(Unavailable("away", code="database_unavailable")))
    assert execute(job) == "failed"
    assert job.ticket["error_code"] == "database_unavailable"
    assert driver.commands == []


def fails_with(error: Exception) -> Callable[..., object]:
    def act(*_: object) -> object:
        raise error

    return act


# What tries to reach the driver: any command, with parameters of any JSON kind, revoked at any moment before it.
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(10**30), 10**30),
    st.floats(-1, 4),
    st.integers(-1, 400),
)
VALUES = st.one_of(NUMBERS, st.booleans(), st.none(), st.sampled_from(["1", "fast", ""]), st.lists(NUMBERS, max_size=2))
NAMES = st.sampled_from(["speed", "duration_seconds", "direction", "nested"])
NESTED = st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES, max_size=2), max_size=4)
SAFE = st.fixed_dictionaries({"speed": st.floats(0, 3), "duration_seconds": st.integers(0, 300)})
COMMANDS = st.sampled_from(["drive", "drive", "stop", "brake", "scan", "dance", "DRIVE"])
MOMENTS = st.sampled_from(["never", "never", "before the take", "after the take", "reaped"])

numbers = itertools.count(1)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(command=COMMANDS, params=NESTED | SAFE, revoked=MOMENTS)
def test_nothing_unsafe_and_nothing_revoked_reaches_the_driver(
    driver: Recorder, owed: Owed, command: str, params: dict[str, Any], revoked: str
) -> None:
    job = owed(command, params, target=f"robot-{next(numbers)}")
    driver.commands.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "take", revoking(owed, job, revoked))
        said = execute(job)
    unsafe = safety.refusal(command, params) is not None
    assert len(driver.commands) == (0 if unsafe or revoked != "never" else 1)
    assert job.ticket["state"] == ending(revoked, unsafe)
    assert said == {"never": "failed" if unsafe else "completed", "before the take": "not taken"}.get(
        revoked, "lease lost"
    )


def ending(revoked: str, unsafe: bool) -> str:
    if revoked == "never":
        return "failed" if unsafe else "completed"
    return "failed" if revoked == "reaped" else "cancelled"


def revoking(owed: Owed, job: Job, moment: str) -> Callable[[int], Any]:
    """Takes the job, and has it revoked just before or just after."""
    take = tasks.take

    def act(job_id: int) -> Any:
        if moment == "before the take":
            owed.cancel(job.ticket_id)
        attempt = take(job_id)
        if moment == "after the take":
            owed.cancel(job.ticket_id)
        if moment == "reaped" and attempt is not None:
            run_out(attempt)
            with statement() as connection:
                operations.lose_tickets(connection, [operations.Held(job_id, job.ticket_id, attempt.fence, 1, 1)])
        return attempt

    return act
