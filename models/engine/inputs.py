"""The log of inputs: appended under one lock, numbered without gaps in the order of commits, read by cuts.

Whoever appends holds the row of `engine_head` until the commit. So the next one numbers on from what
was committed, and its `ingest_ts_ms` is never older. A cut at a planned time is the newest append that is not
younger; once `close_time` has passed that time under the same lock, no append can still be as old:
a cut that was taken never gains a record. An append that is rolled back leaves no gap.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sqlalchemy import Connection, func, select, text, update

from models.engine.batches import Batch
from models.engine.contract import Received
from models.engine.states import STOPPED
from models.engine.tables import engine_appends, engine_configs, engine_control, engine_head, engine_inputs
from models.kernel.copying import copy_rows
from models.kernel.errors import Conflict, Invalid, OrchestratorError, Unavailable
from models.kernel.prepared import Prepared
from models.kernel.session import plain_errors, to_json

COLUMNS = tuple(column.name for column in engine_inputs.columns)
ROWS_IN_CHUNK = 1024
FULL_SECONDS, STOPPED_SECONDS, BUSY_SECONDS = 5.0, 30.0, 1.0
FEWEST_ROWS, MOST_ROWS = 1000, 1_000_000
PARTS, FEWEST_PARTS = 16, 4
MOST_TOTALS, OTHER = 1000, "other"
OF_A_CUT = ("id", "symbol", "engine_timestamp_ms", "cut_start_ingest_seq", "cut_end_ingest_seq")

_APPEND = Prepared(
    """
    WITH head AS (
        UPDATE engine_head
           SET last_seq = last_seq + %(n)s,
               last_ts_ms = greatest(last_ts_ms,
                                     coalesce(%(now_ms)s, floor(extract(epoch FROM clock_timestamp()) * 1000)))
         WHERE last_seq - first_seq + 1 + %(n)s <= %(max_records)s
           AND NOT EXISTS (SELECT FROM engine_control WHERE %(stopped)s = state)
        RETURNING last_seq, last_ts_ms, beyond_seq
    )
    SELECT * FROM head
    """,
    {"stopped": STOPPED},
    {"n": "bigint", "now_ms": "bigint", "max_records": "bigint"},
)
_COUNT = Prepared(
    """
    WITH appended AS (
        INSERT INTO engine_appends (last_seq, first_seq, ingest_ts_ms, counts)
        VALUES (%(first_seq)s + %(n)s - 1, %(first_seq)s, %(ingest_ts_ms)s, %(counts)s)
    ), came AS (
        SELECT r.*, t.events IS NOT NULL AS known
          FROM jsonb_to_recordset(%(totals)s) AS r (source_id text, event_type text, events bigint)
          LEFT JOIN engine_totals AS t USING (source_id, event_type)
    ), named AS ( -- what a sender calls its events is its own affair; how many names are counted apart is not
        SELECT source_id, events, CASE WHEN known OR (SELECT count(*) FROM engine_totals)
               + row_number() OVER (PARTITION BY known ORDER BY source_id, event_type) <= %(most_totals)s
               THEN event_type ELSE %(other)s END AS event_type
          FROM came
    ), counted AS (
        INSERT INTO engine_totals AS t (source_id, event_type, events)
        SELECT source_id, event_type, sum(events) FROM named GROUP BY 1, 2
        ON CONFLICT (source_id, event_type) DO UPDATE SET events = t.events + excluded.events
    ), met AS (
        INSERT INTO engine_symbols (symbol, first_seq)
        SELECT key, %(first_seq)s - 1 + value::bigint FROM jsonb_each_text(%(places)s)
         WHERE NOT EXISTS (SELECT FROM engine_symbols WHERE symbol = key) -- which waits for no planner
        ON CONFLICT (symbol) DO NOTHING
    )
    SELECT
    """,
    {"most_totals": MOST_TOTALS, "other": OTHER},
    {
        "n": "bigint",
        "first_seq": "bigint",
        "ingest_ts_ms": "bigint",
        "counts": "jsonb",
        "totals": "jsonb",
        "places": "jsonb",
    },
)
_SNAPSHOTS = Prepared(
    """
    SELECT cut.id, found.ingest_seq, found.event
      FROM jsonb_to_recordset(%(cuts)s) AS cut
           (id text, symbol text, engine_timestamp_ms bigint, cut_start_ingest_seq bigint, cut_end_ingest_seq bigint),
           LATERAL (
            SELECT ingest_seq, event FROM engine_inputs
             WHERE symbol = cut.symbol AND snapshot_ts_ms = cut.engine_timestamp_ms
               AND ingest_seq BETWEEN cut.cut_start_ingest_seq AND cut.cut_end_ingest_seq
             ORDER BY ingest_seq DESC LIMIT 1) AS found
    """,
    {},
    {"cuts": "jsonb"},
)
_CUT_END = (
    select(engine_appends.c.last_seq).order_by(engine_appends.c.ingest_ts_ms.desc(), engine_appends.c.last_seq.desc())
).limit(1)
_COUNTS = text(
    """
    SELECT s.key AS symbol, e.key AS event_type, sum(e.value::bigint)::bigint AS events
      FROM engine_appends, jsonb_each(counts) AS s, jsonb_each_text(s.value) AS e
     WHERE last_seq > :after AND last_seq <= :upto
     GROUP BY 1, 2
    """
)


@dataclass(frozen=True, slots=True)
class Appended:
    """Where one batch of events lies in the log."""

    accepted: int
    first_ingest_seq: int
    last_ingest_seq: int
    ingest_ts_ms: int
    source_ids: Sequence[str]
    symbols: Sequence[str]


def append_events(
    connection: Connection, received: Sequence[Received], *, max_records: int, now_ms: int | None = None
) -> Appended:
    """Append a batch, all or nothing; `connection` must be a transaction. `now_ms` stands in for the database's clock.

    Raises Unavailable: `buffer_full`, `engine_stopped`, or `buffer_busy` while others append for too long.
    """
    if not received:
        raise Invalid("There are no events", code="no_events")
    parts = (received[start : start + ROWS_IN_CHUNK] for start in range(0, len(received), ROWS_IN_CHUNK))
    return append_parts(connection, len(received), parts, max_records=max_records, now_ms=now_ms)


def append_parts(
    connection: Connection, n: int, parts: Iterator[Sequence[Received]], *, max_records: int, now_ms: int | None = None
) -> Appended:
    """Append a batch of `n` events as `append_events` does, each part made while Postgres takes in those before it.

    The first part is made before others have to wait. Raises also what the making of a part raises.
    """
    first_part = next(parts)
    first_seq, ingest_ts_ms = reserve(connection, n, max_records, now_ms)
    batch = Batch()
    chunks = (batch.rows_of(part, first_seq, ingest_ts_ms) for part in itertools.chain([first_part], parts))
    copy_rows(connection, engine_inputs.name, COLUMNS, chunks)
    _COUNT.run(connection, {"n": n, "first_seq": first_seq, "ingest_ts_ms": ingest_ts_ms, **batch.facts()})
    return Appended(n, first_seq, first_seq + n - 1, ingest_ts_ms, *batch.names())


def reserve(connection: Connection, n: int, max_records: int, now_ms: int | None) -> tuple[int, int]:
    """Lock the log's head and draw its next numbers; answers the first, and the time of them all."""
    try:
        with plain_errors():
            rows = _APPEND.run(connection, {"n": n, "now_ms": now_ms, "max_records": max_records})
    except Conflict:
        why = "Others have been appending for too long"
        raise Unavailable(why, code="buffer_busy", retry_after=BUSY_SECONDS) from None
    if not rows:
        refuse(connection, n, max_records)
    last_seq, ingest_ts_ms, beyond_seq = rows[0].values()
    while beyond_seq <= last_seq:
        beyond_seq = make_partition(connection, max_records)
    return last_seq - n + 1, ingest_ts_ms


