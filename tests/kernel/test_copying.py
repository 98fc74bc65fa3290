"""COPY: rows that are made while the server takes in those before them, all of them or none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DataError

from models.kernel.copying import DELIMITER, QUOTE, copy_rows
from models.kernel.session import transaction

MAKE = text("CREATE TEMPORARY TABLE copied (number bigint, said text)")


def numbers(connection: Connection) -> list[int]:
    return list(connection.scalars(text("SELECT number FROM copied ORDER BY 1")))


def test_chunks_are_copied_in_their_order_and_free_text_to_the_byte(database: str) -> None:
    odd = '\\N, "\\." \n\té€🐈'
    with transaction() as connection:
        connection.execute(MAKE)
        rows = (f"{number}{DELIMITER}{QUOTE}{odd}{QUOTE}\n" for number in (1, 2))
        copy_rows(connection, "copied", ("number", "said"), rows)
        assert numbers(connection) == [1, 2]
        assert set(connection.scalars(text("SELECT said FROM copied"))) == {odd}


def test_a_chunk_that_cannot_be_made_raises_its_own_error_and_keeps_nothing(database: str) -> None:
    def chunks() -> Iterator[str]:
        yield "1\n"
        raise ZeroDivisionError("no more")

    with transaction() as connection:
        connection.execute(MAKE)
        with pytest.raises(ZeroDivisionError, match="no more"), connection.begin_nested():
            copy_rows(connection, "copied", ("number",), chunks())
        assert numbers(connection) == []


def test_a_row_that_the_server_refuses_raises_what_a_statement_raises(database: str) -> None:
    with transaction() as connection:
        connection.execute(MAKE)
        with pytest.raises(DataError), connection.begin_nested():
            copy_rows(connection, "copied", ("number",), iter(["one\n"]))
        assert numbers(connection) == []
