"""One raw market event: what of its envelope is held to the contract, and what is kept whatever it is."""

from __future__ import annotations

import json
import timeit
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from models.engine.contract import LARGEST_EVENT, Received, check_event
from models.kernel.errors import Invalid
from tests.engine.market import MINUTES_3, SOURCES, event, snapshot, text_of

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data/golden_raw_market_events.json").read_text())
REQUIRED = [
    *("schema", "schema_version", "event_type", "source_id", "symbol"),
    *("exchange_ts_ms", "recv_ts_ms", "raw_payload", "normalized"),
]


def check(value: Any, alignment_ms: int = MINUTES_3) -> Received:
    return check_event(value if isinstance(value, bytes) else text_of(value), SOURCES, alignment_ms)


def refused(value: Any) -> Invalid:
    with pytest.raises(Invalid) as refusal:
        check(value)
    assert len(refusal.value.errors) == 1
    assert refusal.value.errors[0]["detail"] in refusal.value.message
    return refusal.value


def pointer_of(value: Any, code: str = "invalid_event") -> str:
    refusal = refused(value)
    assert refusal.code == code
    return str(refusal.errors[0]["pointer"])


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["event_type"])
def test_every_golden_event_is_taken_as_it_is(golden: dict[str, Any]) -> None:
    sources = {golden["source_id"]: frozenset({golden["symbol"]})}
    text = text_of(golden)
    received = check_event(text, sources)
    assert received.event.encode() == text
    assert (received.source_id, received.symbol) == (golden["source_id"], golden["symbol"])
    assert received.event_type == golden["event_type"]
    assert (received.recv_ts_ms, received.exchange_ts_ms) == (golden["recv_ts_ms"], golden["exchange_ts_ms"])
    expected = golden["normalized"]["timestamp_ms"] if golden["event_type"] == "SnapshotInputs" else None
    assert received.snapshot_ts_ms == expected


def test_unknown_event_types_and_further_members_are_taken() -> None:
    novel = event("OptionsGreeks", further={"deep": [1, None]}, normalized={"unheard": "of"})
    assert check(novel).event == text_of(novel).decode()


@pytest.mark.parametrize("member", REQUIRED)
def test_a_required_member_that_is_missing_is_named(member: str) -> None:
    whole = event()
    del whole[member]
    assert pointer_of(whole) == f"/{member}"


WRONG = [
    ("schema", "RAW_MARKET_EVENT"), ("schema", None), ("schema_version", 1), ("schema_version", "2"),
    ("event_type", ""), ("event_type", None), ("event_type", "x" * 65), ("event_type", 5), ("event_type", ["a"]),
    ("source_id", ""), ("source_id", {}), ("source_id", "a\x00b"), ("source_id", "a\nb"),
    ("symbol", ""), ("symbol", "BTC|USD"), ("symbol", "B\x7f"), ("symbol", "x" * 65), ("symbol", 7), ("symbol", True),
    ("exchange_ts_ms", "1"), ("exchange_ts_ms", 1.0), ("exchange_ts_ms", True), ("exchange_ts_ms", 2**63),
    ("recv_ts_ms", None), ("recv_ts_ms", 1.5), ("recv_ts_ms", False), ("recv_ts_ms", 2**63), ("recv_ts_ms", 10**30),
    ("recv_ts_ms", -(2**63) - 1),
    ("raw_payload", None), ("raw_payload", {"x": 1}), ("raw_payload", 1),
    ("raw_payload_encoding", "hex"), ("raw_payload_encoding", None), ("raw_payload_encoding", 1),
    ("normalized", None), ("normalized", []), ("normalized", "{}"),
    ("source_event_id", 1), ("channel", 1), ("payload_content_type", []), ("payload_hash", {}),
    ("source_seq", "1"), ("source_seq", 1.0), ("source_seq", True), ("source_seq", 2**64),
]  # fmt: skip


@pytest.mark.parametrize(("member", "value"), WRONG, ids=str)
def test_a_member_of_another_type_is_named(member: str, value: Any) -> None:
    assert pointer_of(event(**{member: value})) == f"/{member}"


@pytest.mark.parametrize("member", ["source_event_id", "source_seq", "channel", "payload_content_type", "payload_hash"])
def test_an_optional_member_may_be_null_or_missing(member: str) -> None:
    check(event(**{member: None}))


@pytest.mark.parametrize("value", [0, -1, 2**63 - 1, -(2**63)])
def test_times_are_integers_of_64_bits(value: int) -> None:
    assert check(event(recv_ts_ms=value, exchange_ts_ms=value)).recv_ts_ms == value


def test_names_may_be_of_any_script() -> None:
    sources = {"börse é": frozenset({"€-ドル 🐈"})}
    assert check_event(text_of(event(source_id="börse é", symbol="€-ドル 🐈")), sources).symbol == "€-ドル 🐈"


def test_an_unknown_source_is_named() -> None:
    refusal = refused(event(source_id="nobody"))
    assert (refusal.code, refusal.errors[0]["pointer"]) == ("unknown_source", "/source_id")
    assert "'nobody'" in refusal.message


def test_a_symbol_that_is_not_of_its_source_is_named() -> None:
    assert pointer_of(event(source_id="kraken", symbol="ETH-USD"), "unknown_symbol") == "/symbol"