def tell_batch(received: Sequence[Received], appended: Appended) -> None:
    """One line in the log for a batch, not one for each event; `received` may be the end of it."""
    last = received[-1]
    facts = {
        "accepted": appended.accepted,
        "source_id": appended.source_ids,
        "symbol": appended.symbols,
        "ingest_seq": appended.first_ingest_seq,
        "last_ingest_seq": appended.last_ingest_seq,
        "ingest_ts_ms": appended.ingest_ts_ms,
        "recv_ts_ms": last.recv_ts_ms,
        "exchange_ts_ms": last.exchange_ts_ms,
    }
    logging.getLogger("orchestrator.ingest").info("events appended", extra=facts)


def tell_failure(domain: str, error: OrchestratorError) -> None:
    """A line in the log for what went wrong; `domain` is ingest, buffer, engine or publish."""
    facts = {"failure_domain": domain, "error_kind": error.code, "error_detail": error.message}
    logging.getLogger("orchestrator.failure").warning("failed", extra=facts)


def refuse(connection: Connection, n: int, max_records: int) -> NoReturn:
    state = connection.scalar(select(engine_control.c.state))
    if state == STOPPED:
        raise Unavailable("The engine is stopped", code="engine_stopped", retry_after=STOPPED_SECONDS)
    depth = connection.scalar(select(engine_head.c.last_seq - engine_head.c.first_seq + 1))
    why = f"The buffer holds {depth} of {max_records} records: there is no room for {n} more"
    raise Unavailable(why, code="buffer_full", retry_after=FULL_SECONDS)


