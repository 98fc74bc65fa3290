"""Several jobs of one message: carried out at once or in turn, recorded as they end, handed back when it is late."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.kernel import clock
from models.kernel.errors import Conflict, Unavailable
from orchestrator_tasks import publisher
from orchestrator_tasks.dispatcher import Dispatcher
from orchestrator_tasks.kernel import crew as crews
from orchestrator_tasks.kernel.crew import Crew, Order, side_by_side
from orchestrator_tasks.tickets import tasks, together
from tests.service.waiting import eventually
from tests.tasks.conftest import Clock
from tests.tasks.owed import Job, Owed, rows
from tests.tasks.test_tickets import Recorder, driver

__all__ = ["driver"]

DEADLINE_SECONDS = 20.0


def orders(count: int) -> list[Order]:
    return [(number, f"s-{number}", f"c-{number}") for number in range(1, count + 1)]


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The jobs that went back to the backlog."""
    found: list[int] = []
    monkeypatch.setattr(crews, "hand_back", lambda left: found.extend(order[0] for order in left))
    return found


# a crew


def test_all_acts_are_under_way_at_once() -> None:
    crew, gate = Crew(4), threading.Barrier(4)
    assert crew.claim(4) == 4
    ended = [each for got in crew.carry_out(lambda: [lambda: gate.wait(DEADLINE_SECONDS)] * 4) for each in got]
    assert sorted(ended) == [0, 1, 2, 3]


def test_what_ends_at_once_is_done_by_one_thread_and_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "ALONE_SECONDS", DEADLINE_SECONDS)
    crew = Crew(8)
    assert crew.claim(8) == 8
    (told,) = crew.carry_out(lambda: [threading.get_ident] * 8)
    assert len(told) == 8
    assert len(set(told)) == 1


def test_one_message_alone_is_worked_through_at_a_time_and_others_wait_for_it_only_shortly() -> None:
    crew, let_go = Crew(4), threading.Event()
    assert crew.claim(4) == 4
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(lambda: list(crew.carry_out(lambda: [lambda: let_go.wait(DEADLINE_SECONDS)])))
        try:
            eventually(crew.alone.locked)
            quick = [each for told in crew.carry_out(lambda: [lambda: "quick"] * 3) for each in told]
            assert quick == ["quick"] * 3
        finally:
            let_go.set()
        assert slow.result(DEADLINE_SECONDS) == [[True]]


def test_what_has_ended_is_told_while_another_goes_on() -> None:
    crew, let_go = Crew(3), threading.Event()
    crew.claim(3)
    told = crew.carry_out(lambda: [lambda: "quick", lambda: "quick", lambda: let_go.wait(DEADLINE_SECONDS) and "slow"])
    quick: list[object] = []
    while len(quick) < 2:
        quick += next(told)
    assert quick == ["quick", "quick"]
    let_go.set()
    assert list(told) == [["slow"]]


def test_a_failure_is_raised_after_all_have_ended_and_every_place_is_free_again() -> None:
    def fail() -> str:
        raise RuntimeError("no")

    crew = Crew(2)
    for _ in range(3):
        assert crew.claim(2, patience=DEADLINE_SECONDS) == 2
        told = itertools.chain.from_iterable(crew.carry_out(lambda: [fail, lambda: "good"]))
        assert next(told) == "good"
        with pytest.raises(RuntimeError):
            next(told)


def test_a_claim_gets_what_becomes_free_in_time_and_no_more() -> None:
    crew = Crew(3)
    assert crew.claim(2) == 2
    assert crew.claim(3, patience=0.01) == 1
    assert crew.claim(1, patience=0.01) == 0


def test_a_claim_of_more_than_there_ever_are_waits_for_none_of_them() -> None:
    began = clock.monotonic()
    assert Crew(3).claim(4, patience=DEADLINE_SECONDS) == 3
    assert clock.monotonic() - began < DEADLINE_SECONDS / 2


# a message


