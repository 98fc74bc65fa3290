"""Jobs in any order of acts on a real database beside the specification of what goes next.

The kernel's statements run under a clock that is moved by hand; Celery's queues are lists, whose messages are taken in
any order, lost and doubled. After each act every row is what `selection_rules` says, and what was picked is what it
picks, in the same order.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection

from models.kernel.backlog import AgedShare
from models.kernel.transition import LaneBusy
from tests.kernel.conftest import connection, road  # noqa: F401 - fixtures
from tests.simulation.selection_rules import NEVER, Backlog, Job, aged_share
from tests.simulation.simulated_kernel import KINDS, QUEUES, Kernel, facts_of

AGING = 20.0
PATIENCE = 5.0
WINDOW = 8
SOME = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)

queues = st.sampled_from([*QUEUES, QUEUES[0], QUEUES[0]])
anyone = st.integers(0, 9)
few = st.integers(1, 4)
returns = st.sampled_from([None, None, "hand_back", "put_off"])


def rarely(value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(*[st.none()] * 7, value)


wanted = st.tuples(st.integers(0, 3), st.sampled_from("st"), st.sampled_from([None, "v", "v", "w"]))


class Selection(RuleBasedStateMachine):
    """Two queues, two lanes, two tenants; workers that may be slow, dead, or dead without knowing it."""

    def __init__(self, kernel: Kernel, number: list[int]) -> None:
        super().__init__()
        number[0] += 1
        self.prefix = f"p{number[0]}"
        self.kernel = kernel
        self.backlog = Backlog()
        self.messages: dict[str, list[tuple[int, int]]] = {queue: [] for queue in QUEUES}  # urgencies and jobs' ids
        self.shares = {queue: AgedShare() for queue in QUEUES}
        self.offered: Counter[str] = Counter()
        self.refused: list[int] = []  # whose lane was busy, and whose worker has yet to say so
        self.attempts: list[Mapping[str, Any]] = []
        self.born = 0
        kernel.begin()

    # what comes in

    @initialize(batch=st.lists(wanted, min_size=4, max_size=20), keeps_turn=st.booleans())
    def begin_with(self, batch: list[Any], keeps_turn: bool) -> None:
        self.owe((QUEUES[0], keeps_turn, False), batch, None)

    @rule(
        kind=st.sampled_from(KINDS),
        batch=st.lists(wanted, min_size=1, max_size=8),
        expires_in=rarely(st.just(50.0)),
    )
    def owe(self, kind: tuple[str, bool, bool], batch: list[Any], expires_in: float | None) -> None:
        """Whoever owes them may send the messages as well, past the dispatcher."""
        queue, keeps_turn, sends = kind
        expires_at = NEVER if expires_in is None else self.backlog.now + expires_in
        born = []
        for priority, tenant, lane in batch:
            self.born += 1
            job = Job(0, f"{self.prefix}-{self.born:03}", queue, priority, tenant, lane, expires_at=expires_at)
            job.keeps_turn = keeps_turn and lane is not None
            born.append(job)
        messages = self.kernel.owe(kind, born)
        assert messages == [(job.id, job.priority) for job in self.backlog.owe(*born, sends=sends)]
        self.bring(queue, messages)

    def bring(self, queue: str, messages: list[tuple[int, int]]) -> None:
        """Into Celery's lists, one for each priority."""
        self.messages[queue] += [(urgency, job_id) for job_id, urgency in messages]
        self.messages[queue].sort(key=lambda message: message[0])

    # time

    @rule(seconds=st.sampled_from([0.5, 1, 2, 5, 6, 16, 21, 60]), sweeps=st.booleans(), cancels=rarely(anyone))
    def wait(self, seconds: float, sweeps: bool, cancels: int | None) -> None:
        """Time goes by, and perhaps somebody wants no more what may not even have begun."""
        self.move_clock(seconds)
        if sweeps:
            self.sweep()
        if cancels is not None and self.backlog.jobs:
            jobs = list(self.backlog.jobs.values())
            self.cancel(jobs[cancels % len(jobs)])

    def cancel(self, job: Job) -> None:
        assert self.kernel.cancel({"id": job.name})
        self.backlog.end(job)

    def move_clock(self, seconds: float) -> None:
        self.backlog.now += seconds
        self.kernel.set_clock(self.backlog.now)

    # the dispatcher

    @rule(
        queue=queues,
        slots=st.sampled_from([0, 1, 1, 2, 2, 3, 5, 8, 9, 17]),
        forgotten=st.booleans(),
        idle=few,
        then=returns,
    )
    def dispatch(self, queue: str, slots: int, forgotten: bool, idle: int, then: str | None) -> None:
        """Some workers are idle, and take at once what comes; the next of them may be unable to begin."""
        if forgotten:
            self.find_forgotten(queue)
            self.compare()
        self.count_sent(queue, WINDOW)
        self.pick(queue, slots)
        self.receive("take", 0, idle - 1)
        if then:
            self.receive(then, 0, 1)

    @rule(
        queue=queues,
        what=st.sampled_from(["rush", "calm_down", "forget", "forget"]),
        seconds=st.sampled_from([4.5, 5.5, 10.5, 21]),
    )
    def disturb(self, queue: str, what: str, seconds: float) -> None:
        getattr(self, what)(queue, seconds)

    def rush(self, queue: str, seconds: float) -> None:
        """Messages wait for some time; then something urgent comes and is at work before them."""
        self.pick(queue, 4)
        self.move_clock(seconds)
        self.owe((queue, False, False), [(0, "t", None)], None)
        before = list(self.messages[queue])
        self.pick(queue, 1)
        for message in [message for message in self.messages[queue] if message not in before]:
            self.messages[queue].remove(message)
            self.take(self.backlog.jobs[message[1]])
        self.find_forgotten(queue)

    def calm_down(self, queue: str, _seconds: float) -> None:
        """Nobody is left to be sent; then more comes at once than whoever owes it may send."""
        self.pick(queue, 99)
        for _ in range(3):
            self.owe((queue, False, True), [(2, "s", None)] * 4, None)
            self.compare()

    def forget(self, queue: str, seconds: float) -> None:
        """Redis forgets a whole queue; after some time the dispatcher notices."""
        self.messages[queue].clear()
        self.move_clock(seconds)
        self.find_forgotten(queue)
        self.pick(queue, 4)

    def pick(self, queue: str, slots: int) -> None:
        aged = self.shares[queue].take(slots)
        assert aged == aged_share(self.offered[queue], slots)
        self.offered[queue] += slots
        expected = self.backlog.pick(queue, slots, AGING, aged) if slots else []
        picked = self.kernel.pick(queue, slots, AGING, aged)
        assert picked == expected
        assert len(picked) == slots or not self.backlog.ready(queue), "a slot is free and somebody is ready"
        self.bring(queue, picked)

    def find_forgotten(self, queue: str) -> None:
        """As the dispatcher does it: what is silent while its queue is empty, else what is passed over."""
        if self.messages[queue]:
            found = self.backlog.passed_over(queue, AGING)
            sent = self.kernel.send_passed_over(queue, WINDOW, AGING)
            self.adopt_oldest(found, sent, 1)
        else:
            found = self.backlog.silent(queue, PATIENCE)
            sent = self.kernel.send_again(queue, WINDOW, PATIENCE)
            self.adopt_oldest(found, sent, WINDOW)

    def adopt_oldest(self, found: list[Job], sent: int, most: int) -> None:
        """Those that were sent first are ready again; of several sent at one moment, the kernel may choose."""
        assert sent == min(most, len(found))
        rows = self.kernel.rows()
        chosen = [job for job in found if rows[job.id]["dispatched_at"] is None]
        assert len(chosen) == sent
        assert sorted(job.sent_at or 0 for job in chosen) == sorted(job.sent_at or 0 for job in found)[:sent]
        for job in chosen:
            job.sent_at = None

    def count_sent(self, queue: str, most: int) -> None:
        late = self.backlog.now - 10
        on_the_way = [job for job in self.backlog.jobs.values() if job.queue == queue and job.fence is None]
        sent = [job for job in on_the_way if job.sent_at is not None and job.sent_at > late]
        assert self.kernel.count_sent(queue, 10, most) == min(most, len(sent))

    def sweep(self) -> None:
        """Sleeping lanes are woken, what is late expires, and whose lease has run out is tried again."""
        assert self.kernel.wake_lanes() == self.backlog.wake_lanes()
        self.compare()
        late, expired = self.kernel.expired(), self.backlog.expired()
        assert [held.id for held in late] == [job.id for job in expired]
        assert self.kernel.expire(late) == len(late)
        self.backlog.end(*expired)
        self.compare()
        silent, lost = self.kernel.lost(), self.backlog.lost()
        assert [(held.id, held.fence) for held in silent] == [(job.id, job.fence) for job in lost]
        assert self.kernel.lose(silent) == len(silent)
        self.backlog.stumble(*lost)

    # the messages, and the workers who receive them

    def waiting(self) -> list[tuple[str, int]]:
        return [(queue, place) for queue in QUEUES for place in range(len(self.messages[queue]))]

    @precondition(waiting)
    @rule(
        what=st.sampled_from([*["take"] * 4, "hand_back", "hand_back", "put_off", "lose", "double"]),
        which=anyone,
        several=few,
    )
    def receive(self, what: str, which: int, several: int) -> None:
        for _ in range(several):
            if not (waiting := self.waiting()):
                break
            queue, place = waiting[which % len(waiting)]
            job = self.backlog.jobs.get(self.messages[queue].pop(place)[1])
            if job is not None:
                getattr(self, what)(job)
                self.compare()

    def take(self, job: Job) -> None:
        may, busy = self.backlog.may_take(job), self.backlog.is_lane_busy(job)
        try:
            taken = self.kernel.take(job.id)
        except LaneBusy:
            assert may
            assert busy
            self.refused.append(job.id)
            return
        assert (taken is not None) == may
        if taken is not None:
            assert not busy
            self.begin(job, taken)

    def begin(self, job: Job, taken: Mapping[str, Any]) -> None:
        before = [each for each in self.backlog.lane(job) if each.id < job.id and each.priority <= job.priority]
        assert not any(each.keeps_turn for each in before), "one that keeps its turn was overtaken"
        assert all(taken["fence"] > attempt["fence"] for attempt in self.attempts)
        self.attempts.append(taken)
        self.backlog.take(job, taken["fence"])

    @precondition(lambda self: self.refused)
    @rule(which=anyone)
    def park(self, which: int) -> None:
        """Some time after the lane was found busy."""
        job_id = self.refused.pop(which % len(self.refused))
        self.kernel.park(job_id)
        if job_id in self.backlog.jobs:
            self.backlog.park(self.backlog.jobs[job_id])

    def hand_back(self, job: Job) -> None:
        self.kernel.hand_back([job.id])
        self.backlog.hand_back(job)

    def put_off(self, job: Job) -> None:
        self.kernel.put_off(job.id)
        self.backlog.put_off(job)

    def lose(self, job: Job) -> None:
        """The message is gone, and nobody knows."""

    def double(self, job: Job) -> None:
        self.messages[job.queue] += [(job.priority, job.id)] * 2

    # attempts, by whoever holds the lease or by a ghost

    def job_of(self, taken: Mapping[str, Any]) -> Job | None:
        """The job of an attempt, if the attempt is the live one."""
        job = self.backlog.jobs.get(taken["job_id"])
        return job if job is not None and job.fence == taken["fence"] else None

    def live(self) -> list[Mapping[str, Any]]:
        return [taken for taken in self.attempts if self.job_of(taken)]

    @precondition(lambda self: self.attempts)
    @rule(how=st.sampled_from(["deliver", "deliver", "release", "stumble", "stumble", "renew"]), which=anyone)
    def end(self, how: str, which: int) -> None:
        """Mostly by one who holds a lease, else by a ghost whose job is tried again."""
        ghosts = [taken for taken in self.attempts if taken["job_id"] in self.backlog.jobs and not self.job_of(taken)]
        among = (self.live() if which < 6 else ghosts) or self.attempts
        self.end_one(how, among[which % len(among)])

    def end_one(self, how: str, taken: Mapping[str, Any]) -> None:
        job = self.job_of(taken)
        assert getattr(self.kernel, how)(taken) == (job is not None)
        if job is not None:
            self.ends[how](job)

    @property
    def ends(self) -> dict[str, Callable[[Job], None]]:
        backlog = self.backlog
        return {
            **{"deliver": backlog.end, "release": backlog.give_back},
            **{"stumble": backlog.stumble, "renew": backlog.renew},
        }

    # what is promised

    @invariant()
    def compare(self) -> None:
        rows = self.kernel.rows()
        assert rows == {job.id: facts_of(job) for job in self.backlog.jobs.values()}
        for members in self.backlog.lanes().values():
            assert sum(rows[job.id]["fence"] is not None for job in members) <= 1

    def teardown(self) -> None:
        """Once workers do their work, everything that is owed ends, a round for each at most."""
        if sys.exc_info()[0] is not None:
            return  # a rule was found broken: that is what to tell
        for _ in range(len(self.backlog.jobs) + 2):
            if not self.backlog.jobs:
                break
            self.move_clock(100.0)
            self.sweep()
            for queue in QUEUES:
                self.work_off(queue)
        assert self.backlog.jobs == {}
        self.compare()

    def work_off(self, queue: str) -> None:
        self.receive("take", 0, len(self.waiting()))
        self.find_forgotten(queue)
        self.pick(queue, 99)
        self.receive("take", 0, len(self.waiting()))
        while self.refused:
            self.park(0)
        for taken in self.live():
            self.end_one("deliver", taken)
        self.compare()


def test_any_order_of_acts_picks_what_the_rules_pick(connection: Connection) -> None:  # noqa: F811
    run_state_machine_as_test(functools.partial(Selection, Kernel(connection), [0]), settings=SOME)
