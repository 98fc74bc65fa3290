"""Commands that ask a running service, in processes of their own."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator_cli.migrate import ROOT
from tests.cli.service import command, free_port
from tests.service.running import FRESH, Running, drive
from tests.service.waiting import eventually

Done = subprocess.CompletedProcess[str]
DRIVE = ("tickets", "create", "drive", "-p", "speed=1", "-p", "duration_seconds=1")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("cli") / "home")
    try:
        yield running.start()
    finally:
        running.stop()


def run(service: Running, *words: str, **settings: str) -> Done:
    environment = {**service.environment, **settings}
    return subprocess.run(
        command(*words), env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def asked(service: Running, *words: str, code: int = 0) -> Any:
    """What a command prints as JSON."""
    done = run(service, *words, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def assert_refused(done: Done, code: int, *words: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


def test_a_ticket_is_created_executed_shown_and_listed(service: Running) -> None:
    made = asked(service, *DRIVE, "--params", '{"direction": 90}', "--target", "first", "--metadata", '{"a": 1}')
    assert made["params"] == {"speed": 1, "duration_seconds": 1, "direction": 90}
    assert asked(service, "tickets", "execute", made["id"])["status"] == "completed"
    assert asked(service, "tickets", "show", made["id"])["metadata"] == {"a": 1}
    listed = asked(service, "tickets", "list", "--target", "first", "--limit", "1")
    assert [ticket["id"] for ticket in listed["tickets"]] == [made["id"]]
    assert made["id"] in run(service, "tickets", "list", "--status", "completed").stdout


def test_a_ticket_that_fails_ends_the_command_with_five_and_its_outcome(service: Running) -> None:
    outcome = asked(service, "tickets", "create", "drive", "-p", "speed=9", "--execute", code=5)
    assert outcome["status"] == "failed"
    again = run(service, "tickets", "execute", outcome["ticket_id"])
    assert_refused(again, 3, "already", "next: --force")
    assert asked(service, "tickets", "execute", outcome["ticket_id"], "--force", code=5)["error_code"] == "refused"


def test_a_moving_ticket_is_cancelled(service: Running, moving: str) -> None:
    assert asked(service, "tickets", "cancel", moving)["status"] == "cancelled"


@pytest.fixture
def moving(service: Running) -> str:
    ticket_id = service.go(**drive("cancelled", seconds=200))
    service.wait_until_moving(ticket_id)
    return ticket_id


def test_tickets_are_replayed_by_id_and_by_filter_and_followed_to_the_end(service: Running) -> None:
    ids = [asked(service, "tickets", "create", "fly", "--target", "flyer")["id"] for _ in range(2)]
    for ticket_id in ids:
        asked(service, "tickets", "execute", ticket_id, code=5)
    assert asked(service, "tickets", "replay", ids[0])["done"] == 1
    service.wait_until(ids[0], "failed")
    by_filter = asked(service, "tickets", "replay", "--target", "flyer", "--status", "failed")
    assert (by_filter["status"], by_filter["done"]) == ("completed", 2)


def test_an_emergency_stop_is_engaged_seen_and_released(service: Running) -> None:
    assert asked(service, "estop", "engage", "--scope", "stopped", "--reason", "a test")["engaged"]
    refused = run(service, *DRIVE, "--target", "stopped", "--execute")
    assert_refused(refused, 3, "a test", "next: `orchestrator estop status`")
    assert "stopped" in run(service, "estop", "status").stdout
    asked(service, "estop", "release", "--scope", "stopped", "--reason", "over")
    assert asked(service, *DRIVE, "--target", "stopped", "--execute")["status"] == "completed"


def test_dead_letters_are_listed_and_replayed(service: Running) -> None:
    worker = service.pid_of("io")
    ticket_id = service.go(**drive("dead", seconds=200))
    service.wait_until_moving(ticket_id)
    os.kill(worker, signal.SIGKILL)
    service.wait_until(ticket_id, "failed")
    (letter,) = [
        one for one in asked(service, "dead-letters", "list")["dead_letters"] if one["subject_id"] == ticket_id
    ]
    eventually(service.is_ready, within=30, what="the worker is back")
    asked(service, "dead-letters", "replay", str(letter["id"]))
    assert service.wait_until(ticket_id, "queued", "executing")
    asked(service, "tickets", "cancel", ticket_id)
    assert_refused(run(service, "dead-letters", "replay", str(letter["id"])), 3)


def test_schedules_are_listed_paused_resumed_and_run(service: Running) -> None:
    assert "tallies" in run(service, "schedules", "list").stdout
    assert asked(service, "schedules", "pause", "housekeeping")["paused"]
    assert_refused(run(service, "schedules", "run", "housekeeping"), 3)
    assert not asked(service, "schedules", "resume", "housekeeping")["paused"]
    assert asked(service, "schedules", "run", "housekeeping")["name"] == "housekeeping"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["tickets", "create"], 2),
        (["tickets", "create", "drive", "-p", "speed"], 2),
        (["tickets", "create", "drive", "--params", "[1]"], 2),
        (["tickets", "create", "drive", "--params", '{"speed": NaN}'], 2),
        (["tickets", "create", "drive", "--params", '{"speed": 1e999}'], 2),
        (["tickets", "create", "drive", "--params", "[" * 50_000], 2),
        (["tickets", "create", "\udcff"], 2),
        (["tickets", "create", "drive", "--timeout", "0"], 3),
        (["tickets", "create", "drive", "--target", "no spaces"], 3),
        (["tickets", "execute", "nothing"], 3),
        (["tickets", "show", "../estop"], 3),
        (["tickets", "list", "--limit", "0"], 3),
        (["tickets", "list", "--cursor", "x"], 3),
        (["tickets", "list", "--status", "x"], 2),
        (["tickets", "cancel", "tick-20260101-00000000"], 3),
        (["tickets", "replay"], 2),
        (["tickets", "replay", "x", "--target", "y"], 2),
        (["tickets", "watch", "--after", "x"], 3),
        (["tickets", "watch", "--count", "0"], 2),
        (["estop", "engage"], 2),
        (["estop", "engage", "--reason", ""], 3),
        (["estop", "engage", "--scope", "a b", "--reason", "x"], 3),
        (["dead-letters", "replay"], 2),
        (["dead-letters", "replay", "0"], 2),
        (["dead-letters", "replay", "999999999"], 3),
        (["dead-letters", "list", "--cursor", "x"], 3),
        (["schedules", "run", "nothing/../tallies"], 3),
        (["tickets", "list", "--token", "orc_wrong"], 3),
        (["tickets", "list", "--token", "é"], 2),
        (["tickets", "list", "--url", "nowhere"], 2),
        (["tickets", "list", "--url", "http://127.0.0.1:9"], 1),
        (["tickets", "list", "--url", "http://127.0.0.1:9", "--token", "x"], 4),
        (["nothing"], 2),
    ],
)
def test_what_makes_no_sense_ends_with_its_exit_code_and_a_reason(
    service: Running, words: list[str], code: int
) -> None:
    assert_refused(run(service, *words), code)


def test_a_missing_permission_is_named_and_how_to_give_it(service: Running) -> None:
    asked(service, "clients", "create", "reader", "--may", "read")
    key = asked(service, "clients", "key", "reader")["key"]
    assert asked(service, "tickets", "list", "--token", key)["tickets"] is not None
    refused = run(service, *DRIVE, "--json", ORCHESTRATOR_TOKEN=key)
    assert refused.returncode == 3
    problem = json.loads(refused.stderr)
    assert (problem["code"], problem["status"]) == ("permission_missing", 403)
    assert "clients set" in problem["next_step"]


def test_a_service_that_is_away_is_told_apart_from_one_that_refuses(service: Running) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    away = run(service, "tickets", "list", ORCHESTRATOR_URL=url, ORCHESTRATOR_TOKEN="x")
    assert_refused(away, 4, url, "make up")


def test_nothing_heavy_is_loaded_by_a_command_that_only_asks_the_service(service: Running) -> None:
    heavy = "celery|flask|sqlalchemy|psycopg2|redis|alembic"
    script = f"import sys; sys.argv = {['orchestrator', 'tickets', 'list']!r}\n"
    script += "from orchestrator_cli.main import main\ntry:\n    main()\nfinally:\n"
    script += f"    print(sorted(set('{heavy}'.split('|')) & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [*command()[:1], "-c", script], env=service.environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"


def lines_of(process: subprocess.Popen[str], number: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(number)]


@pytest.fixture
def watching(service: Running) -> Iterator[subprocess.Popen[str]]:
    """A watch of one robot, begun at an event that is already past."""
    first = service.create(command="scan", target="watched")
    after = asked(service, "tickets", "watch", first, "--count", "1", "--after", "earliest")["id"]
    words = command("tickets", "watch", "--target", "watched", "--after", after, "--json")
    process = subprocess.Popen(
        words, env=service.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    yield process
    watchdog.cancel()
    process.kill()
    process.communicate()


def test_a_watch_resumes_after_the_web_was_killed_and_ends_well_on_ctrl_c(
    service: Running, watching: subprocess.Popen[str]
) -> None:
    before = service.create(command="scan", target="watched")
    (told,) = lines_of(watching, 1)
    assert (told["ticket_id"], told["to"]) == (before, "pending")
    killed = [row["pid"] for row in service.rows("SELECT pid FROM processes WHERE role = 'web'")]
    os.kill(service.pid_of("web"), signal.SIGKILL)
    # The killed one's children may still answer for a moment: wait for another's.
    another = f"SELECT FROM processes WHERE role = 'web' AND pid <> ALL(%s) AND {FRESH}"
    eventually(lambda: service.rows(another, killed), within=30, what="another web process")
    eventually(service.is_ready, within=30, what="the web is back")
    made = [service.create(command="scan", target="watched") for _ in range(3)]
    assert [event["ticket_id"] for event in lines_of(watching, 3)] == made
    watching.send_signal(signal.SIGINT)
    rest, errors = watching.communicate(timeout=10)
    assert (watching.returncode, rest) == (0, ""), errors


def test_on_a_terminal_the_watch_is_a_table_that_redraws_itself(service: Running) -> None:
    ours, theirs = pty.openpty()
    environment = {**service.environment, "TERM": "xterm", "COLUMNS": "100", "LINES": "20"}
    first = service.create(command="scan", target="screen")
    words = command("tickets", "watch", first, "--after", "earliest")
    with subprocess.Popen(words, env=environment, cwd=ROOT, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        watchdog = threading.Timer(30, process.kill)
        watchdog.start()
        shown = b""
        while b"1 events, 1 tickets" not in shown:
            shown += os.read(ours, 4096)
        service.execute(first)
        while b"\033[32m" + first.encode() not in shown:
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        watchdog.cancel()
    os.close(ours)
    assert b"\033[J" in shown
