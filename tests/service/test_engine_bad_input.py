"""What comes in wrong, sent to the running service: a clear error each time, and nothing is changed by it."""

from __future__ import annotations

import contextlib
import gzip
import json
import select
import socket
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from orchestrator_cli.migrate import ROOT
from tests.cli.service import command
from tests.engine.market import event, lines_of, snapshot
from tests.service.engine import CONFIG, INTERVAL_MS, MODULE, NDJSON, SYMBOLS, EngineService, Feed
from tests.service.test_killing import children
from tests.service.waiting import eventually

BTC, ETH, SOL = SYMBOLS
MIB = 2**20
GOOD = event("TradeTick", BTC)


def kept(engine: EngineService) -> dict[str, Any]:
    """What must not have changed."""
    question = """
        SELECT last_seq, config_version, config_error, state,
               (SELECT count(*) FROM engine_inputs) AS records, (SELECT count(*) FROM engine_configs) AS versions
          FROM engine_head, engine_control
    """
    return engine.row(question)


@contextlib.contextmanager
def unchanged(engine: EngineService) -> Iterator[None]:
    before = kept(engine)
    yield
    assert kept(engine) == before
    assert engine.status()["ready"] is False  # drained, and answering


BAD_LINES = {
    "misaligned_timestamp": (snapshot(INTERVAL_MS * 7 + 1, BTC), "/2/normalized/timestamp_ms"),
    "unknown_source": (event("TradeTick", BTC, source_id="nobody"), "/2/source_id"),
    "unknown_symbol": (event("TradeTick", "DOGE-USD"), "/2/symbol"),
    "invalid_event": (event("TradeTick", BTC, recv_ts_ms=1.5), "/2/recv_ts_ms"),
}


@pytest.mark.parametrize("code", BAD_LINES)
def test_one_bad_line_is_named_by_its_number_and_no_other_is_kept(engine: EngineService, code: str) -> None:
    bad, pointer = BAD_LINES[code]
    with unchanged(engine):
        answer = engine.send(GOOD, bad, GOOD)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["errors"][0]["pointer"]) == (422, code, pointer)
    assert "line 2" in problem["detail"]


def test_a_boundary_interval_that_is_no_multiple_of_the_alignment_is_refused(engine: EngineService) -> None:
    body = {**CONFIG, "scheduler": {**CONFIG["scheduler"], "boundary_interval_ms": INTERVAL_MS + 1}}
    with unchanged(engine):
        answer = engine.ask("POST", "/engine/config", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "config_invalid")
    assert [error["pointer"] for error in problem["errors"]] == ["/scheduler/boundary_interval_ms"]
    assert str(INTERVAL_MS) in problem["detail"]


def test_a_gzip_body_that_is_cut_short_is_refused_whole(engine: EngineService) -> None:
    whole = gzip.compress(lines_of(*[GOOD] * 50))
    headers = NDJSON | {"Content-Encoding": "gzip"}
    with unchanged(engine):
        for length in (len(whole) - 1, len(whole) // 2, 12):
            answer = engine.ask("POST", "/engine/events", content=whole[:length], headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (400, "gzip_truncated")
    assert engine.ask("POST", "/engine/events", content=whole, headers=headers).json()["accepted"] == 50


def peak_of_web(engine: EngineService) -> int:
    """The most memory, in bytes, that any web process has ever held."""
    pids = children(engine.pid_of("web"))
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return max(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def stream_endless_line(engine: EngineService, most: int) -> tuple[int, bytes]:
    """Send one line in pieces until somebody answers; answers how much was sent, and what was said."""
    head = (
        f"POST /engine/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {engine.token}\r\n"
        "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    piece = b"%x\r\n" % MIB + b"x" * MIB + b"\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", int(engine.environment["PORT"])), timeout=60) as connection:
        connection.sendall(head.encode())
        with contextlib.suppress(ConnectionError):
            while sent < most and not select.select([connection], [], [], 0)[0]:
                connection.sendall(piece)
                sent += MIB
        said = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 16):
                said += part
    return sent, said


def test_a_line_of_a_gigabyte_is_refused_early_and_takes_no_memory(engine: EngineService) -> None:
    before = peak_of_web(engine)
    with unchanged(engine):
        sent, said = stream_endless_line(engine, 1024 * MIB)
    assert sent < 256 * MIB
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in said
    assert peak_of_web(engine) - before < 128 * MIB


def test_a_small_body_that_inflates_without_end_is_refused(engine: EngineService) -> None:
    before = peak_of_web(engine)
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(MIB)) for _ in range(256)) + packer.flush()
    with unchanged(engine):
        answer = engine.ask("POST", "/engine/events", content=bomb, headers=NDJSON | {"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert peak_of_web(engine) - before < 192 * MIB


NONSENSE = ("nan", "object", "cyclic")


def test_an_engine_that_answers_what_is_no_json_fails_its_own_run_and_no_other(engine: EngineService) -> None:
    """NaN, an object, a list within itself."""
    question = "SELECT FROM engine_runs WHERE number > %s AND symbol = %s AND error_kind = 'engine_failure'"
    with Feed(engine) as feed:
        for symbol, answers in zip(SYMBOLS, NONSENSE, strict=True):
            feed.order(symbol, answers=answers)
        eventually(lambda: all(engine.rows(question, feed.number, symbol) for symbol in SYMBOLS), within=60)
        feed.orders.clear()
        feed.await_ticks(1)
    for symbol in SYMBOLS:
        mine = [run for run in engine.runs(feed.number) if run["symbol"] == symbol]
        failed = [run for run in mine if run["error_kind"] == "engine_failure"]
        assert [run["error_detail"] for run in failed if "is not serialisable: " not in run["error_detail"]] == []
        assert {run["attempts"] for run in failed} == {CONFIG["engine_retry"]["max_attempts"]}
        assert mine[-1]["state"] == "completed" or mine[-1]["error_kind"] == "missing_snapshot_inputs"


def refused(file: Path, engine: EngineService) -> str:
    """What `replay` says of an export that it does not take."""
    out = file.with_suffix(".events")
    arguments = ("replay", str(file), "--verify", "--engine", MODULE, "--out", str(out), "--json")
    made = subprocess.run(
        command("engine", *arguments), env=engine.environment, cwd=ROOT, capture_output=True, timeout=120, check=False
    )
    assert made.returncode not in (0, 5)
    assert not out.exists()
    problem = orjson.loads(made.stderr)
    assert problem["code"] == "export_broken"
    return str(problem.get("detail") or problem)


def test_an_export_that_is_cut_short_is_refused_by_the_line(engine: EngineService, tmp_path: Path) -> None:
    with Feed(engine):
        pass
    whole = engine.home.with_name("runs.jsonl.gz").read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    short = tmp_path / "short.jsonl"
    with unchanged(engine):
        short.write_bytes(b"".join(lines[:-1]))
        assert "cut short" in refused(short, engine)
        short.write_bytes(b"".join(lines[:-2]) + lines[-2][:40])
        assert f"line {len(lines) - 1}" in refused(short, engine)
        packed = tmp_path / "short.jsonl.gz"
        packed.write_bytes(whole[: len(whole) // 2])
        assert "line" in refused(packed, engine)
        record = next(n for n, line in enumerate(lines) if json.loads(line)["kind"] == "record")
        short.write_bytes(b"".join(lines[:record] + lines[record + 1 :]))
        assert f"line {record + 1}" in refused(short, engine)
