"""Several jobs of one message, carried out side by side as far as there are places."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from orchestrator_tasks import publisher
from orchestrator_tasks.dispatcher import Dispatcher
from orchestrator_tasks.kernel import crew as crews
from orchestrator_tasks.kernel.crew import Crew, carry_out_all
from orchestrator_tasks.tickets import tasks
from tests.tasks.conftest import Clock
from tests.tasks.owed import Owed, rows

DEADLINE_SECONDS = 20.0
Order = tuple[int, str, str | None]


def orders(count: int) -> list[Order]:
    return [(number, f"s-{number}", f"c-{number}") for number in range(1, count + 1)]


class Work:
    """Carries orders out; those that are held wait until they are let go."""

    def __init__(self) -> None:
        self.done: list[Order] = []
        self.threads: set[str] = set()
        self.together = threading.Barrier(1)

    def __call__(self, job_id: int, subject_id: str, correlation_id: str | None) -> str:
        self.together.wait(DEADLINE_SECONDS)
        self.threads.add(threading.current_thread().name)
        self.done.append((job_id, subject_id, correlation_id))
        return "completed" if job_id % 2 else "failed"


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The jobs that went back to the backlog."""
    found: list[int] = []
    monkeypatch.setattr(crews, "hand_back", lambda left: found.extend(order[0] for order in left))
    return found


def test_one_job_is_carried_out_by_the_thread_that_has_its_message(work: Work) -> None:
    assert carry_out_all(work, orders(1), Crew(4)) == "completed"
    assert work.threads == {threading.current_thread().name}


def test_all_of_a_message_are_under_way_at_once(work: Work) -> None:
    work.together = threading.Barrier(4)
    assert carry_out_all(work, orders(4), Crew(3)) == "completed 2, failed 2"
    assert sorted(work.done) == orders(4)


def test_what_finds_no_place_follows_in_the_same_thread(work: Work, returned: list[int]) -> None:
    assert carry_out_all(work, orders(5), Crew(1)) == "completed 3, failed 2"
    assert (len(work.done), returned) == (5, [])


def test_without_a_crew_all_go_one_after_the_other_in_order(work: Work) -> None:
    carry_out_all(work, orders(3))
    assert work.done == orders(3)
    assert len(work.threads) == 1


def test_what_could_not_begin_soon_goes_back(work: Work, returned: list[int], time: Clock) -> None:
    def slowly(*order: int | str | None) -> str:
        time.now += 1
        return "completed"

    assert carry_out_all(slowly, orders(4)) == "completed 1, handed back 3"
    assert returned == [2, 3, 4]


def test_a_place_is_free_again_after_its_job_even_if_that_failed() -> None:
    def failing(job_id: int, *_: str | None) -> str:
        if job_id == 2:
            raise RuntimeError("no")
        return "completed"

    crew = Crew(1)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            carry_out_all(failing, orders(2), crew)


def test_a_failure_in_this_thread_waits_for_the_others(work: Work) -> None:
    work.together = threading.Barrier(3)

    def failing(job_id: int, subject_id: str, correlation_id: str | None) -> str:
        said = work(job_id, subject_id, correlation_id)
        if job_id == 1:
            raise RuntimeError("no")
        return said

    with pytest.raises(RuntimeError):
        carry_out_all(failing, orders(3), Crew(2))
    assert len(work.done) == 3


@pytest.mark.usefixtures("valkey")
def test_what_goes_back_is_as_ready_as_if_it_had_never_been_sent(owed: Owed) -> None:
    jobs = [owed() for _ in range(3)]
    Dispatcher().refill("io")
    taken = jobs[0].take()
    crews.hand_back([(job.id, job.ticket_id, None) for job in jobs])
    left = rows("SELECT id, dispatched_at, dispatches, fence FROM jobs ORDER BY id")
    assert [row["dispatched_at"] is None for row in left] == [False, True, True]
    assert [row["fence"] for row in left] == [taken.fence, None, None]


def test_a_job_that_two_messages_name_is_carried_out_once(owed: Owed, valkey: redis.Redis) -> None:
    job = owed()
    taken = tasks.take_together([job.id, job.id])
    assert [attempt is not None for attempt in taken] == [True, False]


def test_a_message_of_a_fast_queue_names_several_jobs(owed: Owed, valkey: redis.Redis, time: Clock) -> None:
    made = [owed() for _ in range(7)]
    dispatcher = Dispatcher()
    dispatcher.tempos["io"].note(1000)
    time.now += 1
    dispatcher.refill("io")
    assert publisher.count_messages("io") == 1
    assert len(rows("SELECT FROM jobs WHERE dispatched_at IS NOT NULL")) == len(made)


def test_two_threads_that_take_at_the_same_moment_share_a_statement_and_no_job(owed: Owed) -> None:
    jobs = [owed(target=f"robot-{number}") for number in range(20)]
    ready = threading.Barrier(20)

    def take(job_id: int) -> object:
        ready.wait(DEADLINE_SECONDS)
        return tasks.TAKES.go(job_id)

    with ThreadPoolExecutor(40) as pool:
        twice = [*pool.map(take, [job.id for job in jobs]), *pool.map(take, [job.id for job in jobs])]
    assert sum(attempt is not None for attempt in twice) == 20
