"""What the rules of selection promise, shown of the rules alone: thousands of arrivals and picks, no database.

`test_selection.py` shows that the kernel follows `selection_rules`; here is shown what follows from them, whatever else
comes: nobody starves, tenants share, a lane is carried out in its order, and all that is owed ends.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.simulation.selection_rules import AGING_SHARE, Backlog, Job, aged_share

QUEUE = "vans"
AGING = 20.0
MANY = settings(max_examples=400, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

anyone = st.integers(0, 30)
wanted = st.tuples(
    st.integers(0, 3),
    st.sampled_from(["large", "large", "large", "small", "tiny"]),
    st.sampled_from([None, None, "v", "w"]),
    st.booleans(),
)


@dataclass
class Patience:
    """Of one that has waited too long: how many slots were given to others, and how many may be."""

    allowed: int
    given: int = 0


class Arrivals(RuleBasedStateMachine):
    """One queue, three tenants, two lanes, and a clock."""

    Kind: type[Backlog] = Backlog

    def __init__(self) -> None:
        super().__init__()
        self.backlog = self.Kind()
        self.born = self.offered = 0
        self.fences = 0
        self.ended: list[int] = []
        self.patience: dict[int, Patience] = {}

    # what comes

    @initialize(batch=st.lists(wanted, min_size=5, max_size=20))
    def begin_with(self, batch: list[Any]) -> None:
        self.owe(batch)

    @rule(batch=st.lists(wanted, min_size=1, max_size=6), sends=st.booleans())
    def owe(self, batch: list[Any], sends: bool = False) -> None:
        ready = self.backlog.ready(QUEUE)
        born = []
        for priority, tenant, lane, keeps in batch:
            self.born += 1
            keeps_turn = keeps and lane is not None
            born.append(Job(self.born, f"p{self.born}", QUEUE, priority, tenant, lane, keeps_turn, max_attempts=99))
        sent = self.backlog.owe(*born, sends=sends)
        assert not (sent and ready), "somebody who is ready was passed over by whoever sent it"

    @rule(count=st.integers(8, 12))
    def flood(self, count: int) -> None:
        """Urgent work of one tenant, more than there are slots."""
        self.owe([(0, "large", None, False)] * count)

    @rule(seconds=st.sampled_from([1.0, 5.0, 21.0]), sweeps=st.booleans())
    def wait(self, seconds: float, sweeps: bool) -> None:
        self.backlog.now += seconds
        if sweeps:
            self.sweep()

    def sweep(self) -> None:
        self.backlog.wake_lanes()
        self.backlog.stumble(*self.backlog.lost())
        self.see_who_came_back()

    # who goes next

    @rule(slots=st.sampled_from([1, 1, 2, 3, 7, 8, 9, 15, 16, 24]))
    def pick(self, slots: int) -> None:
        ready = self.backlog.ready(QUEUE)
        share = aged_share(self.offered, slots)
        self.offered += slots
        aged = self.backlog.aged(ready, share, AGING)
        self.lose_patience(ready)
        places = Counter(job.tenant for job in [*self.sent(), *self.held()])
        chosen = [self.backlog.jobs[job_id] for job_id, _ in self.backlog.pick(QUEUE, slots, AGING, share)]
        left = [job for job in ready if job not in chosen]
        assert len(chosen) == min(slots, len(ready)), "nobody who is ready is left behind while a slot is free"
        self.check_starvation(chosen, left, slots)
        check_priority([job for job in chosen if job not in aged], left)
        check_fairness(places, chosen, [job for job in chosen if job not in aged], left)

    def lose_patience(self, ready: list[Job]) -> None:
        """Whoever waits too long from now on waits for those who are older, and for nobody else."""
        older = sorted(job.age for job in self.backlog.jobs.values())
        for job in ready:
            if job.run_at < self.backlog.now - AGING and job.id not in self.patience:
                self.patience[job.id] = Patience(AGING_SHARE * (older.index(job.age) + 1))

    def check_starvation(self, chosen: list[Job], left: list[Job], slots: int) -> None:
        for job in chosen:
            self.patience.pop(job.id, None)
        for job in left:
            if waiting := self.patience.get(job.id):
                waiting.given += slots
                assert waiting.given < waiting.allowed, "it starves"

    def see_who_came_back(self, *returned: Job) -> None:
        """One who is older and was picked already may go before it once more."""
        self.patience = {job_id: each for job_id, each in self.patience.items() if job_id in self.backlog.jobs}
        for job_id, each in self.patience.items():
            each.allowed += AGING_SHARE * sum(job.age < self.backlog.jobs[job_id].age for job in returned)

    # the workers

    def sent(self) -> list[Job]:
        return self.backlog.those(lambda job: job.sent_at is not None and job.fence is None)

    def held(self) -> list[Job]:
        return self.backlog.those(lambda job: job.fence is not None)

    @precondition(sent)
    @rule(which=anyone, several=st.integers(1, 6))
    def take(self, which: int, several: int) -> None:
        for _ in range(min(several, len(self.sent()))):
            self.take_one(self.sent()[which % len(self.sent())])

    def take_one(self, job: Job) -> None:
        if not self.backlog.may_take(job):
            return
        if self.backlog.is_lane_busy(job):
            self.backlog.park(job)
            return
        before = [each for each in self.backlog.lane(job) if each.id < job.id and each.priority <= job.priority]
        assert not any(each.keeps_turn for each in before), "one that keeps its turn was overtaken"
        self.fences += 1
        self.backlog.take(job, self.fences)

    @precondition(sent)
    @rule(which=anyone, how=st.sampled_from(["hand_back", "put_off", "unsend"]))
    def return_one(self, which: int, how: str) -> None:
        """Nobody could begin, its turn passes, or its message was lost: it is ready again, or will be."""
        job = self.sent()[which % len(self.sent())]
        {"hand_back": self.backlog.hand_back, "put_off": self.backlog.put_off, "unsend": Job.unsend}[how](job)
        assert job.sent_at is None or (how == "put_off" and job.lane is None)
        self.see_who_came_back(job)

    @precondition(held)
    @rule(which=anyone, how=st.sampled_from(["end", "end", "give_back", "retry"]))
    def finish(self, which: int, how: str) -> None:
        job = self.held()[which % len(self.held())]
        getattr(self.backlog, how)(job)
        self.ended += [job.id] if how == "end" else []
        self.see_who_came_back()

    def teardown(self) -> None:
        """Whatever happened, all that was owed ends, once; a flood of urgent work does not keep it from that."""
        mine = list(self.backlog.jobs)
        for _ in range(AGING_SHARE * (len(mine) + 1)):
            if not any(job_id in self.backlog.jobs for job_id in mine):
                break
            self.flood(8)
            self.wait(21.0, sweeps=True)
            self.pick(8)
            for job in self.sent():
                self.take_one(job)
            for job in self.held():
                self.backlog.end(job)
                self.ended.append(job.id)
            self.see_who_came_back()
        assert not any(job_id in self.backlog.jobs for job_id in mine)
        assert len(self.ended) == len(set(self.ended)) == self.born - len(self.backlog.jobs)


def check_priority(fair: list[Job], left: list[Job]) -> None:
    assert max((job.priority for job in fair), default=0) <= min((job.priority for job in left), default=9)


def check_fairness(places: Counter[str], chosen: list[Job], fair: list[Job], left: list[Job]) -> None:
    """Nobody gets another slot while a tenant of the same priority, who has fewer places, is left with a ready job."""
    slots = Counter((job.priority, job.tenant) for job in chosen)
    for priority, tenant in {(job.priority, job.tenant) for job in fair}:
        for other in {job.tenant for job in left if job.priority == priority} - {tenant}:
            mine = places[tenant] + slots[priority, tenant]
            assert mine <= places[other] + slots[priority, other] + 1, "a tenant had more than its share"


def test_whatever_comes_nobody_starves_tenants_share_and_lanes_keep_their_order() -> None:
    run_state_machine_as_test(Arrivals, settings=MANY)


class KnowsNoAge(Backlog):
    """Strict priority alone."""

    def aged(self, ready: Any, most: int, aging: float) -> list[Job]:
        return []


class AgesTheUrgent(Backlog):
    """Of those that waited too long, the most urgent instead of the oldest."""

    def aged(self, ready: Any, most: int, aging: float) -> list[Job]:
        old = [job for job in ready if job.run_at < self.now - aging]
        return sorted(old, key=lambda job: (job.priority, job.age))[:most]


class KnowsNoTenants(Backlog):
    """First come, first served."""

    def turns(self, ready: Any) -> dict[Job, int]:
        return dict.fromkeys(ready, 1)


class ForgetsWhoWasServed(Backlog):
    """Tenants share each pick, but not what the picks before gave away."""

    def places(self, queue: str, tenant: str) -> int:
        return 0


class IsAlwaysCalm(Backlog):
    """Whoever owes something sends it, though others are ready."""

    def is_calm(self, queue: str) -> bool:
        return True


class ForgetsWhatIsHandedBack(Backlog):
    """Nobody hears that a worker could not begin."""

    def hand_back(self, *handed: Job) -> None:
        return


class IsOvertaken(Backlog):
    """A lane wakes its next while one that keeps its turn rests."""

    def wake_next(self, gone: Any) -> None:
        left = {job.lane for job in gone}
        for lane, members in self.lanes().items():
            waiters = [job for job in members if lane in left and job.waits and job not in gone]
            for job in sorted(waiters, key=lambda job: job.turn)[:1]:
                job.waits = False


class SleepsOn(Backlog):
    """Lanes are woken neither by who leaves them nor by the sweep."""

    def wake_next(self, gone: Any) -> None:
        return

    def wake_lanes(self) -> int:
        return 0


class KeepsASlot(Backlog):
    """One slot of a pick is never used."""

    def pick(self, queue: str, slots: int, aging: float, aged_slots: int) -> list[tuple[int, int]]:
        return super().pick(queue, slots - 1, aging, aged_slots)


MUTANTS = [
    KnowsNoAge,
    AgesTheUrgent,
    KnowsNoTenants,
    ForgetsWhoWasServed,
    IsAlwaysCalm,
    ForgetsWhatIsHandedBack,
    IsOvertaken,
    SleepsOn,
    KeepsASlot,
]
FIRST_FOUND = settings(
    MANY, max_examples=3000, derandomize=True, print_blob=False, report_multiple_bugs=False, phases=[Phase.generate]
)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_rules_without_one_of_them_are_found_out(mutant: type[Backlog]) -> None:
    class Mutated(Arrivals):
        Kind = mutant

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Mutated, settings=FIRST_FOUND)
