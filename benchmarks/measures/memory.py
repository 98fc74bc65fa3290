"""How much memory the processes take, and whether it grows. All figures are proportional set sizes (PSS) in MiB."""

from __future__ import annotations

import sys
import time

from benchmarks.bench import Bench
from benchmarks.harness import Measure, Row, Values
from benchmarks.load import carry_out
from benchmarks.measures import backlogs
from benchmarks.measures.creates import TICKET
from benchmarks.measures.sizes import LARGE, SMALL, filled, give_back
from benchmarks.processes import Running, pss_mib, wait_for
from benchmarks.service import Service, delete_home
from models.kernel.hints import WORK
from models.kernel.messages import lists_of

CONCURRENCY = "20"
WARM_CREATES = 2000
BATCH = 100
DRAIN_SECONDS = 6.0


def worker(bench: Bench, _number: int) -> Values:
    """The I/O worker with 20 threads after it carried out 10,000 tickets, against the naive service's worker with 20
    processes after the same; each with everything that it forked, while it still runs.
    """
    return {"service_worker": worker_of_service(bench), "naive_worker": worker_of_naive(bench)}


def worker_of_service(bench: Bench) -> float:
    bench.freeze()
    name = "memory"
    bench.migrated_database(name)
    options = {"ORCHESTRATOR_IO_CONCURRENCY": CONCURRENCY}
    service = Service(bench.directory, bench.postgres.url(name), f"{bench.valkey.url()}?virtual_host=2", **options)
    try:
        service.start()
        backlogs.accept_all(service, bench.sizes.memory_tickets)
        question = "SELECT count(*) FROM tickets WHERE state <> 'completed'"
        wait_for(lambda: bench.query(question, database=name)[0][0] == 0, 300, "10,000 tickets are carried out")
        return pss_mib(service.pids_of("io"))
    finally:
        service.stop()
        delete_home(service)


def worker_of_naive(bench: Bench) -> float:
    bench.freeze()
    bench.prepare_naive()
    bench.query("TRUNCATE naive_tickets", database="naive")
    count = str(bench.sizes.memory_tickets)
    running = bench.celery("benchmarks.systems.naive:celery", "naive", "--concurrency", CONCURRENCY)
    try:
        bench.do([sys.executable, "-m", "benchmarks.systems.fill", "naive", count], "naive")
        question = "SELECT count(*) FROM naive_tickets WHERE status <> 'completed'"
        wait_for(lambda: bench.query(question, database="naive")[0][0] == 0, 300, "the naive worker is done")
        return pss_mib(running.pids)
    finally:
        running.stop()


def web(bench: Bench, _number: int) -> Values:
    """What one web process (with its parent) has grown by from its first 2,000 single creates to its 100,000th
    create: 10,000 of the later ones single, the others 100 to a request.
    """
    bench.freeze()
    name = f"web_memory_{next(bench.numbers)}"
    bench.migrated_database(name)
    running = bench.web(name)
    total = bench.sizes.creates
    warm = min(WARM_CREATES, total // 10)
    carry_out(running.order("/ticket", [TICKET] * warm, 201))
    before = pss_mib(running.running.pids)
    singles = total // 10
    carry_out(running.order("/ticket", [TICKET] * singles, 201))
    body = '{"tickets": [' + ", ".join([TICKET] * BATCH) + "]}"
    carry_out(running.order("/tickets/batch", [body] * ((total - warm - singles) // BATCH), 201, connections=4))
    after = pss_mib(running.running.pids)
    running.stop()
    return {"web_growth": after - before, "web_after": after}


def dispatcher(bench: Bench, _number: int) -> Values:
    """What a dispatcher takes more with 1,000,000 jobs waiting than with 1,000, each after six seconds in which its
    queue is emptied as fast as it fills it.
    """
    for each in filled(bench).values():
        each.running.freeze()
    bench.freeze()
    small, large = dispatcher_on(bench, SMALL), dispatcher_on(bench, LARGE)
    return {"dispatcher_growth": large - small, "dispatcher_large": large}


def dispatcher_on(bench: Bench, name: str) -> float:
    env = bench.sized[name].service.environment
    log = bench.directory / f"dispatcher-{name}.log"
    running = Running([sys.executable, "-m", "orchestrator_tasks.dispatcher"], log, env)
    try:
        running.wait_until_it_says("dispatching")
        until = time.monotonic() + min(DRAIN_SECONDS, bench.sizes.seconds * 2)
        broker = bench.broker(1)
        while time.monotonic() < until:
            broker.delete(*lists_of("io"))
            broker.publish(WORK, "")
            time.sleep(0.05)
        return pss_mib(running.pids)
    finally:
        running.stop()
        give_back(bench, name)


MEASURES = (
    Measure(
        "worker_memory",
        (
            Row(
                "worker memory at concurrency 20 after 10,000 tickets, against the naive service's",
                "service_worker",
                "MiB",
                "naive_worker",
                at_most=0.3,
            ),
        ),
        worker,
        rounds=1,
    ),
    Measure(
        "web_memory",
        (Row("a web process after 100,000 creates has grown by", "web_growth", "MiB", at_most=10),),
        web,
        rounds=1,
    ),
    Measure(
        "dispatcher_memory",
        (Row("the dispatcher with 1,000,000 jobs waiting takes more by", "dispatcher_growth", "MiB", at_most=10),),
        dispatcher,
        rounds=1,
    ),
)
