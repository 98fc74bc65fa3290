"""How soon many readers hear of an event."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from benchmarks.bench import Bench
from benchmarks.harness import Measure, MeasureFailed, Row, Values, quantile
from benchmarks.load import carry_out
from benchmarks.measures.creates import TICKET
from benchmarks.processes import cpu_seconds
from orchestrator_cli.migrate import ROOT

RATE = 20.0
GRACE_SECONDS = 2.0


def streams(bench: Bench, _number: int) -> Values:
    """500 readers of GET /tickets/events on one web process while tickets are created, 20 a second: from an event's
    `at` in the ledger to its receipt by a reader, over all events and all readers. A reader that did not hear each
    event exactly once and in order fails the measure.
    """
    bench.freeze()
    name = f"streams_{next(bench.numbers)}"
    bench.migrated_database(name)
    web = bench.web(name)
    command = [sys.executable, "-m", "benchmarks.systems.readers", str(web.port), str(bench.sizes.readers)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as readers:
        assert readers.stdin is not None
        assert readers.stdout is not None
        readers.stdin.write(web.token + "\n")
        readers.stdin.flush()
        if "ready" not in readers.stdout.readline():
            raise MeasureFailed("the readers could not open their streams")
        before = cpu_seconds(web.running.process.pid)
        order = web.order("/ticket", [TICKET], 201, rate=RATE, seconds=bench.sizes.stream_seconds)
        created = len(carry_out(order).latencies_ms)
        time.sleep(GRACE_SECONDS)
        used = cpu_seconds(web.running.process.pid) - before
        answer, _ = readers.communicate("over\n", timeout=60)
    web.stop()
    heard = json.loads(answer)
    wrong = [numbers for numbers in heard["numbers"] if len(numbers) != created or numbers != sorted(set(numbers))]
    if wrong:
        raise MeasureFailed(f"{len(wrong)} of {bench.sizes.readers} readers lost, doubled or reordered events")
    found = {f"event_p{share}": quantile(heard["delays"], share / 100) for share in (50, 99)}
    return {**found, "lost": 0.0, "cpu_us_an_event_and_reader": used / (created * bench.sizes.readers) * 1e6}


MEASURES = (
    Measure(
        "streams",
        (
            Row("event to SSE reader, 500 readers on one process, p99", "event_p99", "ms", at_most=250),
            Row("of them lost, doubled or reordered", "lost", "", at_most=0),
        ),
        streams,
    ),
)
