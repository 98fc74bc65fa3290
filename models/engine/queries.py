"""Reading runs and the engine's own row. Nothing here reads history whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, RowMapping, Select, and_, case, cast, func, select, true

from models.engine.cuts import Last
from models.engine.states import ENDED, RUN, RUNNING
from models.engine.tables import (
    engine_appends,
    engine_configs,
    engine_control,
    engine_head,
    engine_runs,
    engine_states,
    engine_symbols,
    engine_totals,
)
from models.kernel.errors import Invalid, NotFound

Row = RowMapping
LIVE = sorted(RUN.states - ENDED)
COUNT_CAP = 10_000
ID_DIGITS, MORE_DIGITS = 64, 8
FILTERS = ("symbol", "state", "engine_mode", "error_kind", "config_version")


def now_ms() -> Any:
    """The database's clock in whole milliseconds."""
    return cast(func.floor(func.extract("epoch", func.clock_timestamp()) * 1000), BigInteger)


def get_now(connection: Connection) -> int:
    """The database's clock in whole milliseconds."""
    return int(connection.execute(select(now_ms())).scalar_one())


def get_run(connection: Connection, run_id: str) -> Row:
    """One run, by its id or by the first digits of it. Raises NotFound, or Invalid when several begin with them."""
    ids = engine_runs.c.id
    alike = ids.between(run_id.ljust(ID_DIGITS, "0"), run_id.ljust(ID_DIGITS, "f"))
    rows = connection.execute(select(engine_runs).where(alike).order_by(ids).limit(2)).mappings().all()
    if not rows:
        raise NotFound(f"Run '{run_id[:ID_DIGITS]}' not found", code="run_not_found")
    if len(rows) > 1:
        first, second = (row["id"][: len(run_id) + MORE_DIGITS] for row in rows)
        why = f"Several runs begin with '{run_id}', as {first}... and {second}...: give more digits"
        raise Invalid(why, errors=[{"pointer": "/run_id", "detail": "must name one run"}], code="run_id_ambiguous")
    return rows[0]


def list_runs(
    connection: Connection, filters: Mapping[str, Any], *, limit: int, before: int | None = None
) -> Sequence[Row]:
    """Runs, the one planned last first. `before` is the number of the last one seen: as fast at any depth.

    `filters` are exact, on the columns in FILTERS; `from` and `to` bound the engine's timestamp.
    """
    query = select(engine_runs).where(matching(filters)).order_by(engine_runs.c.number.desc()).limit(limit)
    if before is not None:
        query = query.where(engine_runs.c.number < before)
    return connection.execute(query).mappings().all()


def matching(filters: Mapping[str, Any]) -> Any:
    """The condition for the filters of `list_runs`."""
    at = engine_runs.c.engine_timestamp_ms
    wanted = [engine_runs.c[name] == filters[name] for name in FILTERS if name in filters]
    wanted += [at >= filters["from"]] if "from" in filters else []
    wanted += [at <= filters["to"]] if "to" in filters else []
    return and_(True, *wanted)


def count_runs(connection: Connection, filters: Mapping[str, Any]) -> tuple[int, bool]:
    """How many runs match, counted up to COUNT_CAP; and whether there are more than that."""
    some = select(engine_runs.c.id).where(matching(filters)).limit(COUNT_CAP + 1).subquery()
    found = connection.scalar(select(func.count()).select_from(some)) or 0
    return min(found, COUNT_CAP), found > COUNT_CAP


def list_attempts(connection: Connection, run_ids: Sequence[str]) -> dict[str, int]:
    """How many attempts of each of these runs ended with an answer."""
    rows = connection.execute(select(engine_runs.c.id, engine_runs.c.attempts).where(engine_runs.c.id.in_(run_ids)))
    return {row.id: row.attempts for row in rows}


def live_runs() -> Select[Any]:
    """The ids of the runs that have not ended, as a question: their history is kept."""
    return select(engine_runs.c.id).where(engine_runs.c.state.in_(LIVE))


def find_state(connection: Connection, symbol: str, number: int, epoch: int = 0) -> str | None:
    """The hysteresis state that a symbol's run of this number begins with; None when its epoch had none before."""
    states = engine_states.c
    mine = states.symbol == symbol, states.state_epoch == epoch, states.number < number
    found = select(engine_states.c.state).where(*mine).order_by(engine_states.c.number.desc()).limit(1)
    return connection.scalar(found)


def find_states(connection: Connection, runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By run: the hysteresis state that it begins with, as `find_state` says; runs without are not among them."""
    before = engine_runs.c
    states = engine_states.c
    mine = states.symbol == before.symbol, states.state_epoch == before.state_epoch, states.number < before.number
    newest = select(states.state).where(*mine).order_by(states.number.desc()).limit(1).lateral("newest")
    found = select(before.id, newest.c.state).select_from(engine_runs.join(newest, true()))
    return {row.id: row.state for row in connection.execute(found.where(before.id.in_([run["id"] for run in runs])))}


def list_lasts(connection: Connection, symbols: Sequence[str]) -> dict[str, Last]:
    """What the runs of those of these symbols have come to that have a record; the first one is the first kept."""
    known = engine_symbols.c
    first_seq = func.greatest(known.first_seq, select(engine_head.c.first_seq).scalar_subquery())
    columns = (known.symbol, first_seq, known.cut_end_ingest_seq, known.engine_timestamp_ms)
    rows = connection.execute(select(*columns).where(known.symbol.in_(symbols)))
    return {symbol: Last(*last) for symbol, *last in rows}


def get_status(connection: Connection) -> Row:
    """The engine's own row: its state, its cadence, its pauses."""
    return connection.execute(select(engine_control)).mappings().one()


def is_planning(status: Row) -> bool:
    return status["state"] == RUNNING and not status["scheduling_paused"]


def overdue_ms(status: Row, now_ms: int) -> int:
    """For how long a tick has been due that nobody has planned, and somebody should have."""
    due = status["next_tick_ms"]
    return max(0, now_ms - due) if is_planning(status) and due is not None else 0


def find_config_row(connection: Connection, version: int | None = None) -> Row | None:
    """An accepted configuration: the present one, or that of a version."""
    wanted: Any = version
    if version is None:
        wanted = select(engine_control.c.config_version).scalar_subquery()
    return connection.execute(select(engine_configs).where(engine_configs.c.version == wanted)).mappings().one_or_none()


def get_config_row(connection: Connection, version: int | None = None) -> Row:
    """The same. Raises NotFound."""
    row = find_config_row(connection, version)
    if row is None:
        which = "No configuration was accepted yet" if version is None else f"There is no configuration {version}"
        raise NotFound(which, code="config_not_found")
    return row


def get_buffer(connection: Connection) -> Row:
    """The log of inputs: first_seq, last_seq, depth, age_ms of the oldest record (null: it is empty), and now_ms."""
    head = engine_head.c
    oldest = select(engine_appends.c.ingest_ts_ms).where(engine_appends.c.last_seq >= head.first_seq)
    at = oldest.order_by(engine_appends.c.last_seq).limit(1).scalar_subquery()
    age = case((at.is_not(None), func.greatest(now_ms() - at, 0))).label("age_ms")  # greatest() passes nulls by
    depth = (head.last_seq - head.first_seq + 1).label("depth")
    row = select(head.first_seq, head.last_seq, depth, age, now_ms().label("now_ms"))
    return connection.execute(row).mappings().one()


def list_totals(connection: Connection) -> Sequence[Row]:
    """How many events were ever appended, by source and type."""
    return connection.execute(select(engine_totals)).mappings().all()