@pytest.mark.parametrize("value", [None, "180000", 180_000.0, True, 2**63, [180_000]])
def test_snapshot_inputs_need_a_timestamp(value: Any) -> None:
    inputs = event("SnapshotInputs", normalized={"timestamp_ms": value})
    assert pointer_of(inputs) == "/normalized/timestamp_ms"
    assert pointer_of(event("SnapshotInputs", normalized={})) == "/normalized/timestamp_ms"


@pytest.mark.parametrize("timestamp_ms", [1, MINUTES_3 - 1, MINUTES_3 + 1, -1, 1000])
def test_snapshot_inputs_off_the_alignment_are_refused(timestamp_ms: int) -> None:
    assert pointer_of(snapshot(timestamp_ms), "misaligned_timestamp") == "/normalized/timestamp_ms"


@pytest.mark.parametrize("timestamp_ms", [0, MINUTES_3, 7 * MINUTES_3])
def test_snapshot_inputs_on_the_alignment_are_taken(timestamp_ms: int) -> None:
    assert check(snapshot(timestamp_ms)).snapshot_ts_ms == timestamp_ms


def test_no_other_event_s_timestamp_is_looked_at() -> None:
    assert check(event(normalized={"timestamp_ms": "any"})).snapshot_ts_ms is None


def test_the_white_space_around_an_event_is_no_part_of_it() -> None:
    assert check(b" \r\n\t" + text_of(event()) + b"\n ").event.encode() == text_of(event())


@pytest.mark.parametrize("payload", ["", "AAEC/w==", "eA=="])
def test_a_base64_payload_is_kept_as_it_is(payload: str) -> None:
    whole = event(raw_payload=payload, raw_payload_encoding="base64")
    assert check(whole).event == text_of(whole).decode()


@pytest.mark.parametrize("payload", ["eA", "eA===", "e A==", "eA==x", "é", "-_8="])
def test_a_payload_that_is_not_base64_is_refused(payload: str) -> None:
    assert pointer_of(event(raw_payload=payload, raw_payload_encoding="base64")) == "/raw_payload"


def test_a_payload_without_an_encoding_is_text() -> None:
    whole = event(raw_payload="not base64!")
    del whole["raw_payload_encoding"]
    check(whole)


NOT_JSON = [
    b"", b"{", b"nonsense", b"{'a':1}", text_of(event())[:-1], text_of(event()) + b"}", text_of(event()) * 2,
    text_of(event())[:-1] + b',"x":NaN}', text_of(event())[:-1] + b',"x":Infinity}',
    text_of(event())[:-1] + b',"x":1e400}',
    text_of(event())[:-1] + b',"x":"\\ud800"}', text_of(event())[:-1] + b',"x":"\xff"}',
    text_of(event())[:-1] + b',"x":"\x00"}', b"\xef\xbb\xbf" + text_of(event()),
    text_of(event())[:-1] + b',"x":' + b"[" * 2000 + b"]" * 2000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_JSON, ids=range(len(NOT_JSON)))
def test_what_is_not_strict_json_is_refused(text: bytes) -> None:
    assert pointer_of(text, "not_json") == ""


@pytest.mark.parametrize("text", [b"[]", b"1", b"null", b'"text"'])
def test_what_is_no_object_is_refused(text: bytes) -> None:
    assert pointer_of(text) == ""


def test_the_last_of_a_repeated_member_counts_and_all_are_kept() -> None:
    text = text_of(event(symbol="ETH-USD"))[:-1] + b',"symbol":"BTC-USD"}'
    received = check(text)
    assert received.symbol == "BTC-USD"
    assert received.event.encode() == text


def test_what_no_double_can_hold_exactly_and_escaped_nul_are_kept_as_text() -> None:
    text = text_of(event(raw_payload="a\x00b"))[:-1] + b',"x":[123456789012345678901234567890,0.10,-0]}'
    assert check(text).event.encode() == text
    assert b"\\u0000" in text


def test_an_event_may_be_so_large_and_no_larger() -> None:
    room = LARGEST_EVENT - len(text_of(event(raw_payload="")))
    check(event(raw_payload="x" * room))
    assert pointer_of(event(raw_payload="x" * (room + 1)), "event_too_large") == ""


ODD = [
    None,
    True,
    0,
    -1,
    2**63,
    10**40,
    1.5,
    float("nan"),
    "",
    "x",
    "\x00",
    "\ud800",
    "é" * 70,
    "|",
    [],
    [[1]],
    {},
    {"a": 1},
]


@given(some.dictionaries(some.sampled_from([*REQUIRED, "raw_payload_encoding", "source_seq"]), some.sampled_from(ODD)))
def test_whatever_comes_is_taken_whole_or_refused_with_a_pointer(members: dict[str, Any]) -> None:
    text = json.dumps({**event(), **members}).encode()
    try:
        taken = check(text).event.encode()
    except Invalid as refusal:
        taken = text if refusal.message and refusal.errors[0].keys() == {"pointer", "detail"} else b"no reason"
    assert taken == text


@given(some.binary(max_size=60))
def test_no_bytes_make_it_fail_otherwise(text: bytes) -> None:
    with pytest.raises(Invalid):
        check(text)


def test_a_check_takes_some_microseconds() -> None:
    text = text_of(event())
    best = min(timeit.repeat(lambda: check_event(text, SOURCES), number=500, repeat=10)) / 500
    assert best < 50e-6  # some 3 us on an idle machine; this only finds what is out of all proportion
