"""Whether every valid ticket succeeds when nothing is wrong."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.harness import Measure, Row, Values
from benchmarks.measures import backlogs
from benchmarks.processes import wait_for


def successes(bench: Bench, _number: int) -> Values:
    """Of 20,000 valid tickets, created 1,000 to a request, accepted by operations and carried out by the whole service
    as `make up` runs it, the share that completed, once none is pending, queued or executing any more.
    """
    service, count = bench.service(), bench.sizes.successes
    before = completed(bench)
    backlogs.accept_all(service, count)
    wait_for(lambda: backlogs.is_settled(bench), 600, f"{count} tickets end")
    return {"succeeded": (completed(bench) - before) / count * 100}


def completed(bench: Bench) -> int:
    return int(bench.query("SELECT count(*) FROM tickets WHERE state = 'completed'", database="service")[0][0])


MEASURES = (
    Measure(
        "successes",
        (Row("success of 20,000 valid tickets in normal operation", "succeeded", "%", at_least=100),),
        successes,
        rounds=1,
    ),
)
