"""The installed command `orchestrator`, called from a directory that is not the clone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.cli.service import environment

COMMAND = Path(sys.executable).with_name("orchestrator")


def called_from(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command as a shell finds it: nothing but what is installed can be imported."""
    inherited = environment(directory / "home")
    del inherited["PYTHONPATH"]
    return subprocess.run(
        [COMMAND, *words], cwd=directory, env=inherited, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_doctor_comes_to_a_verdict_wherever_it_is_called_from(tmp_path: Path) -> None:
    done = called_from(tmp_path, "doctor", "--json")
    assert "Traceback" not in done.stderr, done.stderr
    found = {one["check"]: one["found"] for one in json.loads(done.stdout)["findings"]}
    assert {"database", "broker"} <= found.keys()
    assert not [said for said in found.values() if "No module" in said or "partially initialized" in said]
