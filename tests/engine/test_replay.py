"""Replay against a model that computes everything a second time, and what is said of exports that were changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.canonical import canonical
from models.engine.divergence import RUN_RECORD, Digest, find_divergence, verify
from models.engine.lines import BrokenExport, Writer, read_lines
from models.engine.replay import Replay, replay
from tests.engine.market import event, snapshot
from tests.engine.written import BTC, ETH, TICK_MS, Day, small_day, stand_in

MODES = ("truth", "hysteresis")


def never(request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise AssertionError(f"the engine was called with {request}")


def replayed(day: Day) -> list[dict[str, Any]]:
    return [each for run in replay(day.lines(), stand_in) for each in run.events]


def rewritten(lines: list[bytes], change: Any) -> list[bytes]:
    """An export whose lines were changed on purpose, with checks that are right again; None drops a line."""
    writer = Writer()
    made = []
    for line in lines:
        body = change(json.loads(line))
        if body is None:
            continue
        kind, _ = body.pop("kind"), body.pop("check")
        made.append(writer.end(unfinished=0, dropped=0) if kind == "end" else writer.line(kind, body))
    return made


@st.composite
def days(draw: st.DrawFn) -> Day:
    """Logs with duplicates, late and missing snapshots, unknown types, parts left out, failures and time-outs."""
    day = Day(draw(st.sampled_from(MODES)))
    prices = st.one_of(st.integers(-2, 3), st.floats(-2, 2), st.none())
    for tick in range(1, draw(st.integers(1, 6)) + 1):
        for _ in range(draw(st.integers(0, 6))):
            symbol = draw(st.sampled_from((BTC, ETH, "DOGE-USD")))
            near = st.integers(max(1, tick - 1), tick + 1).map(lambda n: n * TICK_MS)
            parts = draw(st.dictionaries(st.sampled_from(("market", "flow")), st.just({}), max_size=2))
            if "market" in parts and draw(st.booleans()):
                parts["market"] = {"price": draw(prices)}
            made = draw(
                st.sampled_from((event(symbol=symbol), event("Novel", symbol), snapshot(draw(near), symbol, **parts)))
            )
            day.come(*[made] * draw(st.integers(1, 2)))
        day.tick(tick * TICK_MS, draw(st.sampled_from(((), (BTC,), (ETH,)))))
    return day


@settings(max_examples=150, deadline=None)
@given(days())
def test_a_replay_tells_what_a_plain_model_tells(day: Day) -> None:
    assert replayed(day) == day.events()
    assert verify(day.lines(), stand_in) is None


@settings(max_examples=60, deadline=None)
@given(days())
def test_the_texts_are_canonical(day: Day) -> None:
    for run in replay(day.lines(), stand_in):
        assert run.texts == [canonical(event) for event in run.events]


@settings(max_examples=60, deadline=None)
@given(days(), st.data())
def test_one_changed_byte_anywhere_is_found_and_its_line_is_named(day: Day, data: st.DataObject) -> None:
    text = b"".join(day.lines())
    place = data.draw(st.integers(0, len(text) - 2))
    changed = bytes([text[place] ^ data.draw(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]))])
    number = text[:place].count(b"\n") + 1
    lines = (text[:place] + changed + text[place + 1 :]).splitlines(keepends=True)
    with pytest.raises(BrokenExport, match=rf"^line ({number}|{number + 1}): ") as refused:
        list(replay(lines, stand_in))
    assert refused.value.line == number or b"\r" in text[place : place + 1] + changed


@settings(max_examples=60, deadline=None)
@given(days(), st.data())
def test_an_export_cut_short_anywhere_is_refused(day: Day, data: st.DataObject) -> None:
    text = b"".join(day.lines())
    kept = text[: data.draw(st.integers(0, len(text) - 2))]
    with pytest.raises(BrokenExport, match=r"^line \d+: "):
        list(replay(kept.splitlines(keepends=True), stand_in))


@settings(max_examples=60, deadline=None)
@given(days(), st.data())
def test_a_line_that_is_lost_doubled_or_moved_is_named(day: Day, data: st.DataObject) -> None:
    lines = day.lines()
    at = data.draw(st.integers(0, len(lines) - 2))
    how = data.draw(st.sampled_from(["lost", "doubled", "moved"]))
    if how == "moved":
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    else:
        lines[at : at + 1] = [lines[at]] * (2 if how == "doubled" else 0)
    with pytest.raises(BrokenExport) as refused:
        list(replay(lines, stand_in))
    assert refused.value.line == at + (2 if how == "doubled" else 1)


@pytest.mark.parametrize("mode", MODES)
def test_equal_replays_have_equal_digests(mode: str) -> None:
    digests = []
    for _ in range(2):
        digest = Digest()
        for run in replay(small_day(mode).lines(), stand_in):
            digest.add(run.texts)
        digests.append((digest.events, digest.text()))
    assert digests[0] == digests[1]
    assert digests[0][0] == len(small_day(mode).events())


def test_the_two_modes_have_different_digests() -> None:
    texts = [[run.texts for run in replay(small_day(mode).lines(), stand_in)] for mode in MODES]
    assert texts[0] != texts[1]


def test_a_late_snapshot_is_never_selected_and_a_duplicate_is_the_last() -> None:
    first, _, second, *_ = replay(small_day().lines(), stand_in)
    assert first.snapshot is not None
    assert first.snapshot[0] == 3
    assert second.snapshot is None
    assert second.events[-1]["payload"]["error_kind"] == "missing_snapshot_inputs"


def test_a_run_that_timed_out_is_not_called_again() -> None:
    day = Day()
    day.come(snapshot(TICK_MS))
    day.tick(TICK_MS, timed_out=(BTC,))
    (run,) = replay(day.lines(), never)
    assert run.events[-1]["payload"]["error_kind"] == "engine_timeout"
    assert find_divergence(run) is None


def test_runs_recorded_as_failed_are_left_to_the_guarded_engine() -> None:
    day = Day()
    day.come(snapshot(TICK_MS, market={"price": -1}))
    day.tick(TICK_MS)
    limits: list[Any] = []

    def guarded(request: Mapping[str, Any]) -> Mapping[str, Any]:
        limits.append(request["limits"])
        return stand_in(request)

    assert verify(day.lines(), never, guarded=guarded) is None
    assert limits == [{"hysteresis": {"step": 2}}]


def another(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """An engine of another version: for the third timestamp it is surer of itself."""
    answer = json.loads(json.dumps(stand_in(request)))
    if "ok" in answer and request["input"]["timestamp"] == 3 * TICK_MS:
        answer["ok"]["regime_output"]["confidence"] = 0.75
    return answer  # type: ignore[no-any-return]


def test_the_first_divergence_names_run_field_values_and_the_record_at_fault() -> None:
    day = small_day()
    found = verify(day.lines(), another)
    assert found is not None
    run = next(run for run in day.runs if run["engine_timestamp_ms"] == 3 * TICK_MS)
    assert (found.run_id, found.symbol, found.number) == (run["run_id"], BTC, run["number"])
    assert (found.event_type, found.field) == ("EngineRunCompleted", "/payload/regime_output/confidence")
    assert (found.published, found.replayed) == (0.5, 0.75)
    assert found.ingest_seq == run["snapshot_ingest_seq"]
    assert json.loads(found.snapshot_inputs or "") == day.records[run["snapshot_ingest_seq"] - 1]
    assert json.loads(day.lines()[found.line - 1])["run_id"] == run["run_id"]


def test_an_engine_that_fails_otherwise_diverges_in_its_detail() -> None:
    def other_words(request: Mapping[str, Any]) -> Mapping[str, Any]:
        answer = stand_in(request)
        return answer if "ok" in answer else {**answer, "error_detail": "ValueError: too low"}

    found = verify(small_day().lines(), other_words)
    assert found is not None
    assert (found.event_type, found.field) == ("EngineRunFailed", "/payload/error_detail")
    assert (found.published, found.replayed) == ("ValueError: price -1.0", "ValueError: too low")


def test_an_engine_that_no_longer_fails_diverges_in_what_happened() -> None:
    def forgiving(request: Mapping[str, Any]) -> Mapping[str, Any]:
        answer = stand_in(request)
        return answer if "ok" in answer else {"ok": {"regime_output": {"regime": "CHOP_BALANCED"}}}

    found = verify(small_day().lines(), forgiving)
    assert found is not None
    assert (found.field, found.published, found.replayed) == ("/event_type", "EngineRunFailed", "EngineRunCompleted")
    told = found.body()
    assert (told["error_kind"], told["error_detail"]) == ("engine_failure", "ValueError: price -1.0")


@pytest.mark.parametrize("mode", MODES)
def test_an_engine_that_fails_now_says_why(mode: str) -> None:
    found = verify(
        small_day(mode).lines(), lambda _: {"error_kind": "engine_failure", "error_detail": "ImportError: x"}
    )
    assert found is not None
    assert (found.field, found.replayed) == ("/event_type", "EngineRunFailed")
    told = found.body()
    assert (told["error_kind"], told["error_detail"]) == ("engine_failure", "ImportError: x")


def test_a_difference_of_two_answers_has_no_error() -> None:
    found = verify(small_day().lines(), another)
    assert found is not None
    assert "error_kind" not in found.body()


@pytest.mark.parametrize("event_type", ["EngineRunStarted", "HysteresisDecisionPublished", "EngineRunCompleted"])
def test_an_event_that_is_missing_is_found(event_type: str) -> None:
    dropped: list[Any] = []

    def drop(body: dict[str, Any]) -> dict[str, Any] | None:
        if body["kind"] == "output" and body["event"]["event_type"] == event_type and not dropped:
            dropped.append(body)
            return None
        return body

    found = verify(rewritten(small_day("hysteresis").lines(), drop), stand_in)
    assert found is not None
    assert found.run_id == dropped[0]["event"]["run_id"]
    assert found.field in {"", "/event_type"}
    assert "published" not in found.body() or found.published != found.replayed


def test_an_event_that_is_one_too_many_is_found() -> None:
    lines = small_day().lines()
    extra = json.loads(lines[-2])
    writer = Writer()
    for line in lines[:-1]:
        body = json.loads(line)
        writer.line(body.pop("kind"), {name: value for name, value in body.items() if name != "check"})
    assert extra["kind"] == "output"
    doubled = [*lines[:-1], writer.line("output", {"event": extra["event"]}), writer.end(unfinished=0, dropped=0)]
    found = verify(doubled, stand_in)
    assert found is not None
    assert (found.field, found.event_type) == ("", extra["event"]["event_type"])
    assert "replayed" not in found.body()


def test_an_output_of_another_run_is_named_as_that_runs() -> None:
    day = small_day()
    first, other = day.runs[0]["run_id"], day.runs[3]
    extra = {**day.outputs[other["run_id"]][0]}
    day.outputs[first] = [*day.outputs[first], extra]
    found = verify(day.lines(), stand_in)
    assert found is not None
    assert (found.run_id, found.symbol) == (other["run_id"], other["symbol"])
    assert found.engine_timestamp_ms == other["engine_timestamp_ms"]
    assert not {"number", "replayed"} & found.body().keys()


def test_what_is_operational_may_differ() -> None:
    def later(body: dict[str, Any]) -> dict[str, Any]:
        if body["kind"] == "output":
            body["event"]["published_ts_ms"] += 1
        return body

    assert verify(rewritten(small_day().lines(), later), stand_in) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run_id", "0" * 64),
        ("counts_by_event_type", {"TradeTick": 9}),
        ("snapshot_ingest_seq", 2),
        ("status", "failed"),
        ("error_kind", "engine_failure"),
        ("error_detail", "ValueError"),
    ],
)
def test_a_run_whose_record_does_not_follow_from_its_records_is_found(name: str, value: Any) -> None:
    def change(body: dict[str, Any]) -> dict[str, Any]:
        return {**body, name: value} if body["kind"] == "run" and body["number"] == 1 else body

    found = verify(rewritten(small_day().lines(), change), stand_in)
    assert found is not None
    assert found.event_type == RUN_RECORD
    assert found.field.startswith(f"/{name}")


def test_a_changed_record_is_the_one_named_at_fault() -> None:
    """The damage itself is refused, unless somebody wants to know what follows from it."""
    lines = small_day().lines()
    changed = [line.replace(b"2.5", b"2.75") if b'"kind":"record"' in line else line for line in lines]
    with pytest.raises(BrokenExport, match=r"^line 5: its check is wrong"):
        verify(changed, stand_in)
    found = verify(changed, stand_in, checked=False)
    assert found is not None
    assert (found.ingest_seq, found.field) == (3, "/payload/regime_output/drivers/1")
    assert (found.published, found.replayed) == ("2.5", "2.75")


REFUSALS: dict[str, tuple[Any, str]] = {
    "a gap": (lambda b: None if b.get("ingest_seq") == 4 else b, r"line 6: ingest_seq is 5, and must be 4"),
    "order": (lambda b: {**b, "ingest_seq": 9} if b.get("ingest_seq") == 4 else b, r"line 6: ingest_seq is 9"),
    "time": (lambda b: {**b, "ingest_ts_ms": 1} if b.get("ingest_seq") == 4 else b, r"line 6: ingest_ts_ms goes back"),
    "no event": (lambda b: {**b, "event": "[]"} if b.get("ingest_seq") == 4 else b, r"line 6: its event is not a raw"),
    "a cut beyond": (
        lambda b: {**b, "cut_end_ingest_seq": 99} if b["kind"] == "run" else b,
        r"line 8: its cut ends at 99",
    ),
    "numbers": (lambda b: {**b, "number": 1} if b["kind"] == "run" else b, r"run number 1 comes after 1"),
    "a stranger": (lambda b: {**b, "symbol": "X"} if b["kind"] == "run" else b, r"line 8: the header names no symbol"),
    "a type": (lambda b: {**b, "attempts": "2"} if b["kind"] == "run" else b, r"line 8: attempts is missing or"),
    "no config": (lambda b: None if b["kind"] == "config" else b, r"line 7: the configuration 1 is not in the export"),
    "the format": (lambda b: {**b, "format": "x/2"} if b["kind"] == "header" else b, r"line 1: the format is 'x/2'"),
    "the cuts": (lambda b: {**b, "symbols": {BTC: 1}} if b["kind"] == "header" else b, r"line 1: symbols says of"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_an_export_that_makes_no_sense_is_refused_by_line(name: str) -> None:
    change, said = REFUSALS[name]
    with pytest.raises(BrokenExport, match=said):
        list(replay(rewritten(small_day("hysteresis").lines(), change), stand_in))


@pytest.mark.parametrize("text", [b"", b"\n", b"{}\n", b"\x1f\x8b\n", b'{"kind":"record"}\n', b"[]", b"\xff\xfe"])
def test_what_is_no_export_is_refused_at_its_first_line(text: bytes) -> None:
    for checked in (True, False):
        with pytest.raises(BrokenExport, match=r"^line [01]: "):
            list(replay(text.splitlines(keepends=True), stand_in, checked=checked))


def test_the_end_must_agree_with_what_stood_before_it() -> None:
    lines = small_day().lines()
    del lines[6]
    with pytest.raises(BrokenExport):
        list(replay(lines, stand_in, checked=False))


def test_lines_may_be_texts_and_end_as_on_other_systems() -> None:
    texts = [line.decode().rstrip("\n") + "\r\n" for line in small_day().lines()]
    assert verify(texts, stand_in) is None


def test_an_export_of_no_run_replays_to_nothing() -> None:
    assert list(replay(Day().lines(), never)) == []


def test_a_replay_holds_no_more_than_the_cuts_that_are_open() -> None:
    day = Day()
    for tick in range(1, 40):
        day.come(*[event()] * 5, snapshot(tick * TICK_MS), snapshot(tick * TICK_MS, ETH))
        if tick == 20:
            day.ends[ETH] = 10**9  # it is not run any more
        day.tick(tick * TICK_MS)
    made, most = Replay(stand_in, stand_in), 0
    for line in read_lines(day.lines()):
        made.take(line)
        most = max(most, sum(len(opened.seqs) + len(opened.snapshots) for opened in made.symbols.values()))
    assert most <= 7 + 2


def test_lines_are_read_no_further_than_the_run_that_is_asked_for() -> None:
    read: list[bytes] = []
    lines = small_day().lines()
    runs = replay((read.append(line) or line for line in lines), stand_in)  # type: ignore[func-returns-value]
    next(runs)
    assert len(read) < len(lines) / 2
