"""Which job goes next, as a specification: the backlog in memory, with plain lists where the kernel has SQL.

Whoever wants to know what the kernel promises reads this instead of `models/kernel/backlog.py` and `job_parts.py`;
`test_selection.py` holds the two together. Times are seconds of a simulated clock. A job's id is its place among those
that came, and decides wherever two are equal otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

AGING_SHARE = 8
DOUBLINGS = 3
CALM_SECONDS, CALM_MESSAGES = 1.0, 8
LEASE_SECONDS = 15.0
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 10.0
NEVER = float("inf")


def aged_share(offered: int, slots: int) -> int:
    """Of the next `slots`, after so many were offered, those that go to what has aged: each eighth."""
    return sum((offered + n) % AGING_SHARE == 0 for n in range(1, slots + 1))


@dataclass(eq=False)
class Job:
    """One row. It is ready, on its way to a worker (`sent_at`), held by one (`fence`) or behind others (`waits`)."""

    id: int
    name: str
    queue: str = "vans"
    priority: int = 2
    tenant: str = "default"
    lane: str | None = None
    keeps_turn: bool = False
    max_attempts: int = 3
    expires_at: float = NEVER
    run_at: float = 0.0
    waits: bool = False
    attempt: int = 0
    sent_at: float | None = None
    sendings: int = 0
    fence: int | None = None
    lease_until: float | None = None

    @property
    def age(self) -> tuple[float, int]:
        return (self.run_at, self.id)

    @property
    def turn(self) -> tuple[int, int]:
        """Its place in its lane."""
        return (self.priority, self.id)

    def unsend(self) -> None:
        self.sent_at, self.sendings = None, 0


def share_lane(one: Job, other: Job) -> bool:
    return one is not other and one.lane is not None and one.lane == other.lane


class Backlog:
    """All jobs that are owed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.jobs: dict[int, Job] = {}

    def those(self, condition: Callable[[Job], bool]) -> list[Job]:
        return [job for job in self.jobs.values() if condition(job)]

    def lane(self, job: Job) -> list[Job]:
        """The others of its lane."""
        return self.those(lambda other: share_lane(other, job)) if job.lane else []

    def lanes(self) -> dict[str, list[Job]]:
        lanes: dict[str, list[Job]] = {}
        for job in self.jobs.values():
            if job.lane is not None:
                lanes.setdefault(job.lane, []).append(job)
        return lanes

    def is_due(self, job: Job) -> bool:
        return job.run_at <= self.now

    # what comes in

    def owe(self, *born: Job, sends: bool = False) -> list[Job]:
        """Jobs of one statement. One in a lane waits behind whoever is before it; what rests is before nobody.

        Whoever owes them `sends` the messages itself of those that need not wait, while their queue is calm.
        """
        calm = sends and all(self.is_calm(job.queue) for job in born)
        for job in born:
            before = [other for other in self.lane(job) if self.is_due(other) or other.keeps_turn]
            together = [other for other in born if share_lane(other, job) and other.turn < job.turn]
            job.waits = bool(together) or any(other.priority <= job.priority for other in before)
            job.run_at = self.now
        self.jobs.update({job.id: job for job in born})
        return self.send([job for job in born if calm and not job.waits])

    def is_calm(self, queue: str) -> bool:
        """Nobody is to be sent before, not even one that rests, and few were sent just now and are not taken yet."""
        mine = self.those(lambda job: job.queue == queue and job.fence is None and not job.waits)
        lately = [job for job in mine if job.sent_at is not None and job.sent_at > self.now - CALM_SECONDS]
        return all(job.sent_at is not None for job in mine) and len(lately) < CALM_MESSAGES

    def send(self, jobs: list[Job]) -> list[Job]:
        for job in jobs:
            job.sent_at, job.sendings = self.now, job.sendings + 1
        return jobs

    # the dispatcher

    def ready(self, queue: str) -> list[Job]:
        return self.those(
            lambda job: (
                job.queue == queue and job.fence is None and job.sent_at is None and not job.waits and self.is_due(job)
            )
        )

    def turns(self, ready: Iterable[Job]) -> dict[Job, int]:
        """Tenants of one priority take turns, who has least on its way first; of a tenant's the oldest comes first."""
        turns: dict[Job, int] = {}
        taken: dict[tuple[int, str], int] = {}
        for job in sorted(ready, key=lambda job: job.age):
            before = taken.get((job.priority, job.tenant)) or self.places(job.queue, job.tenant)
            turns[job] = taken[job.priority, job.tenant] = before + 1
        return turns

    def places(self, queue: str, tenant: str) -> int:
        """How many jobs of a tenant are on their way to workers, or with them."""
        return sum(
            job.queue == queue and job.tenant == tenant and (job.fence is not None or job.sent_at is not None)
            for job in self.jobs.values()
        )

    def aged(self, ready: Iterable[Job], most: int, aging: float) -> list[Job]:
        """The oldest of those that waited for longer than the aging bound, whatever their priority and tenant."""
        old = [job for job in ready if job.run_at < self.now - aging]
        return sorted(old, key=lambda job: job.age)[:most]

    def pick(self, queue: str, slots: int, aging: float, aged_slots: int) -> list[tuple[int, int]]:
        """Send up to `slots` jobs: ids and the priorities of their messages, in the order in which they are sent."""
        ready = self.ready(queue)
        turns, aged = self.turns(ready), self.aged(ready, aged_slots, aging)
        fair = sorted(ready, key=lambda job: (job.priority, turns[job], *job.age))
        chosen = [*aged, *(job for job in fair if job not in aged)][:slots]
        self.send(chosen)
        aged += [job for job in chosen if job.sendings > 1 and job.run_at < self.now - aging]  # passed over before
        urgency = {job: 0 if job in aged else job.priority for job in chosen}
        return [(job.id, urgency[job]) for job in sorted(chosen, key=lambda job: (urgency[job], turns[job], *job.age))]

    def silent(self, queue: str, patience: float) -> list[Job]:
        """Those to send again once their queue is empty: nobody took them for a time that doubles each time."""
        return self.those(
            lambda job: (
                job.queue == queue
                and job.fence is None
                and job.sent_at is not None
                and job.sent_at < self.now - patience * 2 ** min(job.sendings - 1, DOUBLINGS)
            )
        )

    def passed_over(self, queue: str, aging: float) -> list[Job]:
        """Those to send again before their time: somebody more urgent, who was sent later, is at work."""
        at_work = self.those(lambda job: job.queue == queue and job.fence is not None)
        return self.those(
            lambda job: (
                job.queue == queue
                and job.fence is None
                and job.sent_at is not None
                and job.sent_at < self.now - aging
                and job.sendings <= DOUBLINGS
                and any(other.priority < job.priority and (other.sent_at or 0) > job.sent_at for other in at_work)
            )
        )

    def wake_lanes(self) -> int:
        """The sweep, for lanes that a race left asleep: the first of each is woken, if nobody of it is at work."""
        woken = 0
        for members in self.lanes().values():
            heads = [job for job in members if job.waits or job.keeps_turn or self.is_due(job)]
            head = min(heads, key=lambda job: job.turn, default=None)
            if head and head.waits and all(job.fence is None for job in members):
                head.waits, head.sent_at = False, None
                woken += 1
        return woken

    # the workers

    def may_take(self, job: Job) -> bool:
        return job.fence is None and job.attempt < job.max_attempts and self.is_due(job) and job.expires_at > self.now

    def is_lane_busy(self, job: Job) -> bool:
        return any(other.fence is not None for other in self.lane(job))

    def take(self, job: Job, fence: int) -> None:
        job.fence, job.lease_until = fence, self.now + LEASE_SECONDS
        job.attempt, job.waits = job.attempt + 1, False

    def renew(self, job: Job) -> None:
        job.lease_until = self.now + LEASE_SECONDS

    def end(self, *ended: Job) -> None:
        for job in ended:
            del self.jobs[job.id]
        self.wake_next(ended)

    def give_back(self, *given: Job) -> None:
        """Ready again at once, the attempt not counted."""
        for job in given:
            self.let_go(job, 0.0)
            job.attempt -= 1
        self.wake_next(given)

    def retry(self, *tried: Job) -> None:
        """It rests for longer each time; its lane does not, unless it keeps its turn."""
        for job in tried:
            self.let_go(job, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (job.attempt - 1)))
        self.wake_next(tried)

    def let_go(self, job: Job, delay: float) -> None:
        job.fence, job.lease_until, job.run_at = None, None, self.now + delay
        job.unsend()

    def wake_next(self, gone: Sequence[Job]) -> None:
        """The first waiter of each lane that is left free, unless one that keeps its turn is before it."""
        left = {job.lane for job in gone}
        for lane, members in self.lanes().items():
            waiters = [job for job in members if lane in left and job.waits and job not in gone]
            head = min(waiters, key=lambda job: job.turn, default=None)
            if head and not any(job.keeps_turn and job.turn < head.turn for job in members):
                head.waits, head.sent_at = False, None

    def park(self, job: Job) -> None:
        """Its lane is busy."""
        if job.fence is None and job.lane is not None:
            job.waits = True
            job.unsend()

    def hand_back(self, *handed: Job) -> None:
        """Nobody could begin: as ready as if it had never been sent."""
        for job in handed:
            if job.fence is None:
                job.unsend()

    def put_off(self, job: Job) -> None:
        """Still the first of its lane, but the youngest of those that are ready."""
        if job.fence is None and job.lane is not None and self.is_due(job):
            job.waits, job.run_at = True, self.now
            job.unsend()

    # the reaper

    def lost(self) -> list[Job]:
        return self.those(lambda job: job.lease_until is not None and job.lease_until < self.now)

    def expired(self) -> list[Job]:
        return self.those(lambda job: job.fence is None and job.expires_at < self.now)

    def stumble(self, *stumbled: Job) -> None:
        """What becomes of attempts that failed or fell silent: tried again while there are attempts left."""
        self.retry(*(again := [job for job in stumbled if job.attempt < job.max_attempts]))
        self.end(*(job for job in stumbled if job not in again))
