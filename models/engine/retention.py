"""What of the log is kept: partitions are made ahead, and whole ones go, oldest first, once nobody needs them.

They go so that the depth stays at or under three quarters of `max_records`, and those whose last record is
older than `max_age_ms`. Needed is what an unfinished run reads, what was in no cut yet of a symbol that is
configured, and what a mark keeps. First `engine_head.first_seq` moves on, under the append lock, so that whoever
reads from it on finds everything; what lies below is dropped then, while others write.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, select, text, update

from models.engine.inputs import make_partition, partition_rows
from models.engine.tables import engine_appends, engine_configs, engine_control, engine_head, engine_marks
from models.kernel.clients import Caller
from models.kernel.errors import Conflict, Gone, Invalid, NotFound
from models.kernel.ledger import note
from models.kernel.session import transaction

log = logging.getLogger(__name__)

MARK = "engine_mark"
PARTITIONS_AHEAD = 2
KEPT_SHARE = (3, 4)

_PARTITIONS = r"""
    SELECT c.relname AS name, substring(c.relname FROM 'engine_inputs_(\d+)$')::bigint AS first,
           substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''(\d+)''\)')::bigint AS beyond,
           i.inhdetachpending AS pending
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'engine_inputs'::regclass
     ORDER BY 2
"""
_DETACHED = r"""
    SELECT c.relname FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
     WHERE c.relname ~ '^engine_inputs_\d{19}$' AND c.relkind = 'r' AND i.inhrelid IS NULL
       AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'engine_inputs'::regclass)
"""
_NEEDED = text(
    """
    SELECT least(
        (SELECT min(cut_start_ingest_seq) FROM engine_runs WHERE state IN ('planned', 'started', 'waiting')),
        (SELECT min(coalesce(cut_end_ingest_seq + 1, first_seq)) FROM engine_symbols WHERE symbol IN (
            SELECT jsonb_array_elements_text(source -> 'symbols')
              FROM engine_control JOIN engine_configs ON version = config_version,
                   jsonb_array_elements(body -> 'sources') AS source)),
        (SELECT min(ingest_seq) FROM engine_marks),
        (SELECT last_seq + 1 FROM engine_head))
    """
)
_IS_OLD = text(
    """
    SELECT (SELECT ingest_ts_ms FROM engine_appends WHERE last_seq >= :last ORDER BY last_seq LIMIT 1)
           < extract(epoch FROM clock_timestamp()) * 1000 - :max_age_ms
    """
)


def tend_inputs(connection: Connection) -> list[str]:
    """Make partitions ahead, and drop those that may go; answers the names of the dropped.

    `connection` must commit each statement by itself: a partition is detached while others write.
    """
    body: Any = connection.scalar(
        select(engine_configs.c.body).where(engine_configs.c.version == engine_control.c.config_version)
    )
    if body is None:
        return []
    bounds = body["buffer_retention"]
    with transaction() as own:
        cut_large_partitions(own, bounds["max_records"])
    make_partitions_ahead(connection, bounds["max_records"])
    with transaction() as own:
        forget_old_inputs(own, bounds["max_records"], bounds["max_age_ms"])
    return drop_forgotten(connection)


def cut_large_partitions(connection: Connection, max_records: int) -> None:
    """End the partition that is written, and drop the empty ones, where they are larger than partitions are now.

    They were made while there was to be more room: the buffer could be full before such a one is whole and may go.
    `connection` must be a transaction.
    """
    rows = partition_rows(max_records)
    head = connection.execute(select(engine_head).with_for_update()).one()
    unfinished = [each for each in list_partitions(connection) if each.beyond > head.last_seq + 1]
    if all(each.beyond - each.first <= rows for each in unfinished):
        return
    for each in unfinished:
        connection.execute(text(f'ALTER TABLE engine_inputs DETACH PARTITION "{each.name}"'))
        if each.first > head.last_seq:
            connection.execute(text(f'DROP TABLE "{each.name}"'))
        else:
            bounds = f"FROM ({each.first}) TO ({head.last_seq + 1})"
            connection.execute(text(f'ALTER TABLE engine_inputs ATTACH PARTITION "{each.name}" FOR VALUES {bounds}'))
    connection.execute(update(engine_head).values(beyond_seq=head.last_seq + 1))
    log.info("partitions were made smaller", extra={"partitions": len(unfinished), "rows": rows})


def make_partitions_ahead(connection: Connection, max_records: int) -> None:
    """So that an append seldom has to make one itself."""
    ahead = PARTITIONS_AHEAD * partition_rows(max_records)
    head = connection.execute(select(engine_head)).one()
    while head.beyond_seq <= head.last_seq + ahead:
        make_partition(connection, max_records)
        head = connection.execute(select(engine_head)).one()


def forget_old_inputs(connection: Connection, max_records: int, max_age_ms: int | None) -> int:
    """Move the log's beginning on, partition by partition, as far as the bounds ask and nobody needs what goes.

    Answers the first record that is kept. `connection` must be a transaction: it holds the append lock.
    """
    head = connection.execute(select(engine_head).with_for_update()).one()
    needed = connection.scalar(_NEEDED)  # in a statement of its own: it sees whatever the lock had to wait for
    fits = head.last_seq + 1 - max_records * KEPT_SHARE[0] // KEPT_SHARE[1]
    first = int(head.first_seq)
    for partition in list_partitions(connection):
        if partition.beyond > needed or partition.beyond > head.last_seq + 1:
            break
        if first >= fits and not is_old(connection, partition.beyond - 1, max_age_ms):
            break
        first = max(first, partition.beyond)
    if first > head.first_seq:
        connection.execute(update(engine_head).values(first_seq=first))
        connection.execute(delete(engine_appends).where(engine_appends.c.last_seq < first))
        log.info("the log begins later", extra={"first_ingest_seq": first, "forgotten": first - head.first_seq})
    return first


def list_partitions(connection: Connection) -> Sequence[Row[Any]]:
    """All that are part of the log, oldest first."""
    return connection.execute(text(_PARTITIONS)).all()


def is_old(connection: Connection, last: int, max_age_ms: int | None) -> bool:
    """Whether the record with this number came longer ago than records are kept."""
    return max_age_ms is not None and bool(connection.scalar(_IS_OLD, {"last": last, "max_age_ms": max_age_ms}))


def drop_forgotten(connection: Connection) -> list[str]:
    """Detach what lies wholly below the log's beginning, while others write, and drop what is detached."""
    begins = connection.scalar(select(engine_head.c.first_seq)) or 1
    for partition in list_partitions(connection):
        if partition.beyond <= begins:
            how = "FINALIZE" if partition.pending else "CONCURRENTLY"
            connection.execute(text(f'ALTER TABLE engine_inputs DETACH PARTITION "{partition.name}" {how}'))
    names = [str(name) for name in connection.scalars(text(_DETACHED))]
    for name in names:
        connection.execute(text(f'DROP TABLE "{name}"'))
        log.info("a part of the log was dropped", extra={"partition": name})
    return names


