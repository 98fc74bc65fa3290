"""What came of the runs, as others read it: in pages, and pushed to a stream from a position in a row.

An output has the ledger's number of the same event, so that whatever lies below the
ledger's horizon is decided: a reader who goes no further never passes by a late commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, RowMapping, and_, case, cast, func, select, true

from models.engine.tables import (
    engine_appends,
    engine_configs,
    engine_control,
    engine_head,
    engine_outputs,
    engine_publications,
)
from models.kernel.horizon import find_horizon
from models.kernel.tallies import tally_position

Row = RowMapping

WINDOW = 50_000
"""Most numbers that one page looks at: filters that match little must not read all outputs in one statement."""
PATIENCE_SECONDS = 0.25
COUNT_CAP = 100_000
STREAM = "stream"


def find_decided(connection: Connection) -> int:
    """A seq up to which everything is decided: the horizon, or, while a writer outlasts the patience, an older one.

    `connection` must commit each statement by itself.
    """
    horizon = find_horizon(connection, PATIENCE_SECONDS)
    return int(connection.scalar(select(tally_position.c.seq)) or 0) if horizon is None else horizon


def list_outputs(
    connection: Connection, filters: Mapping[str, str], *, after: int, upto: int, limit: int
) -> tuple[Sequence[Row], int]:
    """The next outputs in (after, upto], oldest first, and the seq up to which that is all.

    `filters` are exact, on symbol, event_type and run_id; `upto` must be decided.
    """
    indexed = "run_id" in filters or ("symbol" in filters and "event_type" not in filters)
    end = upto if indexed else min(after + WINDOW, upto)
    where = and_(
        engine_outputs.c.seq > after,
        engine_outputs.c.seq <= end,
        *(engine_outputs.c[name] == value for name, value in filters.items()),
    )
    rows = connection.execute(select(engine_outputs).where(where).order_by(engine_outputs.c.seq).limit(limit))
    found = rows.mappings().all()
    return found, found[-1]["seq"] if len(found) == limit else max(end, after)


def now_ms() -> Any:
    """The database's clock in whole milliseconds."""
    return cast(func.floor(func.extract("epoch", func.clock_timestamp()) * 1000), BigInteger)


def current(*members: str) -> Any:
    """A member of the present configuration as a text; null where there is none."""
    body = engine_configs.c.body[members].astext
    return select(body).where(engine_configs.c.version == engine_control.c.config_version).scalar_subquery()


def get_control(connection: Connection) -> Row:
    """The engine's row, with the `mode` of its cadence and for how long publishing has been blocked up to now."""
    since = func.extract("epoch", func.clock_timestamp() - engine_control.c.blocked_at) * 1000
    blocked_ms = engine_control.c.blocked_ms + cast(func.coalesce(since, 0), BigInteger)
    others = [column for column in engine_control.c if column.name != "blocked_ms"]
    made = select(*others, blocked_ms.label("blocked_ms"), current("scheduler", "mode").label("mode"))
    return connection.execute(made).mappings().one()


def get_buffer(connection: Connection) -> Row:
    """The log of inputs now: first_seq, last_seq, depth, capacity (null: no configuration), age_ms of its oldest."""
    head = engine_head.c
    oldest = select(engine_appends.c.ingest_ts_ms).where(engine_appends.c.last_seq >= head.first_seq)
    oldest_ts_ms = oldest.order_by(engine_appends.c.last_seq).limit(1).scalar_subquery()
    capacity = cast(current("buffer_retention", "max_records"), BigInteger).label("capacity")
    depth = (head.last_seq - head.first_seq + 1).label("depth")
    age = func.greatest(now_ms() - oldest_ts_ms, 0)
    age_ms = case((oldest_ts_ms.is_not(None), age)).label("age_ms")  # greatest() passes nulls by
    made = select(head.first_seq, head.last_seq, depth, capacity, age_ms).join(engine_control, true())
    return connection.execute(made).mappings().one()


def get_publishing(connection: Connection) -> Row:
    """How far outputs were pushed: stream (null: none), pending (up to COUNT_CAP), last_seq, last_error."""
    at, outputs = engine_publications.c, engine_outputs.c
    stream = current("output_publish", "stream").label("stream")
    waiting = select(outputs.seq).where(outputs.seq > func.coalesce(at.seq, 0)).limit(COUNT_CAP + 1)
    count = select(func.count()).select_from(waiting.correlate(engine_publications).lateral("waiting"))
    pending = case((stream.is_not(None), count.scalar_subquery()), else_=0)
    made = select(
        stream,
        func.least(pending, COUNT_CAP).label("pending"),
        (pending > COUNT_CAP).label("pending_is_estimate"),
        at.seq.label("last_seq"),
        at.last_error,
    ).select_from(engine_control.outerjoin(engine_publications, at.name == STREAM))
    return connection.execute(made).mappings().one()
