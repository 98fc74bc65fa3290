"""The engine's input: the fields that came, as they came, and a mark wherever one did not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.snapshots import FIELDS, MISSING, SnapshotNotBuilt, engine_input

AT = 180_000
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
).filter(lambda value: "inf" not in json.dumps(value).lower() and not surrogate(value))


def surrogate(value: Any) -> bool:
    return any(0xD800 <= ord(mark) <= 0xDFFF for mark in json.dumps(value, ensure_ascii=False))


def event(**normalized: Any) -> str:
    return json.dumps({"symbol": "BTC-USD", "event_type": "SnapshotInputs", "normalized": normalized})


def part(name: str) -> st.SearchStrategy[dict[str, Any]]:
    known = {field: json_values for field in FIELDS[name]}
    return st.fixed_dictionaries({}, optional={**known, "of_a_later_version": json_values})


@given(st.fixed_dictionaries({}, optional={name: part(name) for name in FIELDS}))
def test_every_field_is_what_came_or_missing_and_nothing_else_is_there(normalized: dict[str, Any]) -> None:
    made = engine_input(event(timestamp_ms=AT, unknown=1, **normalized), AT)
    assert list(made) == ["symbol", "timestamp", *FIELDS]
    for name, fields in FIELDS.items():
        assert list(made[name]) == list(fields)
        for field in fields:
            assert made[name][field] == normalized.get(name, {}).get(field, MISSING)


def test_the_symbol_is_the_event_s_and_the_timestamp_the_run_s() -> None:
    made = engine_input(event(timestamp_ms=AT), 360_000)
    assert (made["symbol"], made["timestamp"]) == ("BTC-USD", 360_000)


def test_null_is_a_value_and_absence_is_missing() -> None:
    made = engine_input(event(derivatives={"liquidation_intensity": None}), AT)
    assert made["derivatives"]["liquidation_intensity"] is None
    assert made["derivatives"]["funding_z"] == {"__xray_missing__": True}


def test_a_part_that_is_absent_or_null_is_missing_in_every_field() -> None:
    for made in (engine_input(event(), AT), engine_input(event(flow=None), AT)):
        assert made["flow"] == dict.fromkeys(FIELDS["flow"], MISSING)


def test_the_contract_has_its_twenty_five_fields() -> None:
    assert {name: len(fields) for name, fields in FIELDS.items()} == {
        "market": 8,
        "derivatives": 8,
        "flow": 4,
        "context": 5,
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "no JSON"),
        ('{"normalized": {"a": NaN}}', "no JSON"),
        ("[]", "the event is no object"),
        ('{"symbol": "X"}', "normalized is no object"),
        ('{"symbol": "X", "normalized": []}', "normalized is no object"),
        ('{"normalized": {}}', "symbol is no text"),
        ('{"symbol": "X", "normalized": {"market": 5}}', "normalized.market is no object"),
        ('{"symbol": "X", "normalized": {"flow": [1]}}', "normalized.flow is no object"),
    ],
)
def test_an_event_that_cannot_be_an_input_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(SnapshotNotBuilt) as refused:
        engine_input(text, AT)
    assert reason in refused.value.message
    assert refused.value.code == "snapshot_build_failure"
