"""The v1 contracts: what they accept, what they refuse and that they cannot change unnoticed."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from models.kernel.errors import Invalid
from models.tickets import contracts
from models.tickets.contracts import ContractViolated, check

NOW = "2026-11-21T09:30:00Z"

GOLDEN = {
    "actuator.v1": "7faa8e0cb62f6f2f3665ea39f6a01d46503a27f477cd2ab7c4fcc55db7ccf6b6",
    "imu.v1": "9412e25fe3b5a356fa59638876ec08e79ba19c1baa4bebde3ec237b1755e13a9",
    "ultrasonic.v1": "20e52fa30776b094c1c565a1bbc6edfd01ecc586df3b778e36eaf6a77912683e",
    "metrics.v1": "fece0c4517c9c55a34c6a86a1e77c969f4d63a03c217702ae647cf0e5f3fa190",
    "run.v1": "6f68c503b1bcebc4d8a7899fbb5037be32f13b6e5567a998b85025dcc7457259",
}

SOUND: dict[str, dict[str, Any]] = {
    "actuator.v1": {"timestamp": NOW, "command": "drive", "params": {"speed": 1.0}},
    "imu.v1": {"timestamp": NOW, "yaw": 12.5, "pitch": 0, "roll": -1, "ax": 0.1, "ay": 0, "az": 9.8},
    "ultrasonic.v1": {"timestamp": NOW, "front": 1.5, "rear": 2, "left": 0.25, "right": 9},
    "metrics.v1": {"coverage": 0.5, "latency_ms": 12.5, "collisions": 0, "stability_events": 1},
    "run.v1": {"id": "tick-20261121-0a1b2c3d", "start": NOW, "end": None, "config": {}, "artifacts": {}},
}

REQUIRED = {
    "actuator.v1": {"timestamp", "command"},
    "imu.v1": {"timestamp", "yaw", "pitch", "roll"},
    "ultrasonic.v1": {"timestamp", "front", "rear", "left", "right"},
    "metrics.v1": set(),
    "run.v1": {"id", "start", "config", "artifacts"},
}


@pytest.mark.parametrize("name", contracts.NAMES)
def test_a_contract_cannot_change_unnoticed(name: str) -> None:
    assert contracts.golden_hash(contracts.schema(name)) == GOLDEN[name]


def test_every_schema_file_is_a_contract() -> None:
    assert {path.name for path in contracts.SCHEMAS.iterdir()} == {f"{name}.json" for name in contracts.NAMES}


def test_the_golden_hash_ignores_layout_and_order_and_keeps_letters() -> None:
    # printf '{"a":[1],"b":"é"}' | sha256sum
    expected = "04f34bc0940adae4d1055943965f4f1a5617be528e5e463451aa03f0ecff81f3"
    assert contracts.golden_hash({"b": "é", "a": [1]}) == expected


@pytest.mark.parametrize("name", contracts.NAMES)
def test_every_schema_is_a_sound_one(name: str) -> None:
    Draft202012Validator.check_schema(contracts.schema(name))
    assert set(contracts.schema(name).get("required", ())) == REQUIRED[name]


@pytest.mark.parametrize("name", contracts.NAMES)
def test_a_sound_document_passes_and_may_hold_more(name: str) -> None:
    check(name, SOUND[name])
    check(name, SOUND[name] | {"extra": {"speed": [1]}})


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in REQUIRED for key in sorted(REQUIRED[name])])
def test_a_missing_key_is_refused(name: str, key: str) -> None:
    with pytest.raises(ContractViolated, match=key):
        check(name, {other: value for other, value in SOUND[name].items() if other != key})


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, document in SOUND.items() for key in document])
@pytest.mark.parametrize("value", [True, [1], "soon"])
def test_a_wrong_type_is_refused_at_its_place(name: str, key: str, value: Any) -> None:
    if key == "id" and value == "soon":
        return
    with pytest.raises(ContractViolated) as caught:
        check(name, SOUND[name] | {key: value})
    assert caught.value.errors[0]["pointer"] == f"/{key}"
    assert f"{name} violated at /{key}" in caught.value.message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_no_number(value: float) -> None:
    with pytest.raises(ContractViolated):
        check("imu.v1", SOUND["imu.v1"] | {"yaw": value})


@pytest.mark.parametrize("command", ["scan", "Drive", "", None])
def test_only_the_three_actuator_commands_are_allowed(command: Any) -> None:
    with pytest.raises(ContractViolated):
        check("actuator.v1", {"timestamp": NOW, "command": command})


@pytest.mark.parametrize("document", [None, [], "text", 1])
def test_a_document_that_is_no_object_is_refused_at_its_root(document: Any) -> None:
    with pytest.raises(ContractViolated, match="violated at /:"):
        check("run.v1", document)


def test_a_violation_is_an_invalid_request_that_names_every_place() -> None:
    with pytest.raises(Invalid) as caught:
        check("ultrasonic.v1", {"timestamp": "now", "front": "near", "rear": 1, "left": 1, "right": None})
    assert [error["pointer"] for error in caught.value.errors] == ["/front", "/right", "/timestamp"]
    assert caught.value.facts == {"contract": "ultrasonic.v1"}


def test_a_long_document_makes_no_long_message() -> None:
    with pytest.raises(ContractViolated) as caught:
        check("actuator.v1", {"timestamp": "x" * 100_000, "command": "drive"})
    assert len(caught.value.message) < 300


def test_an_unknown_contract_has_no_schema() -> None:
    with pytest.raises(KeyError):
        contracts.schema("../contracts")


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21T09:30:00Z",
        "2026-11-21t09:30:00z",
        "2026-11-21T09:30:00.1234567+05:30",
        "2026-11-21T09:30:00-00:00",
        "2028-02-29T00:00:00Z",
        "2016-12-31T23:59:60Z",
    ],
)
def test_a_moment_of_rfc_3339_is_a_date_time(text: str) -> None:
    assert contracts.is_date_time(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-21",
        "2026-11-21T09:30:00",
        "2026-11-21 09:30:00Z",
        "2026-11-21T09:30Z",
        "2026-11-21T24:00:00Z",
        "2026-02-29T00:00:00Z",
        "2026-11-21T09:30:61Z",
        "2026-11-21T09:30:00+24:00",
        "2026-11-21T09:30:00+0530",
        "2026-11-21T09:30:00Z\n",
        "٢٠٢٦-11-21T09:30:00Z",
        "20261121T093000Z",
    ],
)
def test_anything_else_is_not(text: str) -> None:
    assert not contracts.is_date_time(text)


@settings(deadline=None)  # a busy machine is no defect
@given(st.datetimes(timezones=st.just(UTC) | st.timezones()))
def test_every_aware_moment_of_ours_is_a_date_time(moment: datetime) -> None:
    offset = moment.utcoffset()
    if offset is not None and offset.total_seconds() % 60 == 0:
        assert contracts.is_date_time(moment.isoformat())
