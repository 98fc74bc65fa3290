"""Exports: the runs that have ended, with everything that a replay of them needs, as lines.

Nothing that is exported ever changes, so that pages in statements of their own agree with each other, and no
transaction is held while a slow reader takes them. Which runs are meant is decided once, in one statement: those
that had ended then. Of each symbol they are one unbroken row, because its runs end in their order.

What retention has dropped cannot be replayed. An export that was asked to begin there refuses; one that was not begins
with the first run whose records are all there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Text

from models.engine.lines import FORMAT, Writer
from models.engine.states import ENDED
from models.engine.tables import engine_configs, engine_outputs, engine_runs
from models.kernel.errors import Gone, NotFound

RUNS_IN_PAGE = 200
RECORDS_IN_PAGE = 2000
BYTES_IN_PAGE = 8 * 2**20
BEYOND = 2**63 - 1

_CHOSEN = text(
    """
    WITH wanted AS (
        SELECT s.symbol, h.first_seq, u.number AS unfinished
          FROM engine_symbols s CROSS JOIN engine_head h
         CROSS JOIN LATERAL (
               SELECT coalesce(min(number), :upto + 1) AS number FROM engine_runs
                WHERE symbol = s.symbol AND number BETWEEN :since AND :upto AND NOT state = ANY(:ended)) u
         WHERE s.symbol = ANY(coalesce(:symbols, ARRAY[s.symbol])))
    SELECT w.symbol, a.number AS first_number, a.cut_start_ingest_seq AS start,
           b.number AS last_number, b.cut_end_ingest_seq AS end,
           (SELECT count(*) FROM engine_runs
             WHERE symbol = w.symbol AND number BETWEEN a.number AND b.number) AS runs,
           (SELECT count(*) FROM engine_runs
             WHERE symbol = w.symbol AND number BETWEEN w.unfinished AND :upto) AS unfinished,
           d.dropped, d.first_dropped, d.last_dropped
      FROM wanted w
      LEFT JOIN LATERAL (
           SELECT number, cut_start_ingest_seq FROM engine_runs
            WHERE symbol = w.symbol AND number >= :since AND number < w.unfinished
              AND cut_start_ingest_seq >= w.first_seq
            ORDER BY number LIMIT 1) a ON true
      LEFT JOIN LATERAL (
           SELECT number, cut_end_ingest_seq FROM engine_runs
            WHERE symbol = w.symbol AND number >= a.number AND number < w.unfinished
            ORDER BY number DESC LIMIT 1) b ON true
     CROSS JOIN LATERAL (
           SELECT count(*) AS dropped, min(number) AS first_dropped, max(number) AS last_dropped FROM engine_runs
            WHERE symbol = w.symbol AND number >= :since
              AND number < least(w.unfinished, coalesce(a.number, w.unfinished))) d
     ORDER BY w.symbol
    """
).bindparams(bindparam("symbols", type_=ARRAY(Text)), bindparam("ended", sorted(ENDED), type_=ARRAY(Text)))

_STATES = text(
    """
    WITH epochs AS (SELECT DISTINCT coalesce((body #>> '{engine,state_epoch}')::int, 0) AS epoch FROM engine_configs)
    SELECT epoch, s.state
      FROM epochs
     CROSS JOIN LATERAL (
           SELECT state FROM engine_states
            WHERE symbol = :symbol AND state_epoch = epoch AND number < :number
            ORDER BY number DESC LIMIT 1) s
     ORDER BY epoch
    """
)

_RECORDS = text(
    """
    SELECT ingest_seq, ingest_ts_ms, event
      FROM (SELECT page.*, sum(octet_length(event)) OVER (ORDER BY ingest_seq) - octet_length(event) AS before
              FROM (SELECT ingest_seq, ingest_ts_ms, event FROM engine_inputs
                     WHERE ingest_seq > :after AND ingest_seq <= :upto ORDER BY ingest_seq LIMIT :most) AS page) AS s
     WHERE before < :bytes ORDER BY ingest_seq
    """
)


@dataclass(frozen=True, kw_only=True)
class Range:
    """Which runs: by number, by planned time (milliseconds, both ends included), by symbol; None leaves it open."""

    since_number: int | None = None
    upto_number: int | None = None
    since_planned_ms: int | None = None
    upto_planned_ms: int | None = None
    symbols: frozenset[str] | None = None

    @property
    def has_beginning(self) -> bool:
        return self.since_number is not None or self.since_planned_ms is not None


@dataclass(frozen=True)
class Plan:
    """What an export will hold: by symbol the runs from one number to another, which have all ended."""

    symbols: Mapping[str, Row[Any]]
    unfinished: int
    lost: Sequence[Row[Any]] = ()  # the symbols of whose runs retention has dropped records

    @property
    def runs(self) -> int:
        return sum(chosen.runs for chosen in self.symbols.values())

    @property
    def dropped(self) -> int:
        return sum(row.dropped for row in self.lost)

    @property
    def gaps(self) -> dict[str, list[int]]:
        """By symbol the first and the last run that is missing, where others before that one are not."""
        first = min((chosen.first_number for chosen in self.symbols.values()), default=BEYOND)
        return {row.symbol: [row.first_dropped, row.last_dropped] for row in self.lost if row.last_dropped > first}

    @property
    def first_whole(self) -> int | None:
        """The number from which on no run is missing; None when there is no run any more."""
        behind = max((row.last_dropped + 1 for row in self.lost), default=1)
        kept = [max(behind, row.first_number) for row in self.symbols.values() if row.last_number >= behind]
        return min(kept, default=None)

    @property
    def first_seq(self) -> int:
        return min((chosen.start for chosen in self.symbols.values()), default=1)


def plan_export(connection: Connection, wanted: Range) -> Plan:
    """Decide which runs are exported; raises NotFound for an unknown symbol, Gone when the beginning was dropped."""
    since, upto = number_bounds(connection, wanted)
    symbols = None if wanted.symbols is None else sorted(wanted.symbols)
    found = connection.execute(_CHOSEN, {"since": since, "upto": upto, "symbols": symbols}).all()
    if unknown := sorted((wanted.symbols or frozenset()) - {row.symbol for row in found}):
        raise NotFound(f"No record of symbol {unknown[0]!r} ever came", code="symbol_not_found")
    plan = Plan(
        {row.symbol: row for row in found if row.first_number is not None},
        sum(row.unfinished for row in found),
        [row for row in found if row.dropped],
    )
    if plan.dropped and wanted.has_beginning:
        raise Gone(why_dropped(plan), code="records_dropped")
    return plan


def number_bounds(connection: Connection, wanted: Range) -> tuple[int, int]:
    """Times as numbers: from the first run planned at or after, to the last planned at or before."""
    runs, since, upto = engine_runs.c, wanted.since_number or 1, wanted.upto_number
    if wanted.since_planned_ms is not None:
        first = connection.scalar(select(func.min(runs.number)).where(runs.planned_ts_ms >= wanted.since_planned_ms))
        since = max(since, BEYOND - 1 if first is None else first)
    last = select(func.coalesce(func.max(runs.number), 0))
    if wanted.upto_planned_ms is not None:
        last = last.where(runs.planned_ts_ms <= wanted.upto_planned_ms)
    found = int(connection.scalar(last) or 0)
    return since, found if upto is None else min(found, upto)


def why_dropped(plan: Plan) -> str:
    first = plan.first_whole
    kept = (
        "none of the others can be exported" if first is None else f"run number {first} is the first with all of them"
    )
    return f"Retention has dropped records of {plan.dropped} of these runs: {kept}"


def export_lines(connection: Connection, plan: Plan) -> Iterator[bytes]:
    """The lines of an export, in memory a page at a time; raises Gone when retention overtakes it.

    `connection` must commit each statement by itself.
    """
    writer = Writer()
    cuts = {symbol: [chosen.start, chosen.end] for symbol, chosen in plan.symbols.items()}
    yield writer.line("header", {"format": FORMAT, "first_ingest_seq": plan.first_seq, "symbols": cuts})
    yield from config_lines(connection, writer)
    yield from state_lines(connection, writer, plan)
    if plan.symbols:
        yield from run_lines(connection, writer, plan)
    yield writer.end(plan.gaps, unfinished=plan.unfinished, dropped=plan.dropped)


def config_lines(connection: Connection, writer: Writer) -> Iterator[bytes]:
    configs = engine_configs.c
    query = select(configs.version, configs.digest, configs.body).order_by(configs.version)
    for version, digest, body in connection.execute(query):
        yield writer.line("config", {"version": version, "digest": digest, "body": body})


def state_lines(connection: Connection, writer: Writer, plan: Plan) -> Iterator[bytes]:
    """The states before each symbol's first run: the newest of each epoch, any of which a later run may go on from."""
    for symbol, chosen in plan.symbols.items():
        for epoch, state in connection.execute(_STATES, {"symbol": symbol, "number": chosen.first_number}):
            yield writer.line("state", {"symbol": symbol, "state_epoch": epoch}, state=state)


def run_lines(connection: Connection, writer: Writer, plan: Plan) -> Iterator[bytes]:
    """Runs in the order planned, each after the records of its cut and before its outputs."""
    last_seq = max(chosen.end for chosen in plan.symbols.values())
    records = list_records(connection, plan.first_seq - 1, last_seq)
    reached = plan.first_seq - 1
    for runs in list_runs(connection, plan):
        outputs = outputs_of(connection, [run.run_id for run in runs])
        for run in runs:
            while reached < run.cut_end_ingest_seq:
                seq, ts_ms, event = next(records, (0, 0, ""))
                check_next(reached + 1, seq, run.number)
                reached = seq
                yield writer.line("record", {"ingest_seq": seq, "ingest_ts_ms": ts_ms, "event": event})
            yield writer.line("run", dict(zip(RECORD_NAMES, run, strict=True)))
            for event in outputs.get(run.run_id, ()):
                yield writer.line("output", {}, event=event)


def check_next(wanted: int, found: int, number: int) -> None:
    if wanted != found:
        why = f"Record {wanted}, of run number {number}, was dropped by retention while it was exported"
        raise Gone(why, code="records_dropped")


def list_records(connection: Connection, after: int, upto: int) -> Iterator[tuple[int, int, str]]:
    """The records in (after, upto], read in pages of so many rows and about so many bytes."""
    while after < upto:
        limits = {"after": after, "upto": upto, "most": RECORDS_IN_PAGE, "bytes": BYTES_IN_PAGE}
        page = connection.execute(_RECORDS, limits).all()
        if not page:
            return
        for row in page:
            yield row.ingest_seq, row.ingest_ts_ms, row.event
        after = page[-1].ingest_seq


RENAMED = {"run_id": "id", "status": "state"}
RECORD_NAMES = (
    "run_id",
    "number",
    "symbol",
    "engine_timestamp_ms",
    "engine_mode",
    "cut_kind",
    "cut_start_ingest_seq",
    "cut_end_ingest_seq",
    "planned_ts_ms",
    "started_ts_ms",
    "completed_ts_ms",
    "status",
    "attempts",
    "error_kind",
    "error_detail",
    "counts_by_event_type",
    "snapshot_ingest_seq",
    "config_version",
    "engine_module",
    "engine_version",
)
RECORD = tuple(engine_runs.c[RENAMED.get(name, name)].label(name) for name in RECORD_NAMES)
"""An EngineRunRecord, and what else belongs to it."""


def list_runs(connection: Connection, plan: Plan) -> Iterator[Sequence[Row[Any]]]:
    """The plan's runs in the order of their numbers, a page at a time."""
    numbers = [(chosen.first_number, chosen.last_number) for chosen in plan.symbols.values()]
    after, upto = min(numbers)[0] - 1, max(last for _, last in numbers)
    query = select(*RECORD).where(
        engine_runs.c.symbol == func.any(bindparam("symbols", type_=ARRAY(Text))),
        engine_runs.c.number > bindparam("after", type_=BigInteger),
        engine_runs.c.number <= upto,
    )
    query = query.order_by(engine_runs.c.number).limit(RUNS_IN_PAGE)
    while page := connection.execute(query, {"symbols": list(plan.symbols), "after": after}).all():
        yield [run for run in page if is_planned(plan.symbols[run.symbol], run.number)]
        after = page[-1].number


def is_planned(chosen: Row[Any], number: int) -> bool:
    return bool(chosen.first_number <= number <= chosen.last_number)


def outputs_of(connection: Connection, run_ids: Sequence[str]) -> dict[str, list[str]]:
    """The texts of what was published of these runs, in order."""
    outputs = engine_outputs.c
    query = select(outputs.run_id, outputs.event).where(outputs.run_id.in_(run_ids)).order_by(outputs.seq)
    found: dict[str, list[str]] = {}
    for run_id, event in connection.execute(query):
        found.setdefault(run_id, []).append(event)
    return found
