"""Every operation of the published document, asked thousands of generated questions over HTTP.

The document is the contract: no answer that it does not declare, none that breaks its schemas, and no 5xx.
Another seed: `SCHEMATHESIS_SEED=7 python -m pytest tests/surface`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.running import Running

ENDLESS = ("/tickets/events", "/ws/tickets", "/engine/outputs/events", "/ws/engine")
"""Streams that do not end by themselves; their refusals have tests of their own."""

LEFT_OUT = ("positive_data_acceptance",)
"""What a schema cannot say is refused too: NUL inside free-form objects, cursors that nobody handed out."""

FEWEST_CASES = 3000
PATIENCE_SECONDS = 900


def run(service: Running, directory: Path, *arguments: str) -> tuple[int, str]:
    """Answers the exit code and the report."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{service.url}/openapi.json",
        f"--header=Authorization: Bearer {service.token}",
        "--header=Prefer: respond-async",
        f"--seed={os.environ.get('SCHEMATHESIS_SEED', '1')}",
        "--checks=all",
        f"--exclude-checks={','.join(LEFT_OUT)}",
        "--generation-database=none",
        "--no-color",
        *arguments,
        *(f"--exclude-path={path}" for path in ENDLESS),
    ]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    return done.returncode, done.stdout + done.stderr


def cases(report: str) -> int:
    return int(re.findall(r"([\d,]+) generated", report)[-1].replace(",", ""))


@pytest.mark.parametrize(
    ("family", "fewest"),
    [
        ("^/(ticket|execute|tickets)(/|$)", 8),
        ("^/clients", 8),
        ("^/(operations|tickets/(execute|cancel|replay))", 0),
        ("^/(scheduler|estop|dead-letters)", 0),
        ("^/engine", 0),
    ],
    ids=["tickets", "clients", "operations", "operators", "engine"],
)
def test_what_one_answer_links_to_is_followed_without_a_failure(
    surface: Running, tmp_path: Path, family: str, fewest: int
) -> None:
    """One family at a time: over the whole document a walk rarely comes upon two requests that belong together.

    How many links a walk finds in the last three families depends on what others left: they promise none. The walks
    come before the thousands, whose Idempotency-Keys are the same and would have the walks' creations refused.
    """
    code, report = run(surface, tmp_path, "--phases=stateful", "--max-examples=60", f"--include-path-regex={family}")
    assert code == 0, report
    covered, _ = map(int, re.findall(r"API Links:\s+(\d+) covered / (\d+) selected", report)[-1])
    assert covered >= fewest, report


def test_thousands_of_generated_requests_meet_no_failure_and_no_undeclared_answer(
    surface: Running, tmp_path: Path
) -> None:
    code, report = run(surface, tmp_path, "--phases=examples,coverage,fuzzing", "--max-examples=80")
    assert code == 0, report
    assert cases(report) >= FEWEST_CASES, report
