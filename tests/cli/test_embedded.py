"""The embedded servers on their own."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import redis

from models.kernel.hints import redis_url
from orchestrator_cli.embedded import identity
from orchestrator_cli.embedded.postgres import CONFIGURATION, Postgres
from orchestrator_cli.embedded.valkey import Valkey

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    server = Postgres(tmp_path / "postgres")
    yield server
    server.stop()


def write_and_count(server: Postgres) -> int:
    session = psycopg2.connect(server.url())
    try:
        with session, session.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS facts (at timestamptz DEFAULT now())")
            cursor.execute("INSERT INTO facts DEFAULT VALUES")
            cursor.execute("SELECT count(*) FROM facts")
            (count,) = cursor.fetchone()
            return int(count)
    finally:
        session.close()


def test_committed_rows_survive_a_sigkill_of_the_server(postgres: Postgres) -> None:
    postgres.start()
    assert write_and_count(postgres) == 1
    assert postgres.child is not None
    os.kill(postgres.child.process.pid, signal.SIGKILL)
    postgres.child.process.wait()
    postgres.start()
    assert write_and_count(postgres) == 2


def test_a_server_that_outlived_its_run_is_stopped_before_the_next_start(postgres: Postgres) -> None:
    postgres.start()
    orphan = postgres.child
    assert orphan is not None
    postgres.child = None
    postgres.start()
    assert orphan.process.wait(10) == 0
    assert write_and_count(postgres) == 1


def test_a_pid_file_whose_number_now_belongs_to_another_program_is_forgotten(postgres: Postgres) -> None:
    postgres.start()
    postgres.stop()
    (postgres.data / "postmaster.pid").write_text(f"{os.getppid()}\n{postgres.data}\n")
    postgres.start()
    assert postgres.answers()


def test_postgres_listens_on_no_port_and_wants_its_password(postgres: Postgres) -> None:
    postgres.start()
    session = psycopg2.connect(postgres.url())
    with session.cursor() as cursor:
        cursor.execute("SHOW listen_addresses")
        assert cursor.fetchone() == ("",)
    session.close()
    password = (postgres.directory / "password").read_text()
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(postgres.url().replace(password, "guess"))


SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO held VALUES (%s), (%s)",
        "INSERT INTO held VALUES (NULLIF(%s, %s))",
        "SELECT nothing FROM held WHERE secret IN (%s, %s)",
    ],
    ids=["a row there twice", "a row that a check refuses", "a statement that is wrong"],
)
def test_the_log_of_postgres_says_what_failed_and_shows_no_value(postgres: Postgres, statement: str) -> None:
    postgres.start()
    session = psycopg2.connect(postgres.url())
    session.autocommit = True
    with session.cursor() as cursor:
        cursor.execute("CREATE TABLE held (secret text NOT NULL UNIQUE, other text DEFAULT %s)", [SECRET])
        with pytest.raises(psycopg2.Error) as failed:
            cursor.execute(statement, [SECRET, SECRET])
    session.close()
    log = (postgres.directory / "postgres.log").read_text()
    assert failed.value.diag.message_primary in log
    assert SECRET not in log


def test_the_postgres_of_compose_shows_no_value_in_its_log_either() -> None:
    compose = (Path(__file__).parents[2] / "docker-compose.yml").read_text()
    for setting in ("log_error_verbosity", "log_min_error_statement"):
        (embedded,) = (line.split(" = ")[1] for line in CONFIGURATION.splitlines() if line.startswith(setting))
        assert f"-c {setting}={embedded}" in compose


def test_a_cluster_that_was_left_half_made_is_made_again(postgres: Postgres) -> None:
    half = postgres.directory / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    postgres.start()
    assert write_and_count(postgres) == 1


@ROOT_ONLY
@pytest.mark.parametrize("closed", [False, True])
def test_root_without_user_namespaces_runs_postgres_as_nobody(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    forbidden = tmp_path / "bin"
    forbidden.mkdir()
    (forbidden / "unshare").write_text("#!/bin/sh\nexit 1\n")
    (forbidden / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", str(forbidden), prepend=os.pathsep)
    tmp_path.chmod(0o700 if closed else 0o755)
    postgres.start()
    assert postgres.identity.uid == identity.NOBODY
    assert postgres.data.stat().st_uid == identity.NOBODY
    assert write_and_count(postgres) == 1


def test_valkey_keeps_what_it_was_told_over_a_restart(tmp_path: Path) -> None:
    server = Valkey(tmp_path / "valkey")
    for expected in (1, 2):
        server.start()
        with redis.Redis.from_url(redis_url(server.url())) as client:
            assert client.incr("starts") == expected
        server.stop()


def test_a_deep_directory_gets_a_short_private_socket_directory(tmp_path: Path) -> None:
    server = Postgres(tmp_path / ("deep" * 30))
    try:
        assert len(os.fsencode(server.sockets)) < 80
        assert server.sockets.stat().st_mode & 0o077 == 0
    finally:
        shutil.rmtree(server.sockets)
