"""The check of one RawMarketEvent v1: its envelope strictly, what it carries hardly at all.

The buffer stores receipts and validates no market data: `raw_payload` is opaque, `normalized` has
only to be an object, unknown event types and further fields are kept. What we work with ourselves is
held to its type: who sent it, which symbol and which sort of event it is, when it came, and of
SnapshotInputs the `timestamp_ms` by which runs select them. A DecodeFailure without its `error_kind`
says more than a refusal would; what an engine is given is its own affair.

The text is kept as it was received, without the white space around it. Everybody must be able to
read it again, so JSON that some readers refuse is refused here: NaN, half a surrogate pair, numbers
beyond a double, more than 1,024 levels. Of a repeated key the last one counts, as for every reader
of ours. `\\u0000` may stand in a payload: whoever reads these texts in SQL must not cast them to jsonb.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NoReturn, TypeGuard

import orjson

from models.kernel.errors import Invalid

SCHEMA, SCHEMA_VERSION = "raw_market_event", "1"
SNAPSHOT_INPUTS = "SnapshotInputs"
LARGEST_EVENT = 2**20
LONGEST_NAME = 64
GREATEST = 2**63  # what a bigint cannot hold
NAME = f"must be a text of 1 to {LONGEST_NAME} printable characters without |"
NOTHING: frozenset[str] = frozenset()
REQUIRED = itemgetter(
    *("schema", "schema_version", "source_id", "symbol", "event_type"),
    *("recv_ts_ms", "exchange_ts_ms", "raw_payload", "normalized"),
)
TEXTS = ("source_event_id", "channel", "payload_content_type", "payload_hash")
WHITE_SPACE = b" \t\r\n"
GZIP = b"\x1f\x8b"

Sources = Mapping[str, frozenset[str]]


@dataclass(slots=True)
class Received:
    """One event as it came in: what of it is looked at, and its own text."""

    source_id: str
    symbol: str
    event_type: str
    snapshot_ts_ms: int | None
    event: str
    recv_ts_ms: int = 0
    exchange_ts_ms: int | None = None


def check_event(text: bytes, sources: Sources, alignment_ms: int = 1) -> Received:
    """One event, whose source and symbol are among `sources`.

    Raises Invalid, whose `errors` point at the first member that is wrong and whose code is `not_json`,
    `event_too_large`, `invalid_event`, `unknown_source`, `unknown_symbol` or `misaligned_timestamp`.
    """
    text = text.strip(WHITE_SPACE)
    event = parse(text)
    try:
        schema, version, source_id, symbol, event_type, recv_ts_ms, exchange_ts_ms, payload, normalized = REQUIRED(
            event
        )
    except KeyError as missing:
        refuse(missing.args[0], "is missing")
    if schema != SCHEMA or version != SCHEMA_VERSION:
        refuse_schema(schema)
    if type(source_id) is not str or type(symbol) is not str or symbol not in sources.get(source_id, NOTHING):
        refuse_stranger(source_id, symbol, sources)
    if not is_name(event_type):
        refuse("event_type", NAME)
    if not is_integer(recv_ts_ms) or not (exchange_ts_ms is None or is_integer(exchange_ts_ms)):
        refuse_times(recv_ts_ms)
    if type(normalized) is not dict or type(payload) is not str:
        refuse_content(payload)
    check_optional(event, payload)
    snapshot_ts_ms = check_snapshot(normalized, alignment_ms) if event_type == SNAPSHOT_INPUTS else None
    return Received(source_id, symbol, event_type, snapshot_ts_ms, text.decode(), recv_ts_ms, exchange_ts_ms)


def parse(text: bytes) -> dict[str, Any]:
    if len(text) > LARGEST_EVENT:
        refuse("", f"is larger than {LARGEST_EVENT} bytes", code="event_too_large")
    try:
        event = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        refuse("", f"is not JSON: {why_not_json(text, error)}", code="not_json")
    if type(event) is not dict:
        refuse("", "must be a JSON object")
    return event


def why_not_json(text: bytes, error: Exception) -> str:
    try:
        text.decode()
    except UnicodeDecodeError as wrong:
        zipped = "; gzip wants the header Content-Encoding: gzip" if text.startswith(GZIP) else ""
        return f"it is not UTF-8 at byte {wrong.start}{zipped}"
    return str(error)


def is_name(value: Any) -> TypeGuard[str]:
    """Whether it fits a lane's name and the text that a run's id is the hash of."""
    return type(value) is str and 0 < len(value) <= LONGEST_NAME and value.isprintable() and "|" not in value


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether it is an integer of 64 bits. true is none, nor is 1.0."""
    return type(value) is int and -GREATEST <= value < GREATEST


def check_optional(event: Mapping[str, Any], payload: str) -> None:
    get = event.get
    for name in TEXTS:
        value = get(name)
        if value is not None and type(value) is not str:
            refuse(name, "must be a text, or null")
    sequence = get("source_seq")
    if sequence is not None and not is_integer(sequence):
        refuse("source_seq", "must be an integer of 64 bits, or null")
    if get("raw_payload_encoding", "text") != "text":
        check_base64(get("raw_payload_encoding"), payload)


def check_base64(encoding: Any, payload: str) -> None:
    if encoding != "base64":
        refuse("raw_payload_encoding", "must be text or base64")
    try:
        binascii.a2b_base64(payload, strict_mode=True)
    except ValueError as error:  # also of a text that is not ASCII
        refuse("raw_payload", f"is not base64: {error}")


def check_snapshot(normalized: Mapping[str, Any], alignment_ms: int) -> int:
    timestamp_ms = normalized.get("timestamp_ms")
    if not is_integer(timestamp_ms):
        refuse("normalized/timestamp_ms", "must be an integer of milliseconds")
    if timestamp_ms % alignment_ms:
        why = f"must be a multiple of {alignment_ms} ms: got {timestamp_ms}"
        refuse("normalized/timestamp_ms", why, code="misaligned_timestamp")
    return timestamp_ms


def refuse_schema(schema: Any) -> NoReturn:
    if schema != SCHEMA:
        refuse("schema", f"must be {SCHEMA}")
    refuse("schema_version", f"must be the text {SCHEMA_VERSION}")


def refuse_stranger(source_id: Any, symbol: Any, sources: Sources) -> NoReturn:
    for member, value in (("source_id", source_id), ("symbol", symbol)):
        if not is_name(value):
            refuse(member, NAME)
    if source_id not in sources:
        refuse("source_id", f"{source_id!r} is no configured source", code="unknown_source")
    refuse("symbol", f"{symbol!r} is no configured symbol of {source_id!r}", code="unknown_symbol")


def refuse_times(recv_ts_ms: Any) -> NoReturn:
    if not is_integer(recv_ts_ms):
        refuse("recv_ts_ms", "must be an integer of milliseconds")
    refuse("exchange_ts_ms", "must be an integer of milliseconds, or null")


def refuse_content(payload: Any) -> NoReturn:
    if type(payload) is not str:
        refuse("raw_payload", "must be a text")
    refuse("normalized", "must be an object")


def refuse(member: str, why: str, code: str = "invalid_event") -> NoReturn:
    pointer = f"/{member}" if member else ""
    raise Invalid(
        f"{pointer}: {why}" if pointer else f"The event {why}", [{"pointer": pointer, "detail": why}], code=code
    )