def list_marks(connection: Connection) -> Sequence[Row[Any]]:
    """All marks, by the record that they keep."""
    return connection.execute(select(engine_marks).order_by(engine_marks.c.ingest_seq, engine_marks.c.name)).all()


def set_mark(connection: Connection, name: str, ingest_seq: int | None, caller: Caller) -> Row[Any]:
    """Keep the records from `ingest_seq` on, or all that there are, until the mark is removed; answers the mark.

    The same mark again changes nothing. Raises Gone when the record is kept no longer, Invalid when it is beyond
    the next one, Conflict when the name marks another record. `connection` must be a transaction.
    """
    head = connection.execute(select(engine_head).with_for_update(read=True)).one()  # retention waits
    first = head.first_seq if ingest_seq is None else ingest_seq
    present = connection.execute(select(engine_marks).where(engine_marks.c.name == name)).one_or_none()
    if present is not None:
        if ingest_seq in {None, present.ingest_seq}:
            return present
        raise Conflict(f"The mark {name} keeps records from {present.ingest_seq} on already", code="mark_exists")
    if first < head.first_seq:
        raise Gone(f"Record {first} is kept no longer: the log begins with {head.first_seq}", code="records_gone")
    if first > head.last_seq + 1:
        why = f"must not be beyond the next record, {head.last_seq + 1}"
        raise Invalid(f"/ingest_seq: {why}", errors=[{"pointer": "/ingest_seq", "detail": why}])
    made = engine_marks.insert().values(name=name, ingest_seq=first, created_by=caller.name).returning(engine_marks)
    row = connection.execute(made).one()
    tell(connection, "engine_mark_set", name, first, caller)
    return row


def remove_mark(connection: Connection, name: str, caller: Caller) -> None:
    """Keep no records for this mark any more. Raises NotFound. `connection` must be a transaction."""
    gone = delete(engine_marks).where(engine_marks.c.name == name).returning(engine_marks.c.ingest_seq)
    ingest_seq = connection.scalar(gone)
    if ingest_seq is None:
        raise NotFound(f"There is no mark '{name[:64]}'".replace("\x00", "\ufffd"), code="mark_not_found")
    tell(connection, "engine_mark_removed", name, ingest_seq, caller)


def tell(connection: Connection, topic: str, name: str, ingest_seq: int, caller: Caller) -> None:
    body = {"ingest_seq": ingest_seq}
    said_by = {"actor": caller.name, "correlation_id": caller.correlation_id}
    note(connection, topic, subject=(MARK, name), body=body, **said_by)
