"""Twenty-four hours at three minutes, with what is late, doubled and missing: replayed to the same bytes."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from models.engine.canonical import canonical
from models.engine.divergence import Digest, find_divergence, verify
from models.engine.replay import replay
from tests.engine import day, desk
from tests.engine.carried import example, exported

pytestmark = pytest.mark.usefixtures("database")


def digest_of(lines: list[bytes]) -> tuple[str, int]:
    """Of a replay that parts nowhere from what was published."""
    digest = Digest()
    for run in replay(lines, day.moody(example())):
        assert find_divergence(run) is None
        digest.add(run.texts)
    return digest.text(), digest.events


def published() -> tuple[str, int]:
    """The digest of what was published, in the order that runs were planned in."""
    digest = Digest()
    question = "SELECT event FROM engine_outputs o JOIN engine_runs r ON r.id = run_id ORDER BY number, seq"
    for row in desk.rows(question):
        digest.add([canonical({n: v for n, v in json.loads(row["event"]).items() if n != "published_ts_ms"})])
    return digest.text(), digest.events


def check_runs(symbols: list[str]) -> Counter[str]:
    """Each tick has one run of each symbol, in the order of time; how they ended."""
    runs = desk.runs()
    assert len(runs) == day.TICKS * len(symbols)
    of_symbol: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        of_symbol.setdefault(run["symbol"], []).append(run)
    ticks = [day.BEGIN_MS + tick * day.MINUTES_3 for tick in range(1, day.TICKS + 1)]
    for mine in of_symbol.values():
        assert [run["engine_timestamp_ms"] for run in mine] == ticks
        assert [run["planned_ts_ms"] - day.DELAY_MS for run in mine] == ticks
        starts = [run["cut_start_ingest_seq"] for run in mine]
        assert starts[1:] == [run["cut_end_ingest_seq"] + 1 for run in mine[:-1]]
    return Counter(run["error_kind"] or run["state"] for run in runs)


def check_outputs() -> None:
    """Of each symbol in the order of time; of each run one start and one end."""
    told = desk.outputs()
    last: dict[str, int] = {}
    for each in told:
        assert last.get(each["symbol"], 0) <= each["engine_timestamp_ms"]
        last[each["symbol"]] = each["engine_timestamp_ms"]
    kinds = Counter((each["run_id"], each["event_type"].removeprefix("EngineRun")) for each in told)
    assert set(kinds.values()) == {1}
    ends = Counter(run_id for run_id, kind in kinds if kind in ("Completed", "Failed"))
    assert set(ends.values()) == {1}
    assert len(ends) == sum(kind == "Started" for _, kind in kinds)


def changed(lines: list[bytes]) -> tuple[list[bytes], dict[str, Any]]:
    """The same export, in which one SnapshotInputs in the middle of the day says another price; and its run."""
    bodies = [json.loads(line) for line in lines]
    done = [body for body in bodies if body["kind"] == "run" and body["status"] == "completed"]
    run = done[len(done) // 2]
    (at,) = [n for n, body in enumerate(bodies) if body.get("ingest_seq") == run["snapshot_ingest_seq"]]
    event = json.loads(bodies[at]["event"])
    event["normalized"]["market"]["price"] = 1.0
    bodies[at]["event"] = json.dumps(event)
    return [*lines[:at], json.dumps(bodies[at]).encode(), *lines[at + 1 :]], run


@pytest.mark.parametrize(("mode", "symbols"), [("truth", 50), ("hysteresis", 2)])
def test_a_day_of_runs_replays_to_the_same_digest_and_a_changed_input_is_named(mode: str, symbols: int) -> None:
    chosen = day.SYMBOLS[:symbols]
    day.live(chosen, mode)
    ended = check_runs(chosen)
    assert ended["completed"] > 0.8 * day.TICKS * symbols
    assert min(ended["missing_snapshot_inputs"], ended["engine_failure"]) > 0
    assert any(run["attempts"] == 2 and run["state"] == "completed" for run in desk.runs())
    check_outputs()

    lines = exported()
    assert digest_of(lines) == digest_of(exported()) == published()

    other, run = changed(lines)
    divergence = verify(other, day.moody(example()), checked=False)
    assert divergence is not None
    assert (divergence.run_id, divergence.ingest_seq) == (run["run_id"], run["snapshot_ingest_seq"])
    assert divergence.field.startswith("/payload/")
