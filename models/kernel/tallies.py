"""Tallies: what the ledger says, counted, so that no answer ever counts history.

One process at a time rolls the tallies forward to the horizon; a read adds the rows
beyond it, in the same snapshot, so that every answered request is included. A tally is
named by kind, measure, name, label and bucket:

    state    how many subjects are in a state now
    topic    how often something happened
    elapsed  how long it took: a cumulative histogram by topic, label and bucket (ms),
             and the bucket `sum`
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, Column, Connection, Double, PrimaryKeyConstraint, Row, Table, Text, TextClause, text

from models.kernel.horizon import find_horizon
from models.kernel.metadata import metadata

Tally = tuple[str, str, str, str, str, float]

BUCKETS_MS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000)

tallies = Table(
    "tallies",
    metadata,
    Column("kind", Text, nullable=False),
    Column("measure", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("label", Text, nullable=False, server_default=""),
    Column("bucket", Text, nullable=False, server_default=""),
    Column("value", Double, nullable=False),
    PrimaryKeyConstraint("kind", "measure", "name", "label", "bucket"),
)

tally_position = Table(
    "tally_position",
    metadata,
    Column("singleton", Text, primary_key=True, server_default="row"),
    Column("seq", BigInteger, nullable=False),
)

_EDGES = ", ".join(f"-{edge}" for edge in reversed(BUCKETS_MS))
_FITS = f"width_bucket(-elapsed_ms, ARRAY[{_EDGES}]::float8[])"
"""Into how many of the finite buckets a duration falls: they are cumulative, so that these are the largest ones."""

_BUCKETS = ", ".join(f"('{edge}', {rank})" for rank, edge in enumerate(["+Inf", *reversed(BUCKETS_MS)]))

# Counted first, told apart afterwards: what is told apart are a few groups then, however many rows are new.
_GROUPS = "subject_kind, from_state, to_state, topic, label, fits"
_NEWS = f"{_GROUPS.replace('fits', f'{_FITS} AS fits')}, count(*)::float8 AS times, sum(elapsed_ms) AS ms"

_COUNTED = f"""
    SELECT subject_kind, 'state' AS measure, to_state AS name, '' AS label, '' AS bucket, times AS value
      FROM news WHERE to_state IS NOT NULL
    UNION ALL
    SELECT subject_kind, 'state', from_state, '', '', -times FROM news WHERE from_state IS NOT NULL
    UNION ALL
    SELECT subject_kind, 'topic', topic, label, '', times FROM news
    UNION ALL
    SELECT subject_kind, 'elapsed', topic, label, bucket.name, times
      FROM news JOIN (VALUES {_BUCKETS}) AS bucket (name, rank) ON bucket.rank <= fits
    UNION ALL
    SELECT subject_kind, 'elapsed', topic, label, 'sum', ms FROM news WHERE ms IS NOT NULL
"""  # noqa: S608 - built from the constants above

_ROLL = text(
    f"""
    WITH old AS (
        SELECT seq FROM tally_position FOR UPDATE SKIP LOCKED
    ), news AS (
        SELECT {_NEWS} FROM ledger, old WHERE ledger.seq > old.seq AND ledger.seq <= :upto
         GROUP BY {_GROUPS}
    ), rolled AS (
        INSERT INTO tallies (kind, measure, name, label, bucket, value)
        SELECT subject_kind, measure, name, label, bucket, sum(value)
          FROM ({_COUNTED}) AS counted GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
        ON CONFLICT (kind, measure, name, label, bucket) DO UPDATE SET value = tallies.value + excluded.value
    )
    UPDATE tally_position SET seq = :upto FROM old WHERE old.seq < :upto
    """  # noqa: S608
)


def reading(of_kind: str) -> TextClause:
    """The tallies and, in the same snapshot, what the ledger says beyond them."""
    return text(
        f"""
        WITH news AS (
            SELECT {_NEWS} FROM ledger
             WHERE seq > (SELECT seq FROM tally_position) {of_kind.format(kind="subject_kind")}
             GROUP BY {_GROUPS}
        )
        SELECT kind, measure, name, label, bucket, sum(value) AS value
          FROM (
            SELECT kind, measure, name, label, bucket, value FROM tallies
             WHERE measure = ANY(:measures) {of_kind.format(kind="kind")}
            UNION ALL
            SELECT subject_kind, measure, name, label, bucket, value FROM ({_COUNTED}) AS counted
             WHERE measure = ANY(:measures)
          ) AS whole
         GROUP BY kind, measure, name, label, bucket
         ORDER BY kind, measure, name, label, bucket
        """  # noqa: S608
    )


_READ = reading("AND {kind} = :kind")
_READ_ALL = reading("")


def roll_tallies(connection: Connection, at_most: int = 50_000) -> bool:
    """Roll the tallies forward to the horizon, by at most so many rows; False when a writer outlasted the wait."""
    horizon = find_horizon(connection)
    if horizon is None:
        return False
    position = int(connection.scalar(text("SELECT seq FROM tally_position")) or 0)
    connection.execute(_ROLL, {"upto": min(horizon, position + at_most)})
    return True


def read_tallies(connection: Connection, kind: str, *measures: str) -> Sequence[Row[Tally]]:
    """(kind, measure, name, label, bucket, value) of one kind of subject, up to this very moment."""
    return connection.execute(_READ, {"kind": kind, "measures": list(measures)}).all()


def read_all_tallies(connection: Connection) -> Sequence[Row[Tally]]:
    """As `read_tallies`, of every kind and measure."""
    return connection.execute(_READ_ALL, {"measures": ["state", "topic", "elapsed"]}).all()


def count_states(connection: Connection, kind: str) -> dict[str, int]:
    """How many subjects of a kind are in each state now."""
    return {row.name: int(row.value) for row in read_tallies(connection, kind, "state")}
