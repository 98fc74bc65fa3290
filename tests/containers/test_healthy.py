"""What a container's health check says, asked as the container does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from models.kernel.processes import beat
from models.kernel.session import statement
from orchestrator_cli.migrate import ROOT
from tests.cli.service import free_port
from tests.tasks.owed import change


def ask(role: str, **environment: str) -> int:
    return subprocess.run(
        [sys.executable, "ops/healthy.py", role],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=60,
        check=False,
    ).returncode


def test_a_role_is_healthy_while_this_host_says_so_freshly(database: str) -> None:
    assert ask("io") == 1
    with statement() as connection:
        beat(connection, "io")
    assert ask("io") == 0
    assert ask("beat") == 1
    change("UPDATE processes SET host = 'elsewhere'")
    assert ask("io") == 1
    change("UPDATE processes SET host = :host, beat_at = beat_at - interval '1 minute'", host=socket.gethostname())
    assert ask("io") == 1


def test_without_a_database_nobody_is_called_healthy(environment: pytest.MonkeyPatch) -> None:
    assert ask("io", DATABASE_URL=f"postgresql://nobody@127.0.0.1:{free_port()}/none") == 1


def test_a_web_that_does_not_answer_is_not_healthy() -> None:
    assert ask("web", PORT=str(free_port())) == 1
