"""The delays of a retry policy."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.config import Retry
from models.engine.delays import retry_delays

GOLDEN = json.loads((Path(__file__).parent / "data/golden_retry_delays.json").read_text())

policies = st.builds(
    lambda low, more, attempts, elapsed: Retry(
        min_delay_ms=low,
        max_delay_ms=low + more,
        max_attempts=attempts,
        max_elapsed_ms=None if elapsed is None else low + elapsed,
    ),
    st.integers(1, 10_000),
    st.integers(0, 100_000),
    st.integers(1, 60),
    st.none() | st.integers(0, 500_000),
)


@pytest.mark.parametrize("vector", GOLDEN)
def test_the_golden_delays_are_ours(vector: dict[str, Any]) -> None:
    assert retry_delays(Retry(**vector["policy"])) == vector["delays"]


@given(policies)
def test_delays_double_within_their_bounds_and_there_is_always_one(policy: Retry) -> None:
    delays = retry_delays(policy)
    assert 1 <= len(delays) <= policy.max_attempts
    assert delays[0] == policy.min_delay_ms
    assert all(b == min(2 * a, policy.max_delay_ms) for a, b in itertools.pairwise(delays))
    assert policy.max_elapsed_ms is None or sum(delays) <= policy.max_elapsed_ms


@given(policies)
def test_no_delay_is_left_out_that_would_still_fit(policy: Retry) -> None:
    delays = retry_delays(policy)
    if len(delays) < policy.max_attempts:
        assert policy.max_elapsed_ms is not None
        assert sum(delays) + min(2 * delays[-1], policy.max_delay_ms) > policy.max_elapsed_ms
