"""The door to the database: what goes wrong behind it leaves as an error of ours, with a reason to act on."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest
from sqlalchemy import Connection, text

from models.kernel.errors import Conflict, Unavailable
from models.kernel.session import dispose_engines, engine, statement, transaction
from models.kernel.settings import settings
from tests.conftest import named, on_server
from tests.kernel import parcel
from tests.kernel.races import alone, until


def run(sql: str) -> None:
    alone(lambda c: c.execute(text(sql)))


def together(*sql: str) -> None:
    with transaction() as connection:
        for line in sql:
            connection.execute(text(line))


def test_a_row_that_stays_locked_is_a_conflict(connection: Connection) -> None:
    parcel.pack(connection, "p")
    with transaction() as other:
        parcel.ask(other, "p")
        with pytest.raises(Conflict) as refused:
            together("SET LOCAL lock_timeout = '50ms'", "UPDATE parcels SET van = 'v'")
    assert refused.value.code == "locked"


def test_of_two_that_wait_for_each_other_one_is_told_of_a_conflict(connection: Connection) -> None:
    """So that it may go alone then (`company`), as after any other row that somebody holds."""
    move = text("UPDATE parcels SET van = 'v' WHERE id = :id")
    for each in ("p", "q"):
        parcel.pack(connection, each)
    met = threading.Barrier(2)

    def cross(first: str, second: str) -> str:
        try:
            with transaction() as mine:
                mine.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
                mine.execute(move, {"id": first})
                met.wait(5)
                mine.execute(move, {"id": second})
        except Conflict as refused:
            return refused.code
        return "done"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(cross, "pq", "qp")) == ["done", "locked"]


def test_a_statement_that_takes_too_long_is_unavailable(database: str) -> None:
    with pytest.raises(Unavailable) as refused:
        together("SET LOCAL statement_timeout = '20ms'", "SELECT pg_sleep(60)")
    assert refused.value.code == "database_unavailable"


def test_a_connection_that_was_cut_is_unavailable_and_the_next_one_works(database: str) -> None:
    run("SELECT 1")
    with pytest.raises(Unavailable):
        run("SELECT pg_terminate_backend(pg_backend_pid())")
    run("SELECT 1")


def idle_away() -> None:
    gone = text("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = :pid)")
    with transaction() as idle:
        idle.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10ms'"))
        pid = idle.scalar(text("SELECT pg_backend_pid()"))
        until(lambda: alone(lambda c: c.scalar(gone, {"pid": pid})), "the server cuts the connection")
        idle.execute(text("SELECT 1"))


def test_a_transaction_that_idled_away_is_unavailable(database: str) -> None:
    with pytest.raises(Unavailable):
        idle_away()


def test_a_database_that_only_reads_is_unavailable(database: str) -> None:
    """What a primary becomes after a failover."""
    with pytest.raises(Unavailable):
        together("SET LOCAL transaction_read_only = on", "UPDATE tally_position SET seq = 1")


def test_a_database_that_is_not_there_is_unavailable(database: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    settings.cache_clear()
    engine.cache_clear()
    with pytest.raises(Unavailable), transaction() as connection:
        connection.execute(text("SELECT 1"))


def test_a_mistake_of_ours_is_not_called_unavailable(database: str) -> None:
    with pytest.raises(Exception, match="no_such_column") as raised:
        run("SELECT no_such_column")
    assert not isinstance(raised.value, Unavailable)


def test_every_wait_on_the_server_has_a_deadline(database: str) -> None:
    limits = {"lock_timeout": "3s", "statement_timeout": "10s", "idle_in_transaction_session_timeout": "10s"}
    for name, limit in limits.items():
        assert alone(lambda c, name=name: c.scalar(text(f"SHOW {name}"))) == limit


def test_no_statement_is_shared_out_to_processes_of_its_own(database: str) -> None:
    assert alone(lambda c: c.scalar(text("SHOW max_parallel_workers_per_gather"))) == "0"


def test_a_statement_commits_by_itself_and_a_transaction_together(connection: Connection) -> None:
    parcel.pack(connection, "a")
    with transaction() as whole:
        parcel.pack(whole, "b")
        assert alone(lambda c: c.scalar(text("SELECT count(*) FROM parcels"))) == 1
    assert alone(lambda c: c.scalar(text("SELECT count(*) FROM parcels"))) == 2


def test_a_database_without_our_schema_says_what_to_do(postgres_server: str, environment: pytest.MonkeyPatch) -> None:
    on_server(postgres_server, "CREATE DATABASE bare")
    environment.setenv("DATABASE_URL", named(postgres_server, "bare"))
    dispose_engines()
    settings.cache_clear()
    with pytest.raises(Unavailable, match="orchestrator migrate"), statement() as connection:
        connection.execute(text("SELECT * FROM jobs"))


def test_a_forked_child_never_speaks_on_its_parents_connection(database: str) -> None:
    pid = text("SELECT pg_backend_pid()")
    with statement() as connection:
        mine = connection.scalar(pid)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with statement() as connection:
                os.write(writer, str(connection.scalar(pid)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        theirs = int(pipe.read())
    os.waitpid(child, 0)
    assert theirs != mine
    with statement() as connection:
        assert connection.scalar(pid) == mine


def test_connections_that_a_restart_has_closed_are_replaced_before_they_are_used(database: str) -> None:
    pid = text("SELECT pg_backend_pid()")
    with statement() as one, statement() as other:
        before = {one.scalar(pid), other.scalar(pid)}
    with psycopg2.connect(database) as killer, killer.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s) AS dead (pid)", (list(before),))
    killer.close()
    for _ in range(3):
        with statement() as connection:
            assert connection.scalar(pid) not in before
