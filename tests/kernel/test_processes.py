"""Processes: who beats is there, who leaves is gone, who falls silent is stale."""

from __future__ import annotations

from sqlalchemy import Connection, text

from models.kernel.processes import Presence, beat, forget_silent, leave, list_fresh_roles
from tests.kernel.races import until


def silent_for(connection: Connection, seconds: int) -> None:
    connection.execute(text(f"UPDATE processes SET beat_at = clock_timestamp() - interval '{seconds} s'"))


def test_a_presence_beats_from_its_start_and_leaves_at_its_end(connection: Connection) -> None:
    presence = Presence("web").start()
    until(lambda: list_fresh_roles(connection) == {"web"}, "the first beat")
    presence.stop()
    assert not presence.thread.is_alive()
    assert connection.scalar(text("SELECT count(*) FROM processes")) == 0


def test_a_presence_goes_on_beating(connection: Connection) -> None:
    presence = Presence("web").start()
    until(lambda: list_fresh_roles(connection) == {"web"}, "the first beat")
    silent_for(connection, 100)
    until(lambda: list_fresh_roles(connection) == {"web"}, "the next beat")
    presence.stop()


def test_a_role_that_fell_silent_is_not_fresh(connection: Connection) -> None:
    beat(connection, "web")
    silent_for(connection, 5)
    beat(connection, "io")
    assert list_fresh_roles(connection) == {"io"}
    beat(connection, "web")
    assert list_fresh_roles(connection) == {"io", "web"}


def test_a_process_that_leaves_takes_its_own_row_only(connection: Connection) -> None:
    beat(connection, "web")
    beat(connection, "io")
    leave(connection, "web")
    assert list_fresh_roles(connection) == {"io"}


def test_a_process_beats_into_one_row(connection: Connection) -> None:
    for _ in range(3):
        beat(connection, "web")
    assert connection.scalar(text("SELECT count(*) FROM processes")) == 1


def test_those_silent_for_an_hour_are_forgotten(connection: Connection) -> None:
    beat(connection, "web")
    silent_for(connection, 3590)
    assert forget_silent(connection) == 0
    silent_for(connection, 3601)
    assert forget_silent(connection) == 1


def test_a_presence_outlives_a_database_that_is_away(connection: Connection) -> None:
    presence = Presence("web").start()
    until(lambda: list_fresh_roles(connection) == {"web"}, "the first beat")
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
    connection.execute(text(others + "pg_backend_pid()"))
    silent_for(connection, 100)
    until(lambda: list_fresh_roles(connection) == {"web"}, "the next beat, on a new connection")
    presence.stop()
