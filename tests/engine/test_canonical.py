"""Canonical JSON: one text for one value, which Postgres gives back unchanged; the rest is refused with a reason."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any

import orjson
import psycopg2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.canonical import DEEPEST, NotSerialisable, canonical, normalise

NASTY = [
    0.0,
    -0.0,
    5e-324,
    -5e-324,
    2.2250738585072014e-308,
    0.1,
    1e-7,
    1 / 3,
    1e15,
    1e16,
    -1e16,
    1e16 + 2,
    2.0**53,
    2.0**63,
    -(2.0**63),
    2.0**64,
    1.8446744073709550e19,
    1e19,
    -1e19,
    1e22,
    1e23,
    123456789012345680.0,
    1.7976931348623157e308,
]
floats = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(NASTY)
wholes = st.integers(-(2**63), 2**64 - 1) | st.sampled_from([2**53 + 1, 2**63, -(2**63), 2**64 - 1])
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | floats | wholes | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_the_canonical_text_is_its_own_canonical_text(value: Any) -> None:
    text = canonical(value)
    assert canonical(orjson.loads(text)) == text
    assert orjson.loads(text) == normalise(value) == value


@pytest.fixture(scope="module")
def through_jsonb(postgres_server: str) -> Iterator[Callable[[list[str]], list[str]]]:
    """What the database says of texts that it has taken in as jsonb."""
    connection = psycopg2.connect(postgres_server)

    def pass_through(given_texts: list[str]) -> list[str]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT t.x::jsonb::text FROM unnest(%s) WITH ORDINALITY AS t(x, n) ORDER BY n", [given_texts]
            )
            return [text for (text,) in cursor.fetchall()]

    yield pass_through
    connection.close()


@settings(max_examples=300, deadline=None)
@given(many=st.lists(values, min_size=1, max_size=20))
def test_postgres_gives_the_canonical_text_back(
    through_jsonb: Callable[[list[str]], list[str]], many: list[Any]
) -> None:
    texts_given = [canonical(value) for value in many]
    assert [canonical(orjson.loads(text)) for text in through_jsonb(texts_given)] == texts_given


def test_postgres_gives_every_nasty_number_back(through_jsonb: Callable[[list[str]], list[str]]) -> None:
    powers = [sign * 10.0**power * lead for power in range(-320, 308) for lead in (1, 1.7) for sign in (1, -1)]
    texts_given = [canonical([value]) for value in [*NASTY, *powers]]
    assert [canonical(orjson.loads(text)) for text in through_jsonb(texts_given)] == texts_given


def test_keys_are_sorted_and_nothing_is_padded() -> None:
    assert (
        canonical({"b": [1, 2.5, True], "a": {"é": None, "z": "x y"}}) == '{"a":{"z":"x y","é":null},"b":[1,2.5,true]}'
    )


@given(st.dictionaries(texts, st.integers(0, 9), max_size=6))
def test_the_order_of_keys_is_that_of_their_code_points(value: dict[str, int]) -> None:
    assert list(json.loads(canonical(value))) == sorted(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.0, "0.0"),
        (3.0, "3.0"),
        (3, "3"),
        (1e15, "1000000000000000.0"),
        (1e16, "10000000000000000"),
        (-(2.0**63), "-9223372036854775808"),
        (1e20, "1e+20"),
        (True, "true"),
        ((1, 2), "[1,2]"),
    ],
)
def test_a_number_has_one_spelling(value: Any, text: str) -> None:
    assert canonical(value) == text


def test_classes_made_from_text_and_numbers_are_what_they_were_made_from() -> None:
    class Name(str):
        __slots__ = ()

    class Level(IntEnum):
        HIGH = 3

    assert canonical([Name("x"), Level.HIGH]) == '["x",3]'


class Opaque:
    """Something that JSON does not know."""


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "it is nan"),
        ({"a": [0, math.inf]}, "a[1] is inf"),
        ({"a": -math.inf}, "a is -inf"),
        (2**64, "it is a whole number beyond 64 bits"),
        ([-(2**63) - 1], "[0] is a whole number beyond 64 bits"),
        ({"a": "x\0y"}, "a contains NUL"),
        ({"x\0y": 1}, "contains NUL"),
        ({"a": "\ud800"}, "a contains half of a surrogate pair"),
        ({"\udfff": 1}, "contains half of a surrogate pair"),
        ({1: 2}, "has a key of type int"),
        ({None: 2}, "has a key of type NoneType"),
        ({"a": {"b": Opaque()}}, "a.b is of type Opaque"),
        (b"x", "it is of type bytes"),
        ({"a": {1, 2}}, "a is of type set"),
        ([1j], "[0] is of type complex"),
    ],
)
def test_what_json_cannot_say_is_refused_with_the_place(value: Any, reason: str) -> None:
    with pytest.raises(NotSerialisable) as refused:
        canonical(value)
    assert reason in refused.value.message
    assert refused.value.code == "not_serialisable"


def test_a_refusal_can_itself_be_stored() -> None:
    with pytest.raises(NotSerialisable) as refused:
        canonical({"\ud800\0" + "k" * 1000: {"b": math.nan}})
    assert canonical(refused.value.message)
    assert len(refused.value.message) < 200


def test_what_nests_too_deeply_or_holds_itself_is_refused() -> None:
    deep: Any = 1
    for _ in range(DEEPEST):
        deep = [deep]
    assert canonical(deep) == "[" * DEEPEST + "1" + "]" * DEEPEST
    holds_itself: dict[str, Any] = {}
    holds_itself["self"] = holds_itself
    for value in ([deep], {"a": deep}, holds_itself):
        with pytest.raises(NotSerialisable, match="nests deeper than 100 levels"):
            canonical(value)
