"""Migrations: up, down and up again, alone and two at once, and the tables they make are those of the models."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator

import psycopg2
import pytest
from alembic import command
from sqlalchemy import create_engine, text

from models.kernel.metadata import metadata
from models.kernel.parsers import postgres_url
from orchestrator_cli import migrate
from orchestrator_cli.errors import CannotStart
from tests.conftest import named, on_server

numbers = itertools.count(1)


@pytest.fixture
def empty(postgres_server: str) -> Iterator[str]:
    """The URL of a database in which nothing is."""
    name = f"migrations_{next(numbers)}"
    on_server(postgres_server, f"CREATE DATABASE {name}")
    yield named(postgres_server, name)
    on_server(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()
    finally:
        connection.close()


OURS = """
    SELECT 'relation', relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT 'function', proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT 'type', typname::text FROM pg_type WHERE typnamespace = 'public'::regnamespace
    UNION ALL SELECT 'trigger', tgname::text FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT 'listener', evtname::text FROM pg_event_trigger
"""

# Everything that a declaration decides, as the database itself spells it. Partitions are the database's own affair.
SHAPE = """
    WITH ours AS (
        SELECT oid, relname FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND NOT relispartition AND relname NOT LIKE 'alembic%'
    )
    SELECT relname::text, 'column', attname::text, format_type(atttypid, atttypmod) || ' ' || attnotnull || ' '
           || attidentity::text || ' ' || coalesce(pg_get_expr(adbin, adrelid), '') || ' '
           || coalesce(col_description(attrelid, attnum), '')
      FROM ours JOIN pg_attribute ON attrelid = ours.oid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
     WHERE attnum > 0 AND NOT attisdropped AND relname IN (SELECT tablename FROM pg_tables)
    UNION ALL
    SELECT relname::text, 'constraint', conname::text, pg_get_constraintdef(pg_constraint.oid)
      FROM ours JOIN pg_constraint ON conrelid = ours.oid
    UNION ALL
    SELECT relname::text, 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid)
      FROM ours JOIN pg_index ON indrelid = ours.oid
    UNION ALL
    SELECT ours.relname::text, 'options', '', array_to_string(reloptions, ',') FROM ours JOIN pg_class USING (oid)
     WHERE relkind IN ('r', 'p', 'i', 'I')
    ORDER BY 1, 2, 3
"""

HELPERS = "CREATE FUNCTION new_ticket_id() RETURNS text LANGUAGE sql AS $$ SELECT ''::text $$"


def test_every_migration_goes_up_and_down_and_up_again(empty: str) -> None:
    migrate.upgrade(empty)
    first = rows(empty, SHAPE)
    migrate.downgrade(empty, "base")
    left = {row for row in rows(empty, OURS) if "alembic_version" not in str(row[1])}
    assert left == set()
    migrate.upgrade(empty)
    assert rows(empty, SHAPE) == first


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(empty: str) -> None:
    migrate.upgrade(empty)
    before = rows(empty, OURS)
    migrate.upgrade(empty)
    assert rows(empty, OURS) == before


def test_alembic_finds_no_difference_between_the_models_and_the_database(empty: str) -> None:
    migrate.upgrade(empty)
    command.check(migrate.configuration(empty))


def test_the_migrated_tables_are_those_of_the_models_to_the_last_check(empty: str, postgres_server: str) -> None:
    """Alembic compares no checks, partial indexes, defaults or storage options: the database's own words do."""
    migrate.upgrade(empty)
    name = f"declared_{next(numbers)}"
    on_server(postgres_server, f"CREATE DATABASE {name}")
    declared = named(postgres_server, name)
    engine = create_engine(postgres_url(declared))
    try:
        with engine.begin() as connection:
            connection.execute(text(HELPERS))
            metadata.create_all(connection)
        assert set(rows(declared, SHAPE)) ^ set(rows(empty, SHAPE)) == set()
    finally:
        engine.dispose()
        on_server(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


MIGRATE = "import sys; from orchestrator_cli import migrate; migrate.upgrade(sys.argv[1])"


def test_two_migrations_at_once_are_safe(empty: str) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", MIGRATE, empty], stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    failures = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], failures
    assert len(rows(empty, "SELECT * FROM alembic_version")) == 1
    command.check(migrate.configuration(empty))


def test_a_migration_that_fails_leaves_nothing_behind(empty: str) -> None:
    connection = psycopg2.connect(empty)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE stop_orders (in_the_way int)")
    connection.close()
    with pytest.raises(CannotStart, match="stop_orders"):
        migrate.upgrade(empty)
    assert {row[1] for row in rows(empty, OURS) if row[0] == "relation"} == {"stop_orders"}


def test_a_database_of_a_newer_version_is_refused_in_one_line(empty: str) -> None:
    migrate.upgrade(empty)
    connection = psycopg2.connect(empty)
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(CannotStart) as refused:
        migrate.upgrade(empty)
    assert "\n" not in str(refused.value)


def test_ticket_ids_are_a_permutation_of_their_numbers(database: str) -> None:
    connection = psycopg2.connect(database)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(DISTINCT right(new_ticket_id(), 8)) FROM generate_series(1, 50000)")
            assert cursor.fetchone() == (50_000,)
    finally:
        connection.close()
