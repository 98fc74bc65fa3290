"""Prepared statements: read once a connection, and failing as any other statement fails."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DataError, OperationalError

from models.kernel.errors import Unavailable
from models.kernel.prepared import Prepared
from models.kernel.session import statement, transaction
from tests.kernel.races import together, until

ADD = Prepared("SELECT %(one)s + %(two)s AS sum, '100%%' AS share", {"one": 1}, {"two": "integer"})
SLEEP = Prepared("SELECT pg_sleep(%(seconds)s)", {}, {"seconds": "float8"})
END = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
NAMES = text("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'act_%'")


def test_constants_stand_in_the_text_and_a_call_brings_the_rest(database: str) -> None:
    with statement() as connection:
        assert ADD.run(connection, {"two": 2}) == [{"sum": 3, "share": "100%"}]
        assert ADD.run(connection, {"two": 41}) == [{"sum": 42, "share": "100%"}]


def test_a_connection_prepares_a_statement_once(database: str) -> None:
    with statement() as connection:
        for two in range(5):
            ADD.run(connection, {"two": two})
        assert connection.scalar(NAMES) == 1


def test_a_statement_prepared_in_a_transaction_that_failed_is_still_there(database: str) -> None:
    with pytest.raises(DataError), transaction() as connection:
        assert [ADD.run(connection, {"two": 2}), connection.scalar(text("SELECT 1 / 0"))]
    with transaction() as connection:
        assert connection.scalar(NAMES) == 1
        assert ADD.run(connection, {"two": 2})[0]["sum"] == 3


def test_a_connection_that_the_server_ends_in_mid_act_is_unavailable_and_leaves_the_pool(database: str) -> None:
    with statement() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))

    def sleep(_other: Connection) -> None:
        with pytest.raises(Unavailable) as refused, statement() as connection:
            SLEEP.run(connection, {"seconds": 8})
        assert refused.value.code == "database_unavailable"

    def end(connection: Connection) -> None:
        until(lambda: connection.execute(END).all(), "somebody sleeps")

    together(sleep, end)
    with statement() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != pid
        assert ADD.run(connection, {"two": 2})[0]["sum"] == 3


def test_a_value_that_postgres_refuses_is_sqlalchemy_s_error_and_shows_no_parameters(database: str) -> None:
    with statement() as connection:
        with pytest.raises(Exception, match="invalid input syntax") as refused:
            ADD.run(connection, {"two": "secret-value"})
        assert not isinstance(refused.value, OperationalError)
        assert "secret-value" not in str(refused.value).partition("[SQL")[2]
        assert ADD.run(connection, {"two": 2})[0]["sum"] == 3
