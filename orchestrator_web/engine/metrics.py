"""The engine's metrics under the contract's names, with dots as underscores. All of them are read from rows.

So they are the same whichever process answers and go on where they were after a restart. A counter's
name ends in `_total`, as Prometheus has it. Labels come from the configuration and from what the contract names, never
from what a sender makes up: an event type of its own counts as `other`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric

from models.engine import control, events, queries
from models.engine.publications import find_publication
from models.engine.states import ENGINE, RUN
from orchestrator_web.engine import answers

KNOWN_TYPES = frozenset(
    {
        *("TradeTick", "BookTop", "BookDelta", "Candle", "FundingRate", "OpenInterest", "MarkPrice", "IndexPrice"),
        *("LiquidationPrint", "SnapshotInputs", "DecodeFailure"),
    }
)
OTHER = "other"
OUTCOMES = {events.COMPLETED: "success", events.FAILED: "failure"}
TYPES = {
    events.STARTED: events.RUN_STARTED,
    events.COMPLETED: events.RUN_COMPLETED,
    events.FAILED: events.RUN_FAILED,
    events.DECIDED: events.DECISION_PUBLISHED,
}

Tallies = Iterable[Any]


def families(connection: Any, tallies: Tallies) -> Iterator[Metric]:
    """All of them; `tallies` are everything that was counted, of every kind."""
    mine = [row for row in tallies if row.kind in {RUN.kind, ENGINE.kind}]
    told = Counter({(row.kind, row.name): 0 for row in mine})
    for row in mine:
        if row.measure == "topic":
            told[row.kind, row.name] += int(row.value)
    row, buffer = queries.get_status(connection), queries.get_buffer(connection)
    yield from of_ingest(queries.list_totals(connection), buffer)
    yield from of_scheduler(row, buffer["now_ms"])
    yield from of_runs(mine, told)
    yield from of_publishing(told, find_publication(connection) or {})
    yield from of_backpressure(told, row, buffer["now_ms"])
    if answers.stream_of(answers.body_of_config(connection))["stream"]:
        yield gauge(
            "orchestrator_subscription_paused", "Whether its stream is not read", float(row["ingestion_paused"])
        )
    ready = answers.read_health(connection)["ready"]
    yield gauge("orchestrator_engine_ready", "Whether the engine runs and nothing is paused", float(ready))


def gauge(name: str, documentation: str, value: float | None) -> GaugeMetricFamily:
    """One number; no sample where there is none."""
    made = GaugeMetricFamily(name, documentation, labels=[])
    if value is not None:
        made.add_metric([], value)
    return made


def counter(name: str, documentation: str, label: str, values: Mapping[str, float]) -> CounterMetricFamily:
    made = CounterMetricFamily(name, documentation, labels=[label])
    for which, value in sorted(values.items()):
        made.add_metric([which], value)
    return made


def of_ingest(totals: Iterable[Mapping[str, Any]], buffer: Mapping[str, Any]) -> Iterator[Metric]:
    counts: Counter[tuple[str, str]] = Counter()
    for row in totals:
        known = row["event_type"] if row["event_type"] in KNOWN_TYPES else OTHER
        counts[row["source_id"], known] += row["events"]
    made = CounterMetricFamily("orchestrator_ingest_count", "Events appended", labels=["source_id", "event_type"])
    for labels, value in sorted(counts.items()):
        made.add_metric(labels, value)
    yield made
    yield gauge("orchestrator_buffer_depth", "Records that the buffer keeps", buffer["depth"])
    yield gauge("orchestrator_buffer_age_ms", "Age of the oldest record that is kept", buffer["age_ms"])


def of_scheduler(row: Mapping[str, Any], now_ms: int) -> Iterator[Metric]:
    yield CounterMetricFamily("orchestrator_scheduler_ticks", "Ticks that were planned", value=row["ticks"])
    yield CounterMetricFamily("orchestrator_scheduler_missed", "Ticks too old to be planned", value=row["missed_ticks"])
    skipped = "Symbols at ticks with nothing new for them"
    yield CounterMetricFamily("orchestrator_scheduler_skipped", skipped, value=row["skipped_ticks"])
    yield gauge("orchestrator_scheduler_lag_ms", "How late the last tick was planned", row["lag_ms"])
    overdue = "For how long a tick has been due that nobody has planned"
    yield gauge("orchestrator_scheduler_overdue_ms", overdue, queries.overdue_ms(row, now_ms))


def of_runs(mine: Tallies, told: Mapping[tuple[str, str], int]) -> Iterator[Metric]:
    ended = {status: told.get((RUN.kind, topic), 0) for topic, status in OUTCOMES.items()}
    yield counter("orchestrator_engine_runs", "Runs that ended", "status", ended)
    buckets: dict[str, Counter[str]] = {topic: Counter() for topic in OUTCOMES}
    for row in mine:
        if row.measure == "elapsed" and row.name in OUTCOMES:
            buckets[row.name][row.bucket] += row.value
    made = HistogramMetricFamily(
        "orchestrator_engine_duration_ms", "How long runs' last attempts took", labels=["status"]
    )
    for topic, values in buckets.items():
        total = values.pop("sum", 0.0)
        if values:
            edges = sorted(values.items(), key=lambda pair: float(pair[0].replace("+Inf", "inf")))
            made.add_metric([OUTCOMES[topic]], edges, total)
    yield made


def of_publishing(told: Mapping[tuple[str, str], int], publication: Mapping[str, Any]) -> Iterator[Metric]:
    recorded = {event_type: told.get((RUN.kind, topic), 0) for topic, event_type in TYPES.items()}
    yield counter("orchestrator_publish_count", "Outputs, from when they can be read", "event_type", recorded)
    count, total = publication.get("published", 0), publication.get("latency_ms", 0.0)
    why = "From when outputs could be read until their Redis stream had them"
    yield SummaryMetricFamily("orchestrator_publish_latency_ms", why, count_value=count, sum_value=total)


def of_backpressure(told: Mapping[tuple[str, str], int], row: Mapping[str, Any], now_ms: int) -> Iterator[Metric]:
    paused = {"publish": row["blocks"], "ingest": told.get((ENGINE.kind, control.INGESTION_PAUSED), 0)}
    yield counter("orchestrator_backpressure_count", "How often something was paused", "domain", paused)
    blocked = {"publish": answers.blocked_ms(row, now_ms)}
    yield counter("orchestrator_backpressure_blocked_ms", "For how long planning was paused", "domain", blocked)
