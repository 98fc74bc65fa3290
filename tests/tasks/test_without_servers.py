"""A process that was not told its servers ends at once and says which setting it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.kernel.settings import PREFIX, variables
from orchestrator_cli import procfile
from orchestrator_cli.migrate import ROOT

COMMANDS = procfile.read(ROOT / "Procfile")
BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 60


def run(command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    unset = {name: text for name, text in os.environ.items() if name not in variables() and not name.startswith(PREFIX)}
    own = {**unset, "PATH": f"{BIN}:{os.environ['PATH']}", **settings}
    return subprocess.run(
        ["sh", "-c", f"exec {command}"],
        cwd=ROOT,
        env=own,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("role", COMMANDS)
def test_a_process_without_servers_says_so_and_ends(role: str, tmp_path: Path) -> None:
    done = run(COMMANDS[role], ORCHESTRATOR_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "DATABASE_URL and BROKER_URL must be set" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    done = run(COMMANDS["dispatcher"], ORCHESTRATOR_HOME=str(tmp_path), BROKER_URL="redis://127.0.0.1:1/0")
    assert (done.returncode, done.stderr.startswith("DATABASE_URL must be set")) == (1, True)
