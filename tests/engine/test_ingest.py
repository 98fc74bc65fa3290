"""POST /engine/events: all or nothing, in every form that a body may have; what is wrong is named by its number."""

from __future__ import annotations

import gzip
import json
import logging
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from orchestrator_web import compression
from orchestrator_web.app import create_app
from orchestrator_web.engine import ingest
from orchestrator_web.engine.ingest import LINES_IN_PART
from orchestrator_web.problems import BadRequest
from tests.engine.configured import configure
from tests.engine.market import event, lines_of, snapshot, text_of
from tests.web.service import Api, assert_problem, key_with, rows

NDJSON, JSON = "application/x-ndjson", "application/json"
PATH = "/engine/events"


@pytest.fixture
def app(database: str, broker: str) -> Flask:
    configure()
    return create_app()


@pytest.fixture
def api(app: Flask) -> Api:
    return Api(app, key_with("write", name="feed"))


def kept() -> list[str]:
    return [row["event"] for row in rows("SELECT event FROM engine_inputs ORDER BY ingest_seq")]


def refused(answer: TestResponse, status: int, code: str) -> dict[str, Any]:
    """The problem; nothing was appended."""
    problem = assert_problem(answer, status)
    assert problem["code"] == code
    assert kept() == []
    assert rows("SELECT last_seq FROM engine_head") == [{"last_seq": 0}]
    return problem


def test_lines_are_appended_and_the_answer_says_where_they_lie(api: Api) -> None:
    answer = api.send(PATH, lines_of(event(), snapshot()), NDJSON)
    assert answer.status_code == 201
    assert answer.get_json() == {"accepted": 2, "first_ingest_seq": 1, "last_ingest_seq": 2}
    answer = api.send(PATH, lines_of(event("Novelty", further={"a": 1})), NDJSON)
    assert answer.get_json() == {"accepted": 1, "first_ingest_seq": 3, "last_ingest_seq": 3}
    assert kept() == [text_of(each).decode() for each in (event(), snapshot(), event("Novelty", further={"a": 1}))]


def test_lines_may_end_in_crlf_be_empty_and_need_no_last_end(api: Api) -> None:
    body = b"\r\n" + text_of(event()) + b"\r\n\n  \n" + b" " + text_of(snapshot()) + b"\t"
    assert api.send(PATH, body, NDJSON).get_json()["accepted"] == 2
    assert kept() == [text_of(event()).decode(), text_of(snapshot()).decode()]


ARRANGED = json.dumps(event(text=']},"\\ é 🐈'), indent=3, ensure_ascii=False)


def test_an_object_is_kept_exactly_as_it_stood_in_the_body(api: Api) -> None:
    assert api.send(PATH, f"\n {ARRANGED}\n".encode()).status_code == 201
    assert kept() == [ARRANGED]


@pytest.mark.parametrize("between", [",", " ,\n\t", "\r\n, "])
def test_each_item_of_an_array_is_kept_exactly_as_it_stood_in_the_body(api: Api, between: str) -> None:
    items = [ARRANGED, json.dumps(snapshot()), '{"huge":1e3,"big":123456789012345678901,' + ARRANGED[1:]]
    answer = api.send(PATH, f" [ {between.join(items)} ] ".encode())
    assert answer.get_json() == {"accepted": 3, "first_ingest_seq": 1, "last_ingest_seq": 3}
    assert kept() == items


def test_a_bad_line_is_named_by_its_number_and_nothing_is_appended(api: Api) -> None:
    body = lines_of(event(), event()) + b"\n" + lines_of(event(source_id="nobody"), event())
    problem = refused(api.send(PATH, body, NDJSON), 422, "unknown_source")
    detail = "line 4: source_id 'nobody' is no configured source"
    assert problem["errors"] == [{"pointer": "/4/source_id", "detail": detail}]
    assert problem["detail"] == detail


def test_lines_that_are_checked_while_others_are_copied_are_kept_in_their_order(api: Api) -> None:
    sent = [text_of(event(source_event_id=str(number))) for number in range(3 * LINES_IN_PART + 1)]
    answer = api.send(PATH, b"\n".join(sent), NDJSON)
    assert answer.json == {"accepted": len(sent), "first_ingest_seq": 1, "last_ingest_seq": len(sent)}
    assert [each.encode() for each in kept()] == sent


def test_a_bad_line_behind_many_good_ones_is_named_with_all_others_and_nothing_is_appended(api: Api) -> None:
    sent = [event()] * (2 * LINES_IN_PART)
    body = lines_of(*sent, event(symbol="NO-PE"), *sent, event(source_id="nobody"))
    problem = refused(api.send(PATH, body, NDJSON), 422, "unknown_symbol")
    named = [f"/{2 * LINES_IN_PART + 1}/symbol", f"/{4 * LINES_IN_PART + 2}/source_id"]
    assert [each["pointer"] for each in problem["errors"]] == named
    assert api.send(PATH, lines_of(event()), NDJSON).json["first_ingest_seq"] == 1


