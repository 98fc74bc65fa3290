"""How soon an accepted execution begins, and what the service adds to the driver's own time."""

from __future__ import annotations

import json

from benchmarks.bench import Bench
from benchmarks.harness import Measure, MeasureFailed, Row, Values, alternate, quantile
from benchmarks.load import Order, Outcome, carry_out
from benchmarks.measures.creates import stopping
from benchmarks.processes import wait_for
from benchmarks.service import Service
from benchmarks.systems import marks

IDLE_RATE = 20.0
PAUSE_MS = 20
SETTLING_SECONDS = 10.0
SCAN = json.dumps({"command": "scan"})


def idle(bench: Bench, number: int) -> Values:
    """Executions on an idle system, 20 a second: from the moment at which the client wrote the request to the first
    line of the driver in the worker, by the machine's monotonic clock. The service: POST /execute of a ticket that
    exists. The naive service and Procrastinate: POST /ticket, which is their only request; the first line is the one
    after the naive worker's commit of `started`. The first tenth warms up and does not count.
    """
    return alternate(number, [lambda: of_service(bench), lambda: of_naive(bench), lambda: of_procrastinate(bench)])


def named(name: str, sent: dict[str, int], noted: dict[str, tuple[int, int]]) -> dict[str, float]:
    """How long each took to begin. Raises MeasureFailed when one never began."""
    lost = set(sent) - set(noted)
    if lost:
        raise MeasureFailed(f"{name}: {len(lost)} of {len(sent)} never reached the driver")
    took = [(noted[ticket][0] - at) / 1e6 for ticket, at in sent.items()]
    counted = took[len(took) // 10 :]
    return {f"{name}_start_p{share}": quantile(counted, share / 100) for share in (50, 99)}


def prepared(service: Service, count: int, **ticket: object) -> list[str]:
    """The ids of new tickets."""
    made = service.ask("POST", "/tickets/batch", {"tickets": [{"command": "scan", **ticket}] * count}, 201)
    return [ticket["id"] for ticket in made["tickets"]]


def executed(bench: Bench, count: int, **ticket: object) -> tuple[Outcome, list[str], dict[str, tuple[int, int]]]:
    """Execute so many tickets at the idle rate, waiting for each outcome; answers also ids and the driver's notes."""
    service = bench.service()
    ids = prepared(service, count, **ticket)
    bodies = [{"ticket_id": each} for each in ids]
    order = service.order("/execute", bodies, 200, rate=IDLE_RATE, seconds=count / IDLE_RATE, keep_answers=True)
    outcome = carry_out(order)
    failed = [answer for answer in outcome.answers if json.loads(answer)["status"] != "completed"]
    if failed:
        raise MeasureFailed(f"an execution did not succeed: {failed[0][:200]}")
    return outcome, ids, marks.read(service.marks)


def of_service(bench: Bench) -> dict[str, float]:
    outcome, ids, noted = executed(bench, bench.sizes.executions)
    return named("service", {ids[n]: at for n, at in zip(outcome.numbers, outcome.sent_at_ns, strict=True)}, noted)


def begun_by_create(bench: Bench, name: str, system: str) -> dict[str, float]:
    web, port = bench.gunicorn(system)
    with stopping(web):
        seconds = bench.sizes.executions / IDLE_RATE
        outcome = carry_out(Order(port, "/ticket", [SCAN], 201, rate=IDLE_RATE, seconds=seconds, keep_answers=True))
        ids = [json.loads(answer)["id"] for answer in outcome.answers]
        sent = dict(zip(ids, outcome.sent_at_ns, strict=True))
        wait_for(lambda: set(ids) <= set(marks.read(bench.marks(system))), SETTLING_SECONDS, f"{name} carries all out")
    return named(name, sent, marks.read(bench.marks(system)))


def of_naive(bench: Bench) -> dict[str, float]:
    bench.freeze()
    bench.prepare_naive()
    with stopping(bench.celery("benchmarks.systems.naive:celery", "naive", "--concurrency", "2")):
        return begun_by_create(bench, "naive", "naive")


def of_procrastinate(bench: Bench) -> dict[str, float]:
    bench.freeze()
    bench.prepare_queue_in_postgres()
    with stopping(bench.procrastinate()):
        return begun_by_create(bench, "procrastinate", "queue_in_postgres")


def overhead(bench: Bench, _number: int) -> Values:
    """What POST /execute takes beyond the driver's own time, 20 a second on an idle system: from the moment at which
    a request was due to its answer wholly read, less the time between the driver's first line and its last, in which
    it waits for 20 ms.
    """
    outcome, ids, noted = executed(bench, bench.sizes.executions, target=f"pause-{PAUSE_MS}")
    own = [(noted[ids[n]][1] - noted[ids[n]][0]) / 1e6 for n in outcome.numbers]
    beyond = [whole - driver for whole, driver in zip(outcome.latencies_ms, own, strict=True)]
    return {f"overhead_p{share}": quantile(beyond, share / 100) for share in (50, 95, 99)}


MEASURES = (
    Measure(
        "idle",
        (
            Row(
                "execute on an idle system, request to the driver's first line: p50 against the naive service's",
                "service_start_p50",
                "ms",
                "naive_start_p50",
                at_most=0.8,
                peers=("procrastinate_start_p50",),
            ),
            Row(
                "the same: p99",
                "service_start_p99",
                "ms",
                "naive_start_p99",
                at_most=1.0,
                peers=("procrastinate_start_p99",),
            ),
        ),
        idle,
    ),
    Measure(
        "overhead",
        (Row("overhead of /execute beyond the driver's own time, p95", "overhead_p95", "ms", at_most=20),),
        overhead,
    ),
)
