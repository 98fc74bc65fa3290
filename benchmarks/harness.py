"""What a measure is, and how measures are carried out: in rounds, baselines alternating, one failing by itself."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = Mapping[str, float]


class MeasureFailed(Exception):
    """A system did not do what it was asked: the measure has no figure, and says why."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a value, to be compared with a baseline's of the same round, and how far it must reach.

    `of` and `against` name values of the measure; without `against` the value itself is held against the reach.
    `peers` are values whose ratio is shown beside it, for scale.
    """

    text: str
    of: str
    unit: str
    against: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measure:
    """`run` measures one round and answers named values; `rounds` caps how many are made."""

    name: str
    rows: tuple[Row, ...]
    run: Callable[[Any, int], Values]
    rounds: int | None = None


@dataclass
class Found:
    """What the rounds of one measure gave."""

    measure: Measure
    values: dict[str, list[float]] = field(default_factory=dict)
    failed: str | None = None
    seconds: float = 0.0
    judged: bool = True

    def add(self, values: Values) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def ratios(self, of: str, against: str | None) -> list[float]:
        """The value of each round, as a ratio to the baseline's of the same round if there is one."""
        if against is None:
            return self.values.get(of, [])
        pairs = zip(self.values.get(of, []), self.values.get(against, []), strict=False)
        return [mine / theirs if theirs else float("inf") for mine, theirs in pairs]

    def verdict(self, row: Row) -> str:
        """met, missed, failed, or nothing where nothing was asked for or the figures say nothing."""
        if self.failed or not self.ratios(row.of, row.against):
            return "failed"
        if not self.judged:
            return ""
        ratio = statistics.median(self.ratios(row.of, row.against))
        if row.at_least is not None:
            return "met" if ratio >= row.at_least else "missed"
        if row.at_most is not None:
            return "met" if ratio <= row.at_most else "missed"
        return ""


def alternate(number: int, acts: Sequence[Callable[[], Values]]) -> dict[str, float]:
    """Do each act once; every round begins with another, so that none always has the fresher machine."""
    turn = number % len(acts)
    found: dict[str, float] = {}
    for act in [*acts[turn:], *acts[:turn]]:
        found.update(act())
    return found


def carry_out(
    measures: Sequence[Measure], bench: Any, rounds: int, say: Callable[[str], None], *, judged: bool = True
) -> list[Found]:
    """All rounds of all measures: round by round, so that a busy minute of the machine hits each measure once."""
    found = [Found(measure, judged=judged) for measure in measures]
    try:
        all_rounds(found, bench, rounds, say)
    except KeyboardInterrupt:
        say("  interrupted: what was found until now follows")
        for each in found:
            each.failed = each.failed or (None if each.values else "the run was interrupted")
    return found


def all_rounds(found: Sequence[Found], bench: Any, rounds: int, say: Callable[[str], None]) -> None:
    for number in range(rounds):
        for each in found:
            if each.failed or number >= (each.measure.rounds or rounds):
                continue
            began = time.monotonic()
            one_round(each, bench, number)
            each.seconds += time.monotonic() - began
            how = each.failed or f"{time.monotonic() - began:.1f} s"
            say(f"  round {number + 1} of {each.measure.rounds or rounds}: {each.measure.name}: {how}")


def one_round(found: Found, bench: Any, number: int) -> None:
    try:
        found.add(found.measure.run(bench, number))
    except MeasureFailed as error:
        found.failed = str(error)
    except Exception as error:
        traceback.print_exc()
        found.failed = f"{type(error).__name__}: {error}"


def quantile(values: Sequence[float], share: float) -> float:
    """Of nothing there is none: NaN."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")