def test_a_line_that_is_no_json_is_named_by_its_number(api: Api) -> None:
    problem = refused(api.send(PATH, lines_of(event()) + b'{"schema":\n', NDJSON), 422, "not_json")
    assert problem["errors"][0]["pointer"] == "/2"
    assert problem["detail"].startswith("line 2: is not JSON")


def test_a_bad_item_of_an_array_is_named_by_its_index(api: Api) -> None:
    body = text_of([event(), snapshot(12345), event(symbol=7)])
    problem = refused(api.send(PATH, body), 422, "misaligned_timestamp")
    assert [(each["pointer"], each["index"]) for each in problem["errors"]] == [
        ("/1/normalized/timestamp_ms", 1),
        ("/2/symbol", 2),
    ]


def test_at_most_ten_bad_lines_are_listed(api: Api) -> None:
    problem = refused(api.send(PATH, lines_of(*[event(symbol="NO-PE")] * 12), NDJSON), 422, "unknown_symbol")
    assert [each["pointer"] for each in problem["errors"]] == [f"/{line}/symbol" for line in range(1, 11)]
    assert "the first 10 are listed" in problem["detail"]


@pytest.mark.parametrize("body", [b"", b" \n\r\n ", b"[]", b" [ ] "])
@pytest.mark.parametrize("content_type", [NDJSON, JSON])
def test_a_body_without_an_event_is_422(api: Api, body: bytes, content_type: str) -> None:
    if body.strip() and content_type == NDJSON:
        refused(api.send(PATH, body, content_type), 422, "invalid_event")  # an array is no event
    else:
        refused(api.send(PATH, body, content_type), 422, "no_events")


BROKEN_DOCUMENTS = [
    b"[" + text_of(event()),
    b"[" + text_of(event()) + b",]",
    b"[" + text_of(event()) + b"] []",
    b"[" + text_of(event()) + b" " + text_of(event()) + b"]",
    b"[" + text_of(event())[:-1] + b"]",
    b"[,]",
    b"[" * 100_000,
    b'["\xff"]',
]


@pytest.mark.parametrize("body", BROKEN_DOCUMENTS, ids=range(len(BROKEN_DOCUMENTS)))
def test_a_document_that_is_not_json_is_400(api: Api, body: bytes) -> None:
    assert "not JSON" in refused(api.send(PATH, body), 400, "not_json")["detail"]


@pytest.mark.parametrize("body", [b"1", b'"text"', b"null", b"nonsense"])
def test_a_document_that_is_neither_object_nor_array_is_422(api: Api, body: bytes) -> None:
    refused(api.send(PATH, body), 422, "invalid")