def test_what_finds_no_place_soon_goes_back_before_the_others_begin(returned: list[int]) -> None:
    def carry_out(some: Sequence[Order], crew: Crew) -> Iterable[str]:
        assert returned == [3, 4, 5]
        return ["completed" for _ in some]

    assert side_by_side(orders(5), Crew(2), carry_out) == "completed 2, handed back 3"


@pytest.mark.usefixtures("valkey")
def test_what_goes_back_is_as_ready_as_if_it_had_never_been_sent(owed: Owed) -> None:
    jobs = [owed() for _ in range(3)]
    Dispatcher().refill("io")
    taken = jobs[0].take()
    crews.hand_back([(job.id, job.ticket_id, None) for job in jobs])
    left = rows("SELECT dispatched_at, fence FROM jobs ORDER BY id")
    assert [row["dispatched_at"] is None for row in left] == [False, True, True]
    assert [row["fence"] for row in left] == [taken.fence, None, None]


@pytest.mark.usefixtures("valkey")
def test_what_cannot_be_handed_back_keeps_no_places(owed: Owed, away: threading.Event) -> None:
    away.set()
    crew = Crew(1)
    for _ in range(3):
        said = side_by_side(
            orders(2), crew, lambda some, of: itertools.chain(*of.carry_out(lambda: [lambda: "completed"]))
        )
        assert said == "completed 1, handed back 1"


@pytest.mark.usefixtures("valkey")
def test_a_message_of_a_fast_queue_names_several_jobs(owed: Owed, time: Clock) -> None:
    made = [owed() for _ in range(7)]
    dispatcher = Dispatcher()
    dispatcher.tempos["io"].note(1000)
    time.now += 1
    dispatcher.refill("io")
    assert publisher.count_messages("io") == 1
    assert len(rows("SELECT FROM jobs WHERE dispatched_at IS NOT NULL")) == len(made)


# tickets


def execute(jobs: Sequence[Job]) -> str:
    first, *others = [(job.id, job.ticket_id, f"c-{job.id}") for job in jobs]
    return str(tasks.execute(first[0], first[1], others))


