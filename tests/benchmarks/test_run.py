"""The whole harness, on tiny sizes: it starts every system, measures and writes what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from orchestrator_cli.migrate import ROOT

MEASURES = "creates,backlog,sizes"


def test_a_quick_run_measures_every_system_and_writes_what_it_found(tmp_path: Path) -> None:
    result, drawing = tmp_path / "result.json", tmp_path / "result.svg"
    options = ["--quick", "--rounds", "1", "--measures", MEASURES, "--json", str(result), "--plot", str(drawing)]
    command = [sys.executable, "-m", "benchmarks", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(result.read_text())
    assert [measure["name"] for measure in document["measures"]] == MEASURES.split(",")
    for measure in document["measures"]:
        assert [row["verdict"] for row in measure["rows"] if row["verdict"]] == []
    values = document["measures"][0]["values"]
    assert {"service_rate", "echo_rate", "naive_rate", "forgetful_rate", "procrastinate_rate"} <= set(values)
    assert document["durability"]["synchronous_commit"] == "on"
    assert document["durability"]["appendfsync"] == "everysec"
    assert "tiny sizes" in done.stdout
    assert drawing.read_text().startswith("<svg")