@pytest.mark.parametrize("item", [b"1", b"NaN", b"[]", b'"\\ud800"', b"9" * 5000])
def test_an_item_that_is_no_event_is_422(api: Api, item: bytes) -> None:
    problem = assert_problem(api.send(PATH, b"[" + item + b"]"), 422)
    assert problem["errors"][0]["pointer"] == "/0"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_another_content_type_is_415(api: Api, content_type: str | None) -> None:
    refused(api.send(PATH, lines_of(event()), content_type), 415, "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
def test_a_gzip_body_is_inflated(api: Api, encoding: str) -> None:
    body = gzip.compress(lines_of(event(), snapshot()))
    answer = api.call("POST", PATH, data=body, content_type=NDJSON, headers={"Content-Encoding": encoding})
    assert answer.get_json()["accepted"] == 2
    assert kept() == [text_of(event()).decode(), text_of(snapshot()).decode()]


WHOLE = gzip.compress(lines_of(event()))
SPOILT = WHOLE[:-8] + b"\x00" * 4 + WHOLE[-4:]  # another checksum


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (WHOLE[:-1], "gzip_truncated"),
        (WHOLE[:30], "gzip_truncated"),
        (WHOLE + b"x", "gzip_trailing_data"),
        (WHOLE + b"\0", "gzip_trailing_data"),
        (WHOLE + lines_of(event()), "gzip_trailing_data"),
        (WHOLE + WHOLE + b"x", "gzip_trailing_data"),
        (WHOLE + WHOLE[:-1], "gzip_truncated"),
        (WHOLE + WHOLE[:1], "gzip_truncated"),
        (WHOLE + WHOLE[:2], "gzip_truncated"),
        (WHOLE + SPOILT, "not_gzip"),
        (SPOILT, "not_gzip"),
        (lines_of(event()), "not_gzip"),
    ],
)
def test_a_gzip_body_that_is_not_whole_is_400(api: Api, body: bytes, code: str) -> None:
    answer = api.call("POST", PATH, data=body, content_type=NDJSON, headers={"Content-Encoding": "gzip"})
    assert "gzip" in refused(answer, 400, code)["detail"]


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_the_members_of_a_gzip_body_are_one_body(api: Api, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """RFC 1952: as `cat a.gz b.gz` makes it, also where a line goes over from one to the next, or one is empty."""
    monkeypatch.setattr(compression, "PART", size)
    lines = lines_of(event(), snapshot(), event("Novel"))
    body = b"".join(map(gzip.compress, (lines[:10], b"", lines[10:-20], lines[-20:], b"")))
    answer = api.call("POST", PATH, data=body, content_type=NDJSON, headers={"Content-Encoding": "gzip"})
    assert answer.get_json()["accepted"] == 3
    assert kept() == [text_of(each).decode() for each in (event(), snapshot(), event("Novel"))]


def test_all_members_together_keep_the_bound_of_a_body(environment: pytest.MonkeyPatch) -> None:
    member = gzip.compress(b" " * 1000)
    assert len(compression.decode_body(member * 4, "gzip", 4000)) == 4000
    with pytest.raises(BadRequest) as refusal:
        compression.decode_body(member * 4 + gzip.compress(b" "), "gzip", 4000)
    assert (refusal.value.status, refusal.value.code) == (413, "body_too_large")


def test_a_gzip_body_that_inflates_to_too_much_is_413(api: Api, environment: pytest.MonkeyPatch) -> None:
    bomb = gzip.compress(b" " * (64 * 2**20 + 1))
    assert len(bomb) < 2**17
    answer = api.call("POST", PATH, data=bomb, content_type=NDJSON, headers={"Content-Encoding": "gzip"})
    refused(answer, 413, "body_too_large")


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "deflate"])
def test_another_content_encoding_is_415(api: Api, encoding: str) -> None:
    answer = api.call("POST", PATH, data=WHOLE, content_type=NDJSON, headers={"Content-Encoding": encoding})
    refused(answer, 415, "unsupported_content_encoding")


def test_a_line_longer_than_an_event_may_be_is_422(api: Api) -> None:
    problem = refused(api.send(PATH, lines_of(event(raw_payload="x" * 2**20)), NDJSON), 422, "event_too_large")
    assert problem["errors"][0]["pointer"] == "/1"


def test_a_body_above_the_common_limit_is_taken_here_and_one_above_its_own_is_413(api: Api) -> None:
    large = lines_of(*[event(raw_payload="x" * 600_000)] * 3)
    assert api.send(PATH, large, NDJSON).status_code == 201
    assert_problem(api.send(PATH, b" " * (16 * 2**20 + 1), NDJSON), 413)
    assert_problem(api.send("/ticket", b" " * (2**20 + 1)), 413)


def test_more_events_than_a_batch_may_have_are_422(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "MOST_EVENTS", 3)
    refused(api.send(PATH, lines_of(*[event()] * 4), NDJSON), 422, "too_many_events")
    assert api.send(PATH, lines_of(*[event()] * 3), NDJSON).status_code == 201


def test_a_full_buffer_is_503_and_says_when_to_come_back(app: Flask, api: Api) -> None:
    configure(max_records=3)
    assert api.send(PATH, lines_of(*[event()] * 3), NDJSON).status_code == 201
    answer = api.send(PATH, lines_of(event()), NDJSON)
    assert assert_problem(answer, 503)["code"] == "buffer_full"
    assert answer.headers["Retry-After"] == "5"
    assert len(kept()) == 3


def test_a_stopped_engine_is_503(api: Api) -> None:
    rows("UPDATE engine_control SET state = 'stopped' RETURNING id")
    answer = api.send(PATH, lines_of(event()), NDJSON)
    refused(answer, 503, "engine_stopped")
    assert "Retry-After" in answer.headers


def test_an_engine_without_a_configuration_is_503(api: Api) -> None:
    rows("UPDATE engine_control SET config_version = NULL RETURNING id")
    refused(api.send(PATH, lines_of(event()), NDJSON), 503, "engine_not_configured")


