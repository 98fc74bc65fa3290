"""What a run starts and freezes does not outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import cpu_seconds, pss_mib, tree
from orchestrator_cli.migrate import ROOT
from tests.service.waiting import eventually

FREEZING = """
import sys
from pathlib import Path
from benchmarks.processes import Running, environment
running = Running(["sleep", "1000"], Path(sys.argv[1]), environment())
running.freeze()
print(running.process.pid, flush=True)
sys.stdin.readline()
"""


def state_of(pid: int) -> str:
    """T is stopped; nothing is gone, or waits to be forgotten."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
    return "" if state == "Z" else state


def test_what_is_frozen_ends_when_the_run_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FREEZING, str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        eventually(lambda: state_of(pid) == "T", what="it is frozen")
        os.kill(run.pid, signal.SIGKILL)
    eventually(lambda: state_of(pid) == "", what="it has ended")


def test_a_tree_has_the_children_and_what_they_cost() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(10**7))'])"
    code = f"{child}; print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        assert cpu_seconds(parent.pid) > 0.05  # the child's, which has ended
        assert parent.pid in tree(os.getpid())
        assert pss_mib([parent.pid]) > 1
        parent.communicate(b"\n")
