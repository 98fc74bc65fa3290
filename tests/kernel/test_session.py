"""The door to the database across a fork."""

from __future__ import annotations

import os

from sqlalchemy import text

from models.kernel.session import statement

PID = text("SELECT pg_backend_pid()")


def test_a_forked_child_never_speaks_on_its_parents_connection(database: str) -> None:
    with statement() as connection:
        mine = connection.scalar(PID)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with statement() as connection:
                os.write(writer, str(connection.scalar(PID)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        theirs = int(pipe.read())
    os.waitpid(child, 0)
    assert theirs != mine
    with statement() as connection:
        assert connection.scalar(PID) == mine