def test_a_new_configuration_holds_within_a_second(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    now = ingest.clock.monotonic()
    monkeypatch.setattr(ingest.clock, "monotonic", lambda: now)
    assert api.send(PATH, lines_of(event()), NDJSON).status_code == 201
    configure(sources=[{"source_id": "other", "symbols": ["BTC-USD"]}])
    now += 1.1
    assert_problem(api.send(PATH, lines_of(event()), NDJSON), 422)
    assert api.send(PATH, lines_of(event(source_id="other")), NDJSON).status_code == 201


def test_a_repeated_batch_with_its_key_is_appended_once(api: Api) -> None:
    batch: dict[str, Any] = {"data": lines_of(event()), "content_type": NDJSON, "headers": {"Idempotency-Key": "b-1"}}
    first, second = api.post(PATH, **batch), api.post(PATH, **batch)
    assert first.status_code == second.status_code == 201
    assert first.get_json() == second.get_json() == {"accepted": 1, "first_ingest_seq": 1, "last_ingest_seq": 1}
    assert second.headers["Idempotency-Replayed"] == "true"
    assert len(kept()) == 1


def test_a_refused_batch_keeps_no_key(api: Api) -> None:
    key = {"Idempotency-Key": "b-2"}
    assert_problem(api.post(PATH, data=b"x", content_type=NDJSON, headers=key), 422)
    assert api.post(PATH, data=lines_of(event()), content_type=NDJSON, headers=key).status_code == 201


def test_a_batch_that_is_refused_while_it_is_copied_keeps_no_key(api: Api) -> None:
    key = {"Idempotency-Key": "b-3"}
    sent = [event()] * (2 * LINES_IN_PART)
    refused = api.post(PATH, data=lines_of(*sent, event(symbol="NO-PE")), content_type=NDJSON, headers=key)
    assert_problem(refused, 422)
    again = api.post(PATH, data=lines_of(*sent), content_type=NDJSON, headers=key)
    assert (again.status_code, len(kept())) == (201, len(sent))


def test_only_who_may_write_may_append(app: Flask) -> None:
    reader, anonymous = Api(app, key_with("read", name="reader")), Api(app)
    refused(reader.send(PATH, lines_of(event()), NDJSON), 403, "permission_missing")
    refused(anonymous.send(PATH, lines_of(event()), NDJSON), 401, "credential_missing")


def test_a_batch_is_one_line_in_the_log(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    api.send(PATH, lines_of(event(), event(source_id="kraken"), snapshot() | {"recv_ts_ms": 200_000}), NDJSON)
    (line,) = (record for record in caplog.records if record.name == "orchestrator.ingest")
    assert (line.source_id, line.symbol) == (["binance", "kraken"], ["BTC-USD"])  # type: ignore[attr-defined]
    assert (line.ingest_seq, line.last_ingest_seq, line.accepted) == (1, 3, 3)  # type: ignore[attr-defined]
    assert (line.recv_ts_ms, line.exchange_ts_ms) == (200_000, 179_999)  # type: ignore[attr-defined]


def test_a_batch_that_is_checked_in_parts_is_one_line_in_the_log(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sent = [event(source_id="kraken"), *[event()] * LINES_IN_PART, snapshot() | {"recv_ts_ms": 200_000}]
    api.send(PATH, lines_of(*sent), NDJSON)
    (line,) = (record for record in caplog.records if record.name == "orchestrator.ingest")
    assert (line.source_id, line.symbol) == (["binance", "kraken"], ["BTC-USD"])  # type: ignore[attr-defined]
    assert (line.accepted, line.recv_ts_ms) == (len(sent), 200_000)  # type: ignore[attr-defined]


def test_what_fails_is_told_with_its_domain(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    api.send(PATH, b"x", NDJSON)
    rows("UPDATE engine_control SET state = 'stopped' RETURNING id")
    api.send(PATH, lines_of(event()), NDJSON)
    told = [record for record in caplog.records if record.name == "orchestrator.failure"]
    assert [(line.failure_domain, line.error_kind) for line in told] == [  # type: ignore[attr-defined]
        ("ingest", "not_json"),
        ("buffer", "engine_stopped"),
    ]


def test_lines_without_anything_in_them_are_bounded_too(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty million of them fit into 60 KB of gzip, and each costs a step."""
    monkeypatch.setattr(ingest, "MOST_LINES", 8)
    refused(api.send(PATH, b"\n" * 9 + lines_of(event()).strip(), NDJSON), 422, "too_many_events")
    assert api.send(PATH, b"\n" * 8 + lines_of(event()).strip(), NDJSON).status_code == 201


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (gzip.compress(b"{}"), "at byte 1; gzip wants the header Content-Encoding: gzip"),
        (b'{"a": "\xff"}', "at byte 7"),
    ],
)
def test_bytes_that_are_no_text_are_said_to_be_none(api: Api, body: bytes, said: str) -> None:
    problem = refused(api.send(PATH, body.replace(b"\n", b""), NDJSON), 422, "not_json")
    assert problem["detail"].endswith(said)
