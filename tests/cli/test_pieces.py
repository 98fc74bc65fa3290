"""The small parts of the command line."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from models.kernel.settings import settings, variables
from orchestrator_cli import checks, leash, procfile, supervise, sweep
from orchestrator_cli.demo import table
from orchestrator_cli.errors import CannotStart
from orchestrator_cli.home import Home, write_secret
from orchestrator_cli.main import main
from tests.cli.service import environment


def test_a_procfile_is_read_in_its_order_without_comments(tmp_path: Path) -> None:
    path = tmp_path / "Procfile"
    path.write_text("# processes\n\nweb: python -m web\nio: celery -c ${N:-2}\n")
    assert list(procfile.read(path).items()) == [("web", "python -m web"), ("io", "celery -c ${N:-2}")]


@pytest.mark.parametrize("text", ["web python", "web: a\nweb: b", "web:"])
def test_a_procfile_line_that_is_not_understood_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "Procfile"
    path.write_text(text)
    with pytest.raises(CannotStart, match="line"):
        procfile.read(path)


def test_the_patiences_of_all_tiers_fit_into_the_stop(tmp_path: Path) -> None:
    tiers = {supervise.BROKER, supervise.DATABASE, supervise.WORKERS, *supervise.TIERS.values()}
    assert sum(tier.patience for tier in tiers) < 10


def test_a_command_with_quotes_percents_and_semicolons_reaches_the_shell_unchanged(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.prepare()
    program = supervise.from_procfile({"odd": "printf '%s' \"a ; b # c\""})
    supervise.write(home, tmp_path, program)
    done = subprocess.run(["sh", home.run / "odd.sh"], capture_output=True, text=True, check=True)
    assert done.stdout == "a ; b # c"


def test_a_program_whose_log_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.prepare()
    home.log("odd").mkdir()
    with pytest.raises(CannotStart, match=r"odd\.log cannot be written: Is a directory"):
        supervise.write(home, tmp_path, supervise.from_procfile({"odd": "true"}))


def test_a_program_logs_into_its_own_file_and_prints_through_its_supervisor(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "a home; with 'odd' $(words)")
    home.prepare()
    home.log("odd").write_text("earlier\n")
    supervise.write(home, tmp_path, supervise.from_procfile({"odd": "sh -c 'echo logged >&2; echo printed'"}))
    done = subprocess.run(["sh", home.run / "odd.sh"], capture_output=True, text=True, check=True)
    assert (home.log("odd").read_text(), done.stdout, done.stderr) == ("earlier\nlogged\n", "printed\n", "")


def test_a_program_does_not_start_where_its_log_cannot_be_opened(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.prepare()
    supervise.write(home, tmp_path, supervise.from_procfile({"odd": "echo started"}))
    home.log("odd").unlink()
    home.log("odd").mkdir()
    done = subprocess.run(["sh", home.run / "odd.sh"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "odd.log" in done.stderr


def test_a_leashed_process_dies_with_its_parent() -> None:
    leashed = [*leash.prefix(signal.SIGTERM), "sh", "-c", "echo $$; exec sleep 1000"]
    script = f"import subprocess; subprocess.run({leashed!r})"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with os.fdopen(os.pidfd_open(int(parent.stdout.readline()))) as child:
        parent.kill()
        assert select.select([child], [], [], 10)[0]
    parent.communicate(timeout=10)


def test_a_leashed_process_does_not_start_when_its_parent_is_already_gone() -> None:
    gone = {**os.environ, leash.PARENT: "1"}
    done = subprocess.run([*leash.prefix(signal.SIGTERM), "echo", "started"], env=gone, capture_output=True, check=True)
    assert done.stdout == b""


def test_the_sweeper_kills_the_group_of_a_process_that_ended() -> None:
    orphan = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    payload = f"processname:web groupname:web from_state:RUNNING expected:0 pid:{orphan.pid}"
    answers = io.StringIO()
    sweep.listen(io.StringIO(f"ver:3.0 eventname:PROCESS_STATE_EXITED len:{len(payload)}\n{payload}"), answers)
    assert orphan.wait(10) == -signal.SIGKILL
    assert answers.getvalue() == "READY\nRESULT 2\nOKREADY\n"


def test_a_secret_is_never_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_secret(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o077 == 0


def test_help_names_the_commands() -> None:
    done = CliRunner().invoke(main, ["--help"])
    assert done.exit_code == 0
    assert "up" in done.output
    assert "migrate" in done.output


def test_every_setting_is_listed_with_what_it_means() -> None:
    answer = CliRunner().invoke(main, ["settings"])
    assert answer.exit_code == 0
    listed = {line.split()[0] for line in answer.output.splitlines()[1:]}
    assert listed == set(variables())
    as_json = json.loads(CliRunner().invoke(main, ["settings", "--json"]).output)
    assert {row["variable"] for row in as_json} == listed


def test_the_demo_says_in_one_line_that_the_service_is_not_running(tmp_path: Path) -> None:
    token = tmp_path / "admin.token"
    for expected in ("there is no admin token", "does not answer"):
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator_cli.demo"],
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert expected in done.stderr
        assert "make up" in done.stderr
        token.write_text("token")


def test_the_demo_shows_lists_as_rows_and_objects_as_fields() -> None:
    assert table({"total": 1, "tickets": [{"id": "t", "status": "done", "params": {}}]}) == [
        "total  1",
        "tickets:",
        "  id  status",
        "  t   done",
    ]


def test_what_is_checked_first_leaves_the_settings_to_be_read_once_they_are_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    try:
        checks.engine()
        monkeypatch.setenv("DATABASE_URL", "postgresql://somebody@nowhere/orchestrator")
        assert settings().database_url.endswith("somebody@nowhere/orchestrator")
    finally:
        settings.cache_clear()
