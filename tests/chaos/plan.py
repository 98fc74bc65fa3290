"""What the nemesis does and when: a function of the seed and the length of the run alone.

A plan is a list of strokes in the order of their time. A fault is one stroke, or two: its beginning and its end.
Every fault comes once before any comes again, so that a run of three minutes meets each.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LEASE_SECONDS = 3.0
SHORTEST_GAP, LONGEST_GAP = 3.0, 6.0
LAST_BEGIN_BEFORE_END = 3.0


@dataclass(frozen=True)
class Stroke:
    """One act of the nemesis, so many seconds after the run began."""

    at: float
    act: str
    victim: str = ""
    amount: float = 0.0


@dataclass(frozen=True)
class Fault:
    """A kind of harm: the stroke that begins it, the one that ends it, and how long it may last (seconds)."""

    begin: str
    victim: str = ""
    end: str = ""
    lasts: tuple[float, float] = (0.0, 0.0)
    amount: tuple[float, float] = (0.0, 0.0)

    @property
    def name(self) -> str:
        return f"{self.begin} {self.victim}".strip()


OUTLIVES_A_LEASE = (LEASE_SECONDS + 0.5, LEASE_SECONDS + 4)

FAULTS = (
    *(Fault("kill", name) for name in ("web", "dispatcher", "guardian", "relay", "beat", "io", "system", "cpu")),
    Fault("kill_child", "cpu"),
    Fault("kill_host", "cpu"),
    Fault("kill_child", "web"),
    *(
        Fault("freeze", name, "thaw", OUTLIVES_A_LEASE)
        for name in ("io", "cpu", "dispatcher", "guardian", "relay", "web", "system", "beat")
    ),
    Fault("flush", "valkey"),
    Fault("hold", "io", "flush_and_let_go", (1.5, 2.5)),  # messages wait, and are lost
    Fault("kill_and_empty", "valkey", "start", (0.2, 4.0)),
    Fault("kill", "postgres", "start", (0.0, 2.0)),
    Fault("stop_at_once", "postgres", "start", (0.0, 5.0)),
    *(Fault("cut", name) for name in ("postgres", "valkey")),
    *(Fault("delay", name, "clear", (3.0, 6.0), (0.02, 0.2)) for name in ("postgres", "valkey")),
    *(Fault("half_open", name, "clear", (4.0, 8.0)) for name in ("postgres", "valkey")),
    Fault("clog", "outputs", "unclog", (3.0, 6.0)),
    Fault("deploy"),
    Fault("double", "all", "single", (6.0, 12.0)),
)


def make_plan(seed: int, seconds: float, faults: tuple[Fault, ...] = FAULTS) -> list[Stroke]:
    """The strokes of a run of so many seconds, each fault over before its end."""
    chance = random.Random(f"plan:{seed}")
    strokes: list[Stroke] = []
    order = rounds(chance, faults)
    at = chance.uniform(1.0, SHORTEST_GAP)
    while at < seconds - LAST_BEGIN_BEFORE_END:
        fault = next(order)
        strokes += strokes_of(fault, at, seconds, chance.uniform)
        at += chance.uniform(SHORTEST_GAP, LONGEST_GAP)
    return sorted(strokes, key=lambda stroke: stroke.at)


def rounds(chance: random.Random, faults: tuple[Fault, ...]) -> Iterator[Fault]:
    while True:
        yield from chance.sample(faults, len(faults))


def strokes_of(fault: Fault, at: float, seconds: float, draw: Callable[[float, float], float]) -> list[Stroke]:
    amount, lasts = draw(*fault.amount), draw(*fault.lasts)
    begin = Stroke(round(at, 2), fault.begin, fault.victim, round(amount, 3))
    if not fault.end:
        return [begin]
    return [begin, Stroke(round(min(at + lasts, seconds), 2), fault.end, fault.victim)]