def partition_rows(max_records: int) -> int:
    """How many records a partition holds: a sixteenth of the capacity within bounds, and never more than a quarter."""
    return max(1, min(max(max_records // PARTS, FEWEST_ROWS), MOST_ROWS, max_records // FEWEST_PARTS))


def make_partition(connection: Connection, max_records: int) -> int:
    """Make the next partition; answers the first number beyond it."""
    rows = partition_rows(max_records)
    first = connection.scalar(text("SELECT engine_make_partition(:rows)"), {"rows": rows})
    return int(first or 0) + rows


def close_time(connection: Connection, now_ms: int) -> None:
    """Wait for the appends under way, and let no later one be older than `now_ms`.

    Raises Conflict when they take too long.
    """
    connection.execute(update(engine_head).values(last_ts_ms=func.greatest(engine_head.c.last_ts_ms, now_ms)))


@dataclass(frozen=True)
class Intake:
    """What the present configuration says of events that come in."""

    sources: Mapping[str, frozenset[str]]
    alignment_ms: int
    max_records: int


def get_intake(connection: Connection) -> Intake:
    """Whom to take events from, and how many. Raises Unavailable `engine_not_configured`."""
    present = select(engine_configs.c.body).where(engine_configs.c.version == engine_control.c.config_version)
    body: Any = connection.scalar(present)
    if body is None:
        why = "No configuration of the engine has been accepted yet"
        raise Unavailable(why, code="engine_not_configured", retry_after=FULL_SECONDS)
    sources = {source["source_id"]: frozenset(source["symbols"]) for source in body["sources"]}
    return Intake(sources, body["engine"]["alignment_ms"], body["buffer_retention"]["max_records"])


def find_cut_end(connection: Connection, planned_ts_ms: int) -> int:
    """The last record that had come by then, 0 when none had. It is final once time was closed beyond then."""
    return int(connection.scalar(_CUT_END.where(engine_appends.c.ingest_ts_ms <= planned_ts_ms)) or 0)


def count_records(connection: Connection, after: int, upto: int) -> dict[str, dict[str, int]]:
    """How many records of each symbol and event type are in (after, upto]; both are ends of appends."""
    counts: dict[str, dict[str, int]] = {}
    for row in connection.execute(_COUNTS, {"after": after, "upto": upto}):
        counts.setdefault(row.symbol, {})[row.event_type] = row.events
    return counts


def find_snapshots(connection: Connection, runs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, str]]:
    """By run: the last SnapshotInputs of its symbol, for its timestamp, in its cut; runs without are not among them."""
    cuts = to_json([{name: run[name] for name in OF_A_CUT} for run in runs])
    return {row["id"]: (row["ingest_seq"], row["event"]) for row in _SNAPSHOTS.run(connection, {"cuts": cuts})}


def find_snapshot(
    connection: Connection, symbol: str, engine_timestamp_ms: int, start: int, end: int
) -> tuple[int, str] | None:
    """The last SnapshotInputs of a symbol for this timestamp among the records from `start` to `end`."""
    cut = dict(zip(OF_A_CUT, ("", symbol, engine_timestamp_ms, start, end), strict=True))
    return find_snapshots(connection, [cut]).get("")
