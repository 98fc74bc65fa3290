"""The one door to the database.

`statement()` gives a connection on which each statement is its own transaction:
one round trip, which is all that a create, a take or a settle needs.
`transaction()` gives one on which everything commits together at the end.
A thread that called `use_reserved_connections()` gets both from a few connections kept
for such threads, so that it never waits for the others of its process.
Both turn a database that is away, busy or too slow into `Unavailable`, so that no
caller ever sees a driver's exception for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterator
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import (
    DBAPIError,
    DisconnectionError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from models.kernel.errors import Conflict, Unavailable
from models.kernel.once import once
from models.kernel.settings import Settings, settings

BY_INDEX = "-c enable_seqscan=off"
"""A statement is planned once a connection, perhaps while its table holds ten rows; later there are a million.

Reading such a table from end to end looks cheap to the planner then, and for as long as nothing is analysed.
"""
HELD_BY_ANOTHER = {"55P03", "40P01"}  # for longer than the lock timeout, or while waiting for us
UNDEFINED_TABLE = "42P01"
READ_ONLY = "25006"  # what a primary becomes when another has taken its place


def to_json(value: Any) -> str:
    return orjson.dumps(value).decode()


def connect_options(chosen: Settings, planner: str) -> dict[str, Any]:
    """libpq options: every wait on the server has a deadline, a dead network is noticed in 10 s.

    No statement is worth processes of its own: starting them takes longer than any of ours.
    """
    limits = {
        "lock_timeout": int(chosen.lock_timeout * 1000),
        "statement_timeout": int(chosen.statement_timeout * 1000),
        "idle_in_transaction_session_timeout": int(chosen.statement_timeout * 1000),
    }
    return {
        "options": " ".join(f"-c {name}={value}" for name, value in limits.items())
        + f" -c timezone=UTC -c jit=off -c max_parallel_workers_per_gather=0 {planner}",
        "connect_timeout": 5,
        "application_name": "orchestrator",
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }


def refuse_dead(connection: Any, _record: Any, _proxy: Any) -> None:
    """Before a pooled connection is used: replace one that the server has closed, at the price of no round trip.

    Nothing is due on an idle connection, so that readable means closed, or about to be.
    """
    idle = select.poll()
    idle.register(connection.fileno(), select.POLLIN)
    if idle.poll(0):
        raise DisconnectionError("the server closed this connection")


def make_engine(connections: int, planner: str = "", **options: Any) -> Engine:
    chosen = settings()
    made = create_engine(
        chosen.database_url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=chosen.lock_timeout,
        connect_args=connect_options(chosen, planner),
        json_serializer=to_json,
        json_deserializer=orjson.loads,
        hide_parameters=True,  # an error is logged with its statement, never with the values of a request
        **options,
    )
    event.listen(made, "checkout", refuse_dead)
    return made


@once
def engine() -> Engine:
    """This process's engine for transactions, made on first use."""
    return make_engine(settings().database_pool)


@once
def single_statements() -> Engine:
    """This process's engine for statements that commit by themselves.

    It has connections of its own: switching one between the two modes costs more than a statement's own work.
    """
    return make_engine(settings().database_pool, isolation_level="AUTOCOMMIT", planner=BY_INDEX)


RESERVED_CONNECTIONS = 4
this_thread = threading.local()


@once
def reserved_engine() -> Engine:
    return make_engine(RESERVED_CONNECTIONS)


@once
def reserved_single_statements() -> Engine:
    return make_engine(RESERVED_CONNECTIONS, isolation_level="AUTOCOMMIT", planner=BY_INDEX)


def use_reserved_connections() -> None:
    """From now on this thread uses the connections reserved for such threads."""
    this_thread.is_reserved = True


def is_reserved() -> bool:
    return getattr(this_thread, "is_reserved", False)


ENGINES = (engine, single_statements, reserved_engine, reserved_single_statements)


def dispose_engines(*, close: bool = True) -> None:
    """Drop this process's engines; the next use makes new ones."""
    for made in ENGINES:
        if made.is_made:
            made().dispose(close=close)
        made.cache_clear()


def forget_engines() -> None:
    """After a fork: leave the parent's connections to the parent and start anew."""
    dispose_engines(close=False)


# Two processes on one inherited connection would read each other's answers.
os.register_at_fork(after_in_child=forget_engines)


@contextlib.contextmanager
def statement() -> Iterator[Connection]:
    """A connection on which each statement commits by itself.

    Raises Unavailable when the database is away or too slow, Conflict when a row
    stayed locked for longer than the lock timeout, or its holder waited for ours.
    """
    chosen = reserved_single_statements if is_reserved() else single_statements
    with plain_errors(), chosen().connect() as connection:
        yield connection


@contextlib.contextmanager
def transaction() -> Iterator[Connection]:
    """A connection whose statements commit together when the block ends, or not at all.

    Raises as `statement` does.
    """
    chosen = reserved_engine if is_reserved() else engine
    with plain_errors(), chosen().begin() as connection:
        yield connection


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, InternalError, ProgrammingError, PoolTimeout) as error:
        sqlstate = getattr(error.orig, "pgcode", None) if isinstance(error, DBAPIError) else None
        if sqlstate == UNDEFINED_TABLE:
            raise Unavailable("The schema is missing: run `orchestrator migrate`", code="schema_missing") from error
        if isinstance(error, ProgrammingError):
            raise
        if isinstance(error, InternalError) and sqlstate != READ_ONLY:
            raise
        if sqlstate in HELD_BY_ANOTHER:
            raise Conflict("Somebody else is changing this right now", code="locked") from error
        raise Unavailable("The database cannot answer right now", code="database_unavailable") from error
