"""Statements that Postgres reads and plans once a connection, not once a call.

The acts of `transition` are long statements that do little: reading and planning one
took Postgres twice as long as carrying it out (`docs/adr/0018`). Each is therefore
prepared under a name of its own when a connection first needs it; what never changes
stands in its text, what a call brings is given to EXECUTE. Rows come straight off the
driver's cursor, since a result object costs more than what it holds.

Prepared statements belong to a session: a pooler between here and Postgres must pool
sessions, not transactions.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from typing import Any, NoReturn

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import psycopg2
from sqlalchemy.exc import DBAPIError

DIALECT = psycopg2.dialect()  # type: ignore[no-untyped-call]
PREPARED = "orchestrator.prepared"


class Prepared:
    """One statement in the driver's spelling, `%(name)s` for each parameter.

    `constants` are the values that are the same in every call, `types` the Postgres types of the others.
    """

    def __init__(self, sql: str, constants: Mapping[str, Any], types: Mapping[str, str]) -> None:
        self.name = "act_" + hashlib.sha256(f"{sql}{sorted(constants.items())}".encode()).hexdigest()[:24]
        self.constants = constants
        self.names: list[str] = []  # of its columns, which are the same in every call
        places = {name: f"${place}" for place, name in enumerate(types, 1)}
        kept = {name: f"%({name})s" for name in constants}
        body = sql.replace("%%", "%%%%") % {**kept, **places}
        self.preparation = f"PREPARE {self.name} ({', '.join(types.values())}) AS {body}"
        self.call = f"EXECUTE {self.name} ({', '.join(f'%({name})s' for name in types)})"

    def run(self, connection: Connection, call: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The rows of one call. Raises what SQLAlchemy raises."""
        cursor: Any = connection.connection.cursor()
        with contextlib.closing(cursor):
            try:
                known: set[str] = connection.info.setdefault(PREPARED, set())
                if self.name not in known:
                    cursor.execute(self.preparation, self.constants)
                    known.add(self.name)
                for listener in connection.dispatch.before_cursor_execute:  # who counts or times statements hears of it
                    listener(connection, cursor, self.call, call, None, False)
                cursor.execute(self.call, call)
                if not self.names:
                    self.names = [column.name for column in cursor.description]
                return [dict(zip(self.names, row, strict=True)) for row in cursor.fetchall()]
            except connection.dialect.loaded_dbapi.Error as error:
                fail(connection, cursor, self.call, error)


def prepare(statement: Any, types: Mapping[str, str]) -> Prepared:
    """A statement of SQLAlchemy's; `types` names what a call brings, the other parameters are constants."""
    made = statement.compile(dialect=DIALECT, compile_kwargs={"render_postcompile": True})
    return Prepared(str(made), {name: value for name, value in made.params.items() if name not in types}, types)


def fail(connection: Connection, cursor: Any, statement: str, error: Any) -> NoReturn:
    """Raise the driver's error as SQLAlchemy's; a connection that is gone leaves the pool."""
    gone = connection.dialect.is_disconnect(error, connection.connection.driver_connection, cursor)
    if gone:
        connection.invalidate(error)
    dialect = connection.dialect
    family = dialect.loaded_dbapi.Error
    raise DBAPIError.instance(
        statement, None, error, family, hide_parameters=True, connection_invalidated=gone, dialect=dialect
    ) from error
