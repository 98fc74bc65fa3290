"""What came of the runs, as others read it: in pages, and pushed to a stream from a position in a row.

An output has the ledger's number of the same event, so that whatever lies below the
ledger's horizon is decided: a reader who goes no further never passes by a late commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, func, select, update
from sqlalchemy.dialects.postgresql import insert

from models.engine.tables import engine_outputs, engine_publications
from models.kernel.horizon import find_horizon
from models.kernel.ledger import ledger
from models.kernel.tallies import tally_position

Row = RowMapping

WINDOW = 50_000
"""Most numbers that one page looks at: filters that match little must not read all outputs in one statement."""
PATIENCE_SECONDS = 0.25
COUNT_CAP = 100_000
STREAM = "stream"
MINE = engine_publications.c.name == STREAM


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
    indexed = not filters or "run_id" in filters or ("symbol" in filters and "event_type" not in filters)
    end = upto if indexed else min(after + WINDOW, upto)
    where = and_(
        engine_outputs.c.seq > after,
        engine_outputs.c.seq <= end,
        *(engine_outputs.c[name] == value for name, value in filters.items()),
    )
    rows = connection.execute(select(engine_outputs).where(where).order_by(engine_outputs.c.seq).limit(limit))
    found = rows.mappings().all()
    return found, found[-1]["seq"] if len(found) == limit else max(end, after)


def list_outputs_of_run(connection: Connection, run_id: str) -> Sequence[Row]:
    """All outputs of one run, in order; it has few."""
    mine = select(engine_outputs).where(engine_outputs.c.run_id == run_id).order_by(engine_outputs.c.seq)
    return connection.execute(mine).mappings().all()


# pushing them to a stream: whoever holds the position's row does


def find_publication(connection: Connection) -> Row | None:
    """How far the stream is; None when nothing was ever pushed."""
    return connection.execute(select(engine_publications).where(MINE)).mappings().one_or_none()


def count_pending(connection: Connection, cap: int = COUNT_CAP) -> int:
    """How many outputs the stream has yet to be given, counted up to `cap`."""
    at = func.coalesce(select(engine_publications.c.seq).where(MINE).scalar_subquery(), 0)
    waiting = select(engine_outputs.c.seq).where(engine_outputs.c.seq > at).limit(cap).subquery()
    return int(connection.scalar(select(func.count()).select_from(waiting)) or 0)


def is_due(connection: Connection) -> bool:
    """Whether an output waits. Whatever else the ledger is told is no reason to look what is decided."""
    return count_pending(connection, 1) > 0


def hold_publication(connection: Connection) -> int | None:
    """The seq up to which outputs were pushed, held until the transaction ends; None while another holds it."""
    connection.execute(insert(engine_publications).values(name=STREAM).on_conflict_do_nothing())
    held: int | None = connection.scalar(
        select(engine_publications.c.seq).where(MINE).with_for_update(skip_locked=True)
    )
    return held


def move_publication(connection: Connection, seq: int, published: Sequence[int]) -> None:
    """Everything up to `seq` was pushed, these outputs among it."""
    took = func.greatest(func.extract("epoch", func.clock_timestamp() - ledger.c.at) * 1000, 0)
    latency = select(func.coalesce(func.sum(took), 0)).where(ledger.c.seq.in_(published)).scalar_subquery()
    values: dict[str, Any] = {"seq": seq, "last_error": None}
    if published:
        values |= {
            "published": engine_publications.c.published + len(published),
            "published_at": func.clock_timestamp(),
            "latency_ms": engine_publications.c.latency_ms + latency,
        }
    connection.execute(update(engine_publications).where(MINE).values(values))


def record_failure(connection: Connection, error: str) -> None:
    """The stream took nothing, and why."""
    why = {"last_error": error.replace("\0", "")}
    made = insert(engine_publications).values(name=STREAM, **why)
    connection.execute(made.on_conflict_do_update(index_elements=["name"], set_=why))
