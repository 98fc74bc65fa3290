"""The limits, in the documented words, and that nothing gets past them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tickets import safety


def drive(**params: Any) -> str | None:
    return safety.refusal("drive", {"speed": 1.0, "duration_seconds": 5} | params)


@pytest.mark.parametrize("command", ["stop", "brake", "scan"])
def test_commands_without_parameters_are_allowed(command: str) -> None:
    assert safety.refusal(command, {}) is None


def test_a_drive_within_the_limits_is_allowed() -> None:
    assert drive(direction=359.9) is None


def test_the_limits_themselves_are_allowed() -> None:
    assert drive(speed=3.0, duration_seconds=300, direction=0) is None
    assert drive(speed=0, duration_seconds=0) is None


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({}, "Missing required parameter: speed"),
        ({"duration_seconds": 5}, "Missing required parameter: speed"),
        ({"speed": "fast"}, "Missing required parameter: duration_seconds"),
    ],
)
def test_what_is_missing_is_named_first(params: dict[str, Any], text: str) -> None:
    assert safety.refusal("drive", params) == text


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("3", "str"),
        ([1], "list"),
        ({}, "dict"),
        (None, "NoneType"),
        (True, "bool"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
    ],
)
def test_what_is_no_number_is_refused_by_its_kind(value: Any, kind: str) -> None:
    assert drive(speed=value) == f"Speed must be numeric, got {kind}"
    assert drive(duration_seconds=value) == f"Duration must be numeric, got {kind}"
    assert drive(direction=value) == f"Direction must be numeric, got {kind}"


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"speed": 3.5}, "Speed 3.5 exceeds safety threshold of 3.0 m/s"),
        ({"speed": 4}, "Speed 4 exceeds safety threshold of 3.0 m/s"),
        ({"speed": 3.0000000000000004}, "Speed 3.0000000000000004 exceeds safety threshold of 3.0 m/s"),
        ({"speed": -1}, "Speed must be non-negative, got -1"),
        ({"duration_seconds": 400}, "Duration 400s exceeds maximum of 300s"),
        ({"duration_seconds": -0.5}, "Duration must be non-negative, got -0.5"),
        ({"direction": 360}, "Direction 360 must be in range [0, 360)"),
        ({"direction": -90}, "Direction -90 must be in range [0, 360)"),
        ({"speed": 9, "duration_seconds": 400, "direction": 360}, "Speed 9 exceeds safety threshold of 3.0 m/s"),
        ({"duration_seconds": 400, "direction": 360}, "Duration 400s exceeds maximum of 300s"),
    ],
)
def test_what_is_out_of_range_is_refused_in_the_documented_words(params: dict[str, Any], text: str) -> None:
    assert drive(**params) == text


def test_a_number_too_long_to_print_is_refused_all_the_same() -> None:
    assert drive(speed=10**400) == "Speed about 1e400 exceeds safety threshold of 3.0 m/s"
    assert drive(direction=-(10**9000)) == "Direction about -1e9000 must be in range [0, 360)"


@pytest.mark.parametrize("command", ["scan", "fly"])
def test_a_speed_is_limited_whatever_moves(command: str) -> None:
    assert safety.refusal(command, {"speed": 3.5}) == "Speed 3.5 exceeds safety threshold of 3.0 m/s"


@pytest.mark.parametrize("command", ["stop", "brake"])
@pytest.mark.parametrize("params", [{"speed": 5}, {"x": [{"speed": "fast"}]}, {"speed": None}])
def test_what_ends_motion_always_passes_and_leaves_unsafe_parameters_behind(
    command: str, params: dict[str, Any]
) -> None:
    assert safety.refusal(command, params) is None
    assert safety.safe_params(command, params) == {}
    assert safety.safe_params(command, {"speed": 1, "why": "x"}) == {"speed": 1, "why": "x"}


def test_a_speed_cannot_hide_in_depth() -> None:
    assert drive(profile=[{"then": {"speed": 99}}]) == "Speed 99 exceeds safety threshold of 3.0 m/s"


def test_endless_nesting_does_not_exhaust_the_stack() -> None:
    nested: dict[str, Any] = {"speed": 99}
    for _ in range(100_000):
        nested = {"in": nested}
    assert drive(profile=nested) == "Speed 99 exceeds safety threshold of 3.0 m/s"


def test_an_unknown_command_is_named() -> None:
    assert safety.refusal("fly", {"height": 3}) == "Unknown command: fly"


numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.floats(-1, 4), st.just(10**400))
leaves = st.one_of(numbers, st.text(max_size=3), st.none())
names = st.sampled_from(["speed", "duration_seconds", "direction", "other"])
nested = st.lists(leaves, max_size=2) | st.dictionaries(names, leaves, max_size=2)
values = leaves | nested | st.lists(nested, max_size=2)


def every(name: str, value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if name in value:
            yield value[name]
        for inner in value.values():
            yield from every(name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from every(name, inner)


@settings(deadline=None)  # a busy machine is no defect
@given(command=st.sampled_from([*sorted(safety.COMMANDS), "fly"]), params=st.dictionaries(names, values))
def test_nothing_that_is_allowed_exceeds_a_limit(command: str, params: dict[str, Any]) -> None:
    if safety.refusal(command, params) is not None:
        return
    assert command in safety.COMMANDS
    for speed in every("speed", safety.safe_params(command, params)):
        assert type(speed) in (int, float)
        assert 0 <= speed <= 3.0
    if command == "drive":
        assert 0 <= params["duration_seconds"] <= 300
        assert 0 <= params["speed"] * params["duration_seconds"] <= 900
        assert 0 <= params.get("direction", 0) < 360
