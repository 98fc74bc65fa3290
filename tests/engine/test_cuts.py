"""Cuts and the identity of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.engine.cuts import Last, is_runnable, run_id

GOLDEN = json.loads((Path(__file__).parent / "data/golden_run_id.json").read_text())


@pytest.mark.parametrize("vector", GOLDEN["vectors"])
def test_the_golden_run_ids_are_ours(vector: dict[str, Any]) -> None:
    expected = vector.pop("run_id")
    assert run_id(**vector) == expected


def test_a_symbol_that_is_not_ascii_is_hashed_as_utf_8() -> None:
    import hashlib

    assert run_id("€/Ж", 1, 2, "truth") == hashlib.sha256("€/Ж|1|2|truth".encode()).hexdigest()


def test_a_cut_begins_after_the_one_before_or_with_the_symbol_s_first_record() -> None:
    assert Last(5).next_start == 5
    assert Last(5, 9, 100).next_start == 10
    assert Last(50, 9, 100).next_start == 50, "what lies between is kept no longer"


@pytest.mark.parametrize("mode", ["truth", "hysteresis"])
def test_a_tick_with_nothing_new_makes_no_run(mode: str) -> None:
    assert not is_runnable(None, 100, 9, mode)
    assert not is_runnable(Last(10), 100, 9, mode)
    assert not is_runnable(Last(1, 9, 0), 100, 9, mode)
    assert is_runnable(Last(1, 8, 0), 100, 9, mode)
    assert is_runnable(Last(9), 100, 9, mode)


def test_a_repeated_timestamp_makes_a_run_in_truth_mode_alone() -> None:
    assert is_runnable(Last(1, 5, 100), 100, 9, "truth")
    assert not is_runnable(Last(1, 5, 100), 100, 9, "hysteresis")


@pytest.mark.parametrize("mode", ["truth", "hysteresis"])
def test_time_never_goes_back_for_a_symbol(mode: str) -> None:
    assert not is_runnable(Last(1, 5, 101), 100, 9, mode)
