"""GET /metrics: Prometheus text. What happened is read from the tallies; what HTTP did, from all web processes.

With PROMETHEUS_MULTIPROC_DIR set (by `python -m orchestrator_web`) the counters of
every web process are added up, so the answer is right whichever process gives it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from models.kernel.processes import list_fresh_roles
from models.kernel.session import statement
from models.kernel.settings import settings
from models.kernel.tallies import read_all_tallies
from models.tickets.stops import count_untaken_stops
from orchestrator_web.engine import metrics as engine

MS_IN_SECOND = 1000.0

APPEND_FAILURES = Counter("orchestrator_buffer_append_failures", "Batches that could not be appended", ["code"])
UNAUTHENTICATED = Counter("orchestrator_unauthenticated", "Requests without a valid credential", ["code"])
REQUESTS = Histogram(
    "orchestrator_http_request_seconds",
    "Time to answer a request, waiting for outcomes excluded",
    ["method", "path", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


class Ledgered(Collector):
    """What the ledger says, through the tallies: right with any number of processes and after a restart."""

    def collect(self) -> Iterator[Metric]:
        states = GaugeMetricFamily("orchestrator_subjects", "Subjects by state", labels=["kind", "state"])
        topics = CounterMetricFamily("orchestrator_events", "What happened", labels=["kind", "topic", "label"])
        elapsed = HistogramMetricFamily(
            "orchestrator_elapsed_seconds", "How long what ended took", labels=["kind", "topic", "label"]
        )
        roles = GaugeMetricFamily("orchestrator_role_up", "Whether a process of the role runs", labels=["role"])
        owed = GaugeMetricFamily("orchestrator_stops_owed", "Stops ordered that no robot has taken yet", labels=[])
        with statement() as connection:
            tallies = read_all_tallies(connection)
            for kind, rows in itertools.groupby(tallies, key=lambda row: row.kind):
                self.add(kind, rows, states, topics, elapsed)
            of_engine = [*engine.families(connection, tallies)]
            fresh = list_fresh_roles(connection)
            owed.add_metric([], count_untaken_stops(connection))
        for role in sorted(settings().process_roles):
            roles.add_metric([role], float(role in fresh))
        yield from (states, topics, elapsed, roles, owed, *of_engine)

    def add(
        self,
        kind: str,
        rows: object,
        states: GaugeMetricFamily,
        topics: CounterMetricFamily,
        elapsed: HistogramMetricFamily,
    ) -> None:
        histograms: dict[tuple[str, str], dict[str, float]] = {}
        for _, measure, name, label, bucket, value in rows:  # type: ignore[attr-defined]
            if measure == "state":
                states.add_metric([kind, name], max(value, 0.0))  # the ledger never heard that the engine was made
            elif measure == "topic":
                topics.add_metric([kind, name, label], value)
            else:
                histograms.setdefault((name, label), {})[bucket] = value
        for (name, label), values in histograms.items():
            total = values.pop("sum", 0.0)
            edges = sorted(values.items(), key=lambda pair: float(pair[0].replace("+Inf", "inf")))
            buckets = [(edge if edge == "+Inf" else str(float(edge) / MS_IN_SECOND), n) for edge, n in edges]
            elapsed.add_metric([kind, name, label], buckets, total / MS_IN_SECOND)


def exposition() -> bytes:
    """Everything, as Prometheus text."""
    registry = CollectorRegistry()
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        multiprocess.MultiProcessCollector(registry)
    else:
        registry.register(UNAUTHENTICATED)
        registry.register(APPEND_FAILURES)
        registry.register(REQUESTS)
    registry.register(Ledgered())
    return generate_latest(registry)