def test_the_tickets_of_a_message_are_taken_and_settled_together(
    driver: Recorder,
    owed: Owed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Barrier(5)
    driver.act = lambda: gate.wait(DEADLINE_SECONDS)
    taken: list[int] = []
    take = together.take
    monkeypatch.setattr(together, "take", lambda ids: taken.append(len(ids)) or take(ids))
    jobs = [owed(target=f"r-{number}") for number in range(5)]
    assert execute(jobs) == "completed 5"
    assert taken == [5]
    assert [job.ticket["state"] for job in jobs] == ["completed"] * 5
    assert [job.topics().count("execution_completed") for job in jobs] == [1] * 5
    assert rows("SELECT FROM jobs") == []


def test_the_tickets_of_a_message_are_looked_at_together_after_they_were_taken(
    driver: Recorder, owed: Owed, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = counted(monkeypatch)
    jobs = [owed(target=f"r-{number}") for number in range(5)]
    assert execute(jobs) == "completed 5"
    assert looks == [5]


def test_who_comes_to_its_robot_late_looks_again(
    driver: Recorder, owed: Owed, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crews, "ALONE_SECONDS", DEADLINE_SECONDS)  # one after the other
    looks = counted(monkeypatch)
    jobs = [owed(target=f"r-{number}") for number in range(3)]

    def act() -> None:
        time.advance(2 * tasks.SEEN_SECONDS)
        if len(driver.commands) == 1:
            owed.cancel(jobs[1].ticket_id)

    driver.act = act
    assert execute(jobs) == "completed 2, lease lost 1"
    assert looks == [3, 1, 1]
    assert [command.ticket_id for command in driver.commands] == [jobs[0].ticket_id, jobs[2].ticket_id]


def test_a_look_that_fails_for_all_is_followed_by_one_for_each(
    driver: Recorder, owed: Owed, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = together.look

    def away(attempts: Sequence[together.Attempt]) -> object:
        monkeypatch.setattr(together, "look", look)
        raise Unavailable("away", code="database_unavailable")

    monkeypatch.setattr(together, "look", away)
    assert execute([owed(target=f"r-{number}") for number in range(3)]) == "completed 3"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many attempts each look is about."""
    looks: list[int] = []
    look = together.look

    def counting(attempts: Sequence[together.Attempt]) -> list[together.Sight]:
        looks.append(len(attempts))
        return look(attempts)

    monkeypatch.setattr(together, "look", counting)
    monkeypatch.setattr(together.LOOKS, "together", counting)
    return looks


def test_one_whose_driver_fails_does_not_touch_the_others(driver: Recorder, owed: Owed) -> None:
    gate = threading.Barrier(2)

    def act() -> None:
        if gate.wait(DEADLINE_SECONDS) == 0:
            raise RuntimeError("no")

    driver.act = act
    jobs = [owed(target="a"), owed(target="b")]
    assert sorted(execute(jobs).split(", ")) == ["completed 1", "failed 1"]
    assert sorted(str(job.ticket["error_code"]) for job in jobs) == ["None", "outcome_unknown"]


def test_two_of_one_lane_in_a_message_are_carried_out_one_after_the_other(driver: Recorder, owed: Owed) -> None:
    first, second = owed("drive", target="r"), owed("drive", target="r")
    said = execute([first, second])
    assert first.ticket["state"] == "completed"
    assert said in {"completed 1, not taken 1", "not taken 1, completed 1", "completed 2"}


@pytest.mark.parametrize(
    "error", [Unavailable("away", code="database_unavailable"), Conflict("held", code="locked"), TypeError("no JSON")]
)
def test_a_statement_that_fails_for_all_is_followed_by_one_for_each(
    driver: Recorder,
    owed: Owed,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    settle = together.settle

    def spoilt(ends: Sequence[together.End]) -> object:
        monkeypatch.setattr(together, "settle", settle)
        raise error

    monkeypatch.setattr(together, "settle", spoilt)
    jobs = [owed(target=f"r-{number}") for number in range(3)]
    assert execute(jobs) == "completed 3"
    assert [job.topics().count("execution_completed") for job in jobs] == [1] * 3


def test_an_outcome_that_cannot_be_recorded_keeps_none_of_its_companions_from_it(
    driver: Recorder, owed: Owed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, *good = [owed(target=f"r-{number}") for number in range(4)]
    settle = together.settle

    def refusing(ends: Sequence[together.End]) -> object:
        if any(attempt.ticket_id == bad.ticket_id for attempt, _ in ends):
            raise TypeError("no JSON")
        return settle(ends)

    monkeypatch.setattr(together, "settle", refusing)
    monkeypatch.setattr(together.SETTLES, "together", refusing)
    assert sorted(execute([bad, *good]).split(", ")) == ["completed 3", "not recorded 1"]
    assert [job.ticket["state"] for job in good] == ["completed"] * 3


def test_an_outcome_that_came_too_late_is_evidence_and_the_others_count(driver: Recorder, owed: Owed) -> None:
    lost, kept = owed(target="lost"), owed(target="kept")
    gate = threading.Barrier(2)

    def act() -> None:
        if gate.wait(DEADLINE_SECONDS) == 0:
            owed.cancel(lost.ticket_id)

    driver.act = act
    said = execute([lost, kept])
    assert said in {"lease lost 1, completed 1", "completed 1, lease lost 1"}
    assert (lost.ticket["state"], kept.ticket["state"]) == ("cancelled", "completed")


def test_a_job_that_two_messages_name_is_carried_out_once(owed: Owed) -> None:
    job = owed()
    assert [attempt is not None for attempt in together.take([job.id, job.id])] == [True, False]


def test_threads_that_take_at_the_same_moment_share_statements_and_no_job(owed: Owed) -> None:
    jobs = [owed(target=f"robot-{number}") for number in range(20)]
    gate = threading.Barrier(40)

    def take(job_id: int) -> object:
        gate.wait(DEADLINE_SECONDS)
        return together.TAKES.go(job_id)

    with ThreadPoolExecutor(40) as pool:
        taken = list(pool.map(take, [job.id for job in jobs] * 2))
    assert sum(attempt is not None for attempt in taken) == 20
