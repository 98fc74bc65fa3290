"""From an engine's objects to JSON and back: nothing is lost that their annotations tell."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from fractions import Fraction
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, Union

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.canonical import canonical
from models.engine.snapshots import MISSING
from orchestrator_tasks.engine.shapes import Misfit, build, plain

Level = NewType("Level", float)
ABSENT: Any = object()


class Colour(Enum):
    RED = "red"
    PAIR = ("a", 1)
    EMPTY = None


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Right(Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: float
    label: str = ""


@dataclass(frozen=True)
class Leaf:
    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class Other:
    name: str
    colour: Colour


@dataclass(frozen=True, slots=True)
class State:
    """Every kind of field that a state may have."""

    text: str
    whole: int
    decimal: float
    either: int | float
    level: Level
    flag: bool
    colour: Colour
    size: Size
    right: Right
    leaf: Leaf
    maybe_leaf: Leaf | None
    old_style: Optional[Leaf]  # noqa: UP045 - as engines write it
    any_leaf: Union[Leaf, Other, None]  # noqa: UP007
    text_or_colour: Colour | int | None
    pairs: tuple[tuple[str, float], ...]
    fixed: tuple[int, Leaf, str | None]
    leaves: list[Leaf]
    colours: frozenset[Size]
    by_name: dict[str, Leaf]
    by_colour: Mapping[Size, list[float]] | None
    point: Point
    noted: Annotated[list[Leaf], "of which something is known"]
    chosen: Literal["a", 1]
    anything: Any
    plain_list: list  # type: ignore[type-arg]
    plain_dict: dict  # type: ignore[type-arg]
    default: list[int] = field(default_factory=list)
    computed: float = field(default=0.0, init=False)


floats = st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: str(value) != "-0.0")
whole = st.integers(-(2**53), 2**53)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
json_values = st.none() | st.booleans() | whole | texts
leaves = st.builds(Leaf, texts, floats)
others = st.builds(Other, texts, st.sampled_from([Colour.RED, Colour.PAIR]))


def in_order(mapping: dict[str, Any]) -> dict[str, Any]:
    """As it is stored; an engine is always given states that were."""
    return dict(sorted(mapping.items()))


def states() -> st.SearchStrategy[State]:
    small = {"max_size": 3}
    return st.builds(
        State,
        text=texts,
        whole=whole,
        decimal=floats,
        either=whole | floats.filter(lambda value: abs(value) < 1e16),
        level=floats,
        flag=st.booleans(),
        colour=st.sampled_from([Colour.RED, Colour.PAIR]),
        size=st.sampled_from(Size),
        right=st.sampled_from([Right.READ, Right.WRITE, Right.READ | Right.WRITE]),
        leaf=leaves,
        maybe_leaf=st.none() | leaves,
        old_style=st.none() | leaves,
        any_leaf=st.none() | leaves | others,
        text_or_colour=st.none() | whole | st.sampled_from([Colour.RED, Colour.PAIR]),
        pairs=st.lists(st.tuples(texts, floats), **small).map(tuple),
        fixed=st.tuples(whole, leaves, st.none() | texts),
        leaves=st.lists(leaves, **small),
        colours=st.frozensets(st.sampled_from(Size)),
        by_name=st.dictionaries(texts, leaves, **small).map(in_order),
        by_colour=st.none(),
        point=st.builds(Point, floats, texts),
        noted=st.lists(leaves, **small),
        chosen=st.sampled_from(["a", 1]),
        anything=json_values,
        plain_list=st.lists(json_values, **small),
        plain_dict=st.dictionaries(texts, json_values, **small).map(in_order),
        default=st.lists(whole, **small),
    )


@settings(max_examples=50, deadline=None)
@given(states(), floats)
def test_a_state_survives_being_stored_exactly(state: State, computed: float) -> None:
    object.__setattr__(state, "computed", computed)
    stored = orjson.loads(canonical(plain(state)))
    restored = build(State, stored)
    assert restored == state
    assert repr(restored) == repr(state)  # also the types: 1 is not 1.0, a tuple no list
    assert canonical(plain(restored)) == canonical(plain(state))


def test_keys_may_be_enums_of_texts() -> None:
    class Name(Enum):
        A = "a"

    kind = dict[Name, float]
    assert plain({Name.A: 1.0}) == {"a": 1.0}
    assert build(kind, {"a": 1.0}) == {Name.A: 1.0}


def test_containers_keep_their_kind() -> None:
    assert build(tuple, [1, 2]) == (1, 2)
    assert build(set[int], [1, 2]) == {1, 2}
    assert build(Sequence[Leaf], [{"name": "x"}]) == [Leaf("x")]
    frozen = build(types.MappingProxyType[str, Leaf], {"a": {"name": "x"}})
    assert isinstance(frozen, types.MappingProxyType)
    assert plain(frozen) == {"a": {"name": "x", "weight": 1.0}}


def test_sets_have_one_order_in_json() -> None:
    assert plain({"b", "a", "c"}) == ["a", "b", "c"]
    assert plain(frozenset([10, 9])) == [10, 9]  # by their texts


def test_missing_goes_both_ways() -> None:
    assert plain([ABSENT, None], ABSENT) == [MISSING, None]
    assert build(float, dict(MISSING), ABSENT) is ABSENT
    assert build(list[Leaf], [MISSING], ABSENT) == [ABSENT]


def test_numbers_of_libraries_become_numbers() -> None:
    assert plain(Fraction(1, 2)) == 0.5
    with pytest.raises(Misfit, match="Decimal is no number of JSON"):
        plain(Decimal("0.5"))


def test_a_whole_number_fills_a_field_of_floats_unless_it_would_lose_something() -> None:
    assert repr(build(float, 3)) == "3.0"
    assert repr(build(float | None, 3)) == "3.0"
    assert repr(build(float, 2**53 + 1)) == "9007199254740993"
    assert repr(build(int | float, 3)) == "3"


class Opaque:
    """A class that says nothing of its fields."""


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Opaque(), "a Opaque is neither a dataclass nor a value of JSON"),
        (Leaf, "a type is neither"),
        (b"x", "a bytes is neither"),
        ({1: 2}, "a key is of type int"),
        (1j, "a complex is no number of JSON"),
    ],
)
def test_what_json_has_no_place_for_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(Misfit, match=reason):
        plain({"a": [value]})


def test_what_holds_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(Misfit, match="holds itself"):
        plain(ring)


@dataclass
class Strict:
    value: int

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError("must not be negative")


@dataclass
class Unresolved:
    value: NoSuchName  # type: ignore[name-defined]  # noqa: F821 - as it is behind `if TYPE_CHECKING`


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (Leaf, {"name": "x", "colour": 1}, "Leaf has no field colour"),
        (Leaf, {}, "Leaf refuses it: .*missing 1 required"),
        (Leaf, "x", "Leaf is made from an object, not from str"),
        (Strict, {"value": -1}, "Strict refuses it: must not be negative"),
        (Unresolved, {"value": 1}, "the annotations of Unresolved cannot be resolved"),
        (Colour, "blue", "'blue' is no Colour"),
        (tuple[int, int], [1], "a tuple of 2 is made from 1"),
        (Leaf | Other | None, {"name": "x", "colour": "blue"}, "fits none of 2 alternatives"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(kind: Any, value: Any, reason: str) -> None:
    with pytest.raises(Misfit, match=reason):
        build(kind, value)


def test_python_s_own_aliases_are_seen_through() -> None:
    if hasattr(typing, "TypeAliasType"):  # from Python 3.12 on
        alias = typing.TypeAliasType("alias", list[Leaf])
        assert build(alias, [{"name": "x"}]) == [Leaf("x")]
    assert build(Level, 3) == 3.0
