"""Exports and replays from the command line, in processes of their own."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator_cli.migrate import ROOT
from tests.cli.service import assert_said_plainly, command
from tests.engine import desk
from tests.engine.carried import carry_out, example, exported
from tests.engine.test_exports import lost_in_the_middle, plan_day

Done = subprocess.CompletedProcess[str]
ENGINE = """
from examples.regime_engine.engine import run_with_hysteresis
from examples.regime_engine.engine import run as before
from examples.regime_engine.contracts import RegimeInputSnapshot, RegimeOutput
from dataclasses import replace

print("an engine may print")

def run(snapshot: RegimeInputSnapshot) -> RegimeOutput:
    print("wherever it likes")
    return replace(before(snapshot), confidence=0.125)
"""


def run(folder: Path, *words: str, stdin: bytes | None = None, **settings: str) -> Done:
    """A command in a folder, with nothing of this machine's service in its environment."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", **settings}
    done = subprocess.run(
        command("engine", *words),
        env=environment,
        cwd=folder,
        capture_output=True,
        input=stdin,
        timeout=60,
        check=False,
    )
    return Done(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def answered(folder: Path, *words: str, code: int = 0, **settings: str) -> Any:
    done = run(folder, *words, "--json", **settings)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def published(database: str) -> str:
    """A database with runs that have ended; its URL."""
    plan_day("truth")
    carry_out(example())
    return database


@pytest.fixture
def alone(published: str, tmp_path: Path) -> Path:
    """A folder in which there is an export and nothing else."""
    (tmp_path / "day.jsonl").write_bytes(b"".join(exported()))
    return tmp_path


def test_an_export_replays_where_there_is_nothing_but_it_and_the_engine(alone: Path) -> None:
    told = answered(alone, "replay", "day.jsonl", "--verify")
    assert told["verified"] is True
    assert (told["runs"], told["events"]) == (len(desk.runs()), len(desk.outputs()))
    assert [path.name for path in alone.iterdir()] == ["day.jsonl"]


def test_file_pipe_gzip_database_and_fresh_processes_replay_to_one_digest(alone: Path, published: str) -> None:
    text = (alone / "day.jsonl").read_bytes()
    (alone / "day.gz").write_bytes(gzip.compress(text))
    told = [answered(alone, "replay", name) for name in ("day.jsonl", "day.gz")]
    told.append(answered(alone, "replay", DATABASE_URL=published))
    told.append(answered(alone, "replay", "day.jsonl", "--isolated"))
    for piped in (text, gzip.compress(text)):
        done = run(alone, "replay", "-", "--json", stdin=piped)
        told.append(json.loads(done.stdout))
    assert len({one["digest"] for one in told}) == 1


def test_an_export_is_written_whole_and_the_same_each_time(published: str, tmp_path: Path) -> None:
    told = answered(tmp_path, "export", "one.jsonl.gz", DATABASE_URL=published)
    assert (told["run"], told["unfinished"], told["dropped"]) == (len(desk.runs()), 0, 0)
    answered(tmp_path, "export", "two.jsonl.gz", DATABASE_URL=published)
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.jsonl.gz").read_bytes()) == b"".join(exported())
    piped = run(tmp_path, "export", "-", DATABASE_URL=published)
    assert piped.stdout.encode() == b"".join(exported())
    assert piped.stderr.startswith("file")
    piped = run(tmp_path, "export", "-", "--json", DATABASE_URL=published)
    assert piped.stdout.encode() == b"".join(exported())
    assert json.loads(piped.stderr)["run"] == told["run"]
    assert answered(tmp_path, "replay", "one.jsonl.gz", "--verify")["verified"] is True


def test_a_part_is_exported_by_run_time_and_symbol(published: str, tmp_path: Path) -> None:
    planned = desk.runs()[4]["planned_ts_ms"]
    words = ("--from", str(planned), "--to", "1970-01-01T00:20:00Z", "--symbol", "ETH-USD")
    told = answered(tmp_path, "export", "part.jsonl", *words, DATABASE_URL=published)
    assert 0 < told["run"] < len(desk.runs()) / 2
    assert answered(tmp_path, "replay", "part.jsonl", "--verify")["runs"] == told["run"]
    assert answered(tmp_path, "replay", "--from-run", "3", "--to-run", "5", DATABASE_URL=published)["runs"] == 3


def test_the_events_are_written_as_they_were_published(alone: Path) -> None:
    answered(alone, "replay", "day.jsonl", "--out", "events.jsonl")
    told = [json.loads(line) for line in (alone / "events.jsonl").read_text().splitlines()]
    kept = [json.loads(row["event"]) for row in desk.outputs()]
    assert sorted(map(str, told)) == sorted(
        str({name: value for name, value in event.items() if name != "published_ts_ms"}) for event in kept
    )


def test_events_on_stdout_stand_there_alone(alone: Path) -> None:
    done = run(alone, "replay", "day.jsonl", "--out", "-")
    assert [json.loads(line)["schema"] for line in done.stdout.splitlines()] == ["orchestrator_event"] * len(
        desk.outputs()
    )
    assert "digest" in done.stderr
    done = run(alone, "replay", "day.jsonl", "--out", "-", "--json")
    assert (done.returncode, done.stdout, json.loads(done.stderr)["code"]) == (2, "", "wrong_usage")


def test_an_export_is_not_replaced_by_its_events(alone: Path) -> None:
    text = (alone / "day.jsonl").read_bytes()
    (alone / "other.jsonl").hardlink_to(alone / "day.jsonl")
    for out in ("day.jsonl", "./day.jsonl", "other.jsonl"):
        assert "--out names the export itself" in refused(alone, 2, "replay", "day.jsonl", "--out", out)
    with (alone / "day.jsonl").open() as file:
        words = command("engine", "replay", "-", "--out", "day.jsonl")
        assert (
            subprocess.run(words, cwd=alone, stdin=file, capture_output=True, timeout=60, check=False).returncode == 2
        )
    assert (alone / "day.jsonl").read_bytes() == text


@pytest.mark.parametrize("act", [("export", "new"), ("replay",)])
def test_a_choice_that_no_run_can_match_is_an_error(published: str, tmp_path: Path, act: tuple[str, ...]) -> None:
    reversed_ranges = (("--from-run", "5", "--to-run", "3"), ("--from", "2000", "--to", "1000"))
    for words in reversed_ranges:
        assert "ends before it begins" in refused(tmp_path, 2, *act, *words, DATABASE_URL=published)
    for words in (("--from-run", "999999"), ("--from", "2100-01-01"), ("--to", "0")):
        assert "no run matches" in refused(tmp_path, 1, *act, *words, DATABASE_URL=published)
    assert [*tmp_path.iterdir()] == []


def test_of_nothing_nothing_is_verified(database: str, tmp_path: Path) -> None:
    assert answered(tmp_path, "export", "none.jsonl", DATABASE_URL=database)["run"] == 0
    assert answered(tmp_path, "replay", "none.jsonl")["runs"] == 0
    assert "nothing to verify" in refused(tmp_path, 1, "replay", "none.jsonl", "--verify")
    assert "nothing to verify" in refused(tmp_path, 1, "replay", "--verify", DATABASE_URL=database)


def test_another_engine_is_told_from_the_one_that_ran(alone: Path) -> None:
    (alone / "other_engine.py").write_text(ENGINE)
    words = ("replay", "day.jsonl", "--engine", "other_engine", "--verify")
    told = answered(alone, *words, code=5)
    divergence = told["divergence"]
    assert divergence["field"] == "/payload/regime_output/confidence"
    assert (divergence["number"], divergence["replayed"]) == (1, 0.125)
    assert json.loads(divergence["snapshot_inputs"])["event_type"] == "SnapshotInputs"
    done = run(alone, *words)
    assert done.returncode == 5
    assert "divergence field" in done.stdout
    assert "parts from what was published at run 1 of BTC-USD" in done.stderr
    assert "next: --isolated" in done.stderr
    assert "wherever it likes" not in done.stdout


@pytest.fixture
def made(published: str, tmp_path: Path) -> Path:
    """A folder with an export whose runs name the engine that made them."""
    desk.change(
        "UPDATE engine_runs SET engine_module = 'examples.regime_engine.engine', engine_version = '1.2.0'"
        " WHERE snapshot_ingest_seq IS NOT NULL"
    )
    (tmp_path / "made.jsonl").write_bytes(b"".join(exported()))
    (tmp_path / "other_engine.py").write_text(f"{ENGINE}\n__version__ = '2'\n")
    return tmp_path


@pytest.mark.parametrize("how", [(), ("--isolated",)])
def test_a_replay_by_another_engine_names_both(made: Path, how: tuple[str, ...]) -> None:
    words = ("replay", "made.jsonl", "--engine", "other_engine", "--verify", *how)
    told = answered(made, *words, code=5)
    assert told["engine"] == {"engine_module": "other_engine", "engine_version": "2"}
    recorded = {"engine_module": "examples.regime_engine.engine", "engine_version": "1.2.0"}
    assert told["recorded_engines"] == [{**recorded, "runs": 1}]
    done = run(made, *words)
    assert "recorded engines examples.regime_engine.engine 1.2.0 (1 runs)" in " ".join(done.stdout.split())
    assert "examples.regime_engine.engine 1.2.0 made the runs, other_engine 2 replayed them" in done.stderr
    assert "next: --engine examples.regime_engine.engine replays with the one that made them" in done.stderr


def test_another_version_is_told_also_where_nothing_differs(made: Path) -> None:
    told = answered(made, "replay", "made.jsonl", "--verify")
    asked = [each for each in desk.runs() if each["snapshot_ingest_seq"]]
    assert told["verified"] is True
    assert told["engine"] == {"engine_module": "examples.regime_engine.engine", "engine_version": None}
    assert [(each["engine_version"], each["runs"]) for each in told["recorded_engines"]] == [("1.2.0", len(asked))]


def test_the_engine_that_made_the_runs_is_told_from_no_other(alone: Path) -> None:
    assert answered(alone, "replay", "day.jsonl", "--verify").keys() == {"runs", "events", "verified", "digest"}


UNORDERED = """
import os

def run(snapshot):
    drivers = list({f"driver {n}" for n in range(50)})
    return {"symbol": snapshot.symbol, "timestamp": snapshot.timestamp, "regime": "CHOP_BALANCED", "confidence": 0.5,
            "drivers": drivers, "invalidations": [os.environ["TZ"]], "permissions": []}

def run_with_hysteresis(snapshot, state, config): ...
"""


def test_an_engine_that_lists_a_set_answers_as_it_does_in_the_service(alone: Path) -> None:
    (alone / "unordered.py").write_text(UNORDERED)
    words = ("replay", "day.jsonl", "--engine", "unordered")
    told = [answered(alone, *words, PYTHONHASHSEED=seed)["digest"] for seed in ("0", "1", "2")]
    told.append(answered(alone, *words, "--isolated", PYTHONHASHSEED="3")["digest"])
    assert len(set(told)) == 1


def refused(folder: Path, code: int, *words: str, **settings: str) -> str:
    done = run(folder, *words, **settings)
    assert_said_plainly(done)
    assert done.returncode == code
    assert done.stdout == ""
    return done.stderr


def test_an_export_that_is_damaged_is_refused_by_its_line(alone: Path) -> None:
    text = (alone / "day.jsonl").read_bytes()
    (alone / "short.jsonl").write_bytes(text[:-200])
    assert "line" in refused(alone, 1, "replay", "short.jsonl")
    lines = text.splitlines(keepends=True)
    (alone / "cut.jsonl").write_bytes(b"".join(lines[:-1]))
    assert f"line {len(lines) - 1}: the export is cut short" in refused(alone, 1, "replay", "cut.jsonl")
    changed = text.replace(b"SnapshotInputs", b"SnapshotInput5", 1)
    (alone / "changed.jsonl").write_bytes(changed)
    number = changed[: changed.index(b"Input5")].count(b"\n") + 1
    said = refused(alone, 1, "replay", "changed.jsonl")
    assert f"line {number}: its check is wrong" in said
    assert "next: take the export anew" in said
    assert answered(alone, "replay", "changed.jsonl", "--verify", "--as-it-is", code=5)["verified"] is False


def test_damaged_compression_is_refused_by_its_line(alone: Path) -> None:
    packed = gzip.compress((alone / "day.jsonl").read_bytes())
    (alone / "short.gz").write_bytes(packed[: len(packed) // 2])
    assert "damaged or cut short" in refused(alone, 1, "replay", "short.gz")
    (alone / "bad.gz").write_bytes(packed[:400] + bytes([packed[400] ^ 255]) + packed[401:])
    assert "line " in refused(alone, 1, "replay", "bad.gz")


def test_what_cannot_be_replayed_is_refused_in_a_line(alone: Path) -> None:
    (alone / "empty").write_bytes(b"")
    (alone / "other").write_text("symbol,price\n")
    assert "there is nothing" in refused(alone, 1, "replay", "empty")
    assert "this is no orchestrator-engine-export/1" in refused(alone, 1, "replay", "other")
    assert "No such file" in refused(alone, 1, "replay", "nowhere")
    assert "there is no module no_engine" in refused(alone, 2, "replay", "day.jsonl", "--engine", "no_engine")
    assert "an export is replayed whole" in refused(alone, 2, "replay", "day.jsonl", "--from-run", "2")
    assert "no database is running" in refused(alone, 1, "replay")
    assert "no database is running" in refused(alone, 1, "export", "new.jsonl")
    assert not (alone / "new.jsonl").exists()


def test_an_export_that_fails_leaves_no_file(published: str, tmp_path: Path) -> None:
    said = refused(tmp_path, 1, "export", "day.jsonl", "--symbol", "DOGE", DATABASE_URL=published)
    assert "DOGE" in said
    assert [*tmp_path.iterdir()] == []
    desk.change("UPDATE engine_head SET first_seq = 5")
    said = refused(tmp_path, 1, "export", "day.jsonl", "--from-run", "1", DATABASE_URL=published)
    assert "next: leave the beginning away" in said
    done = run(tmp_path, "export", "day.jsonl", DATABASE_URL=published)
    assert done.returncode == 0
    assert "older runs are left out" in done.stderr


def test_an_export_with_a_run_missing_in_its_middle_names_it_and_is_no_success(database: str, tmp_path: Path) -> None:
    lost_in_the_middle()
    done = run(tmp_path, "export", "day.jsonl", DATABASE_URL=database)
    assert done.returncode == 5
    assert "runs 2 to 2 of ETH-USD are missing in the middle of it" in done.stderr
    assert "next: --from-run 3 begins behind all of them" in done.stderr
    told = answered(tmp_path, "export", "day.jsonl", code=5, DATABASE_URL=database)
    assert (told["run"], told["dropped"], told["gaps"]) == (5, 1, {"ETH-USD": [2, 2]})
    told = answered(tmp_path, "replay", "day.jsonl", "--verify")
    assert (told["verified"], told["dropped"], told["gaps"]) == (True, 1, {"ETH-USD": [2, 2]})
    whole = answered(tmp_path, "export", "whole.jsonl", "--from-run", "3", DATABASE_URL=database)
    assert whole["gaps"] == {}


def test_a_pipe_is_written_to_and_not_replaced(alone: Path) -> None:
    os.mkfifo(alone / "pipe")
    reader = subprocess.Popen(["cat", "pipe"], cwd=alone, stdout=subprocess.PIPE)
    told = answered(alone, "replay", "day.jsonl", "--out", "pipe")
    assert len(reader.communicate(timeout=30)[0].splitlines()) == told["events"]
    assert (alone / "pipe").is_fifo()


def test_replaying_a_file_loads_no_database_driver(alone: Path) -> None:
    asked = ["engine", "replay", str(alone / "day.jsonl"), "--verify"]
    code = (
        f"import sys; from orchestrator_cli.main import main; main({asked}, standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "models.engine.replay" in loaded
    assert not {"sqlalchemy", "psycopg2", "celery", "redis"} & loaded


def test_a_configuration_is_checked_without_a_service(tmp_path: Path) -> None:
    (tmp_path / "engine.toml").write_bytes((ROOT / "examples" / "engine.toml").read_bytes())
    assert answered(tmp_path, "config", "--check", "engine.toml")["valid"] is True
    wrong = (ROOT / "examples" / "engine.toml").read_text().replace("decay_factor", "decay_facto")
    (tmp_path / "wrong.toml").write_text(wrong.replace("boundary_interval_ms = 10000", "boundary_interval_ms = 10001"))
    assert "boundary_interval_ms: must be a multiple" in refused(tmp_path, 2, "config", "--check", "wrong.toml")
    (tmp_path / "wrong.toml").write_text(wrong)
    assert "decay_facto" in refused(tmp_path, 2, "config", "--check", "wrong.toml")
    (tmp_path / "none.toml").write_text("a = ")
    assert "none.toml" in refused(tmp_path, 2, "config", "--check", "none.toml")
