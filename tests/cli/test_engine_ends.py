"""Engines that end the process which calls them: no replay of theirs passes for a success."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from orchestrator_cli.migrate import ROOT
from tests.cli.service import command, free_port
from tests.cli.test_engine_files import Done, answered, run
from tests.engine.written import small_day

ENGINE = """
import os
from examples.regime_engine.engine import run_with_hysteresis

def run(snapshot):
    {does}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an export, made without a database."""
    (tmp_path / "day.jsonl").write_bytes(b"".join(small_day().lines()))
    return tmp_path


def replay(folder: Path, does: str, *words: str) -> Done:
    (folder / "ender.py").write_text(ENGINE.format(does=does))
    return run(folder, "replay", "day.jsonl", "--engine", "ender", *words)


@pytest.mark.parametrize("code", [0, 3])
def test_an_engine_that_ends_the_process_has_verified_nothing(folder: Path, code: int) -> None:
    for words, expected in ((("--verify",), 5), (("--out", "events"), 1)):
        done = replay(folder, f"os._exit({code})", *words)
        assert done.returncode == expected
        assert done.stdout == ""
        assert f"the engine ended the replay (exit code {code}): there is no result" in done.stderr
        assert "next: --isolated" in done.stderr
    assert not [*folder.glob("events*")]


def test_a_signal_is_named(folder: Path) -> None:
    done = replay(folder, "os.kill(os.getpid(), 9)", "--verify")
    assert (done.returncode, "signal 9" in done.stderr) == (5, True)


@pytest.mark.parametrize("raised", ["SystemExit(0)", "KeyboardInterrupt", "GeneratorExit"])
def test_what_an_engine_raises_to_end_is_a_failure_of_the_run(folder: Path, raised: str) -> None:
    done = replay(folder, f"raise {raised}", "--verify")
    assert done.returncode == 5
    assert "parts from what was published at run 1 of BTC-USD" in done.stderr


def test_an_engine_cannot_turn_a_divergence_into_a_success_at_its_end(folder: Path) -> None:
    done = replay(folder, "import atexit; atexit.register(os._exit, 0)", "--verify")
    assert done.returncode == 5


def test_a_ctrl_c_is_not_the_engines(folder: Path) -> None:
    (folder / "ender.py").write_text(ENGINE.format(does="print('called', flush=True); import signal; signal.pause()"))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    process = subprocess.Popen(
        command("engine", "replay", "day.jsonl", "--engine", "ender"),
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "called\n"
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert (process.returncode, said.strip()) == (130, "")


def test_a_replay_that_is_terminated_takes_its_work_along(folder: Path) -> None:
    (folder / "ender.py").write_text(
        ENGINE.format(does="print(os.getpid(), flush=True); import signal; signal.pause()")
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    words = command("engine", "replay", "day.jsonl", "--engine", "ender")
    process = subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    worker = int(process.stderr.readline())
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert not Path(f"/proc/{worker}").exists()


def test_a_well_behaved_engine_is_answered_for_as_before(folder: Path) -> None:
    assert answered(folder, "replay", "day.jsonl")["runs"] > 0


def test_a_file_that_cannot_be_used_is_named_with_what_to_do(folder: Path) -> None:
    (folder / "dir").mkdir()
    for words, said in {
        ("nowhere",): "nowhere: No such file or directory",
        ("dir",): "dir: Is a directory",
        ("day.jsonl", "--out", "no/folder"): "no/folder: No such file or directory",
        ("day.jsonl", "--out", "day.jsonl/x"): "day.jsonl/x: Not a directory",
        ("day.jsonl", "--out", "/dev/full"): "/dev/full: No space left on device",
    }.items():
        done = run(folder, "replay", *words)
        assert (done.returncode, done.stdout) == (1, "")
        happened, following = done.stderr.splitlines()
        assert happened == f"orchestrator: {said}"
        assert following.startswith("  next: ")


def test_a_service_that_never_was_there_is_not_waited_for(folder: Path) -> None:
    done = run(folder, "outputs", "--follow", "--url", f"http://127.0.0.1:{free_port()}", "--token", "x")
    assert done.returncode == 4
    assert "does not answer" in done.stderr
    assert "trying again" not in done.stderr


def test_what_to_do_next_fits_the_mistake(folder: Path) -> None:
    (folder / "bad.toml").write_text("[scheduler]\nmod = 1\n")
    done = run(folder, "config", "--check", "bad.toml")
    assert (done.returncode, "next: docs/engine.md#configuration" in done.stderr) == (2, True)
    done = run(folder, "replay", "day.jsonl", "--engine", "no_engine")
    assert done.returncode == 2
    assert "orchestrator: --engine no_engine: there is no module no_engine" in done.stderr
    assert "ENGINE_MODULE" not in done.stderr
    done = run(folder, "replay", "day.jsonl", ENGINE_MODULE="no_engine")
    assert "ENGINE_MODULE=no_engine" in done.stderr
    (folder / "cut.jsonl").write_bytes(b"".join(small_day().lines()[:-1]))
    for words, offered in (((), True), (("--as-it-is",), False)):
        done = run(folder, "replay", "cut.jsonl", *words)
        assert "next: take the export anew" in done.stderr
        assert ("--as-it-is" in done.stderr) is offered
