"""Plans of faults: repeatable, complete, and over in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.cluster import Cluster
from tests.chaos.nemesis import acts_of
from tests.chaos.plan import FAULTS, LONGEST_GAP, Stroke, make_plan

SECONDS = 180.0


def begun(plan: list[Stroke]) -> set[tuple[str, str]]:
    return {(stroke.act, stroke.victim) for stroke in plan}


def test_a_seed_repeats_its_plan_and_another_has_another() -> None:
    assert make_plan(7, SECONDS) == make_plan(7, SECONDS)
    assert make_plan(7, SECONDS) != make_plan(8, SECONDS)


@pytest.mark.parametrize("seed", range(20))
def test_three_minutes_meet_every_fault_whatever_the_seed(seed: int) -> None:
    plan = make_plan(seed, SECONDS)
    assert {(fault.begin, fault.victim) for fault in FAULTS} <= begun(plan)


@pytest.mark.parametrize("seed", range(20))
def test_every_fault_ends_within_the_run_and_strokes_come_in_order(seed: int) -> None:
    plan = make_plan(seed, SECONDS)
    assert [stroke.at for stroke in plan] == sorted(stroke.at for stroke in plan)
    assert all(0 < stroke.at <= SECONDS for stroke in plan)
    endings = {fault.end for fault in FAULTS if fault.end}
    for fault in FAULTS:
        begins = [stroke for stroke in plan if (stroke.act, stroke.victim) == (fault.begin, fault.victim)]
        if fault.end:
            ends = [stroke for stroke in plan if stroke.act == fault.end and stroke.victim == fault.victim]
            assert all(any(end.at >= begin.at for end in ends) for begin in begins)
    assert endings == {"thaw", "start", "clear", "single", "flush_and_let_go", "unclog"}


def test_a_short_run_still_breaks_something() -> None:
    assert make_plan(1, 2 * LONGEST_GAP)


def test_the_nemesis_knows_every_act_of_every_plan(tmp_path: Path) -> None:
    known = acts_of(Cluster(tmp_path / "home"))
    assert {fault.begin for fault in FAULTS} | {fault.end for fault in FAULTS if fault.end} == set(known)
