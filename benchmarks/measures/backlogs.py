"""How fast a backlog is worked off, and how much can run at once."""

from __future__ import annotations

import sys
import time

from benchmarks.bench import Bench
from benchmarks.harness import Measure, MeasureFailed, Row, Values, alternate
from benchmarks.load import carry_out
from benchmarks.processes import Running, freeze, thaw, wait_for
from benchmarks.service import Service
from benchmarks.systems import marks

PATIENCE_SECONDS = 240.0
LOOK_SECONDS = 0.2  # between two looks whether all is done: the last end is read from what was recorded
PAGE = 1000
NAIVE_PROCESSES = 2


def backlog(bench: Bench, number: int) -> Values:
    """A backlog of no-op tickets, worked off: from the moment at which the frozen workers are let go to the last
    outcome's commit (for raw Celery, which remembers none, to the last task's line). The backlog is there in full
    when the clock starts: accepted executions and their jobs for the service, rows and messages for the others.
    The service runs whole, as `make up` runs it; the naive worker is prefork with 2 processes, raw Celery prefork
    with 2 and threads with 2 x 10, Procrastinate one process with 20 tasks at once. In the same run: the CPU
    milliseconds that each of the service's processes, and Postgres, used for a ticket.
    """
    acts = [
        lambda: of_service(bench),
        lambda: of_naive(bench),
        lambda: of_raw_celery(bench, "threads"),
        lambda: of_raw_celery(bench, "prefork"),
        lambda: of_procrastinate(bench),
    ]
    return alternate(number, acts)


def accept_all(service: Service, count: int) -> None:
    """Create so many tickets and have all of them accepted, by operations over pages of ids."""
    operations = []
    for start in range(0, count, PAGE):
        tickets = [{"command": "scan"}] * min(PAGE, count - start)
        made = service.ask("POST", "/tickets/batch", {"tickets": tickets}, 201)
        ids = [ticket["id"] for ticket in made["tickets"]]
        operations.append(service.ask("POST", "/tickets/execute", {"ids": ids}, 202)["id"])
    for each in operations:
        wait_for(lambda each=each: is_over(service, each), PATIENCE_SECONDS, "all executions are accepted")  # type: ignore[misc]


def is_over(service: Service, operation: str) -> bool:
    said = service.ask("GET", f"/operations/{operation}")
    if said["status"] == "failed" or any(said.get("refused", {}).values()):
        raise MeasureFailed(f"an operation went wrong: {str(said)[:200]}")
    return str(said["status"]) == "completed"


def is_settled(bench: Bench) -> bool:
    return is_empty(bench, "tickets WHERE state IN ('queued', 'executing')", database="service")


def is_empty(bench: Bench, rows: str, *, database: str) -> bool:
    """Whether there are no such rows: the first one answers, since counting thousands slows what is measured."""
    return not bench.query(f"SELECT 1 FROM {rows} LIMIT 1", database=database)


def last_end(bench: Bench, database: str, table: str, since: float) -> float:
    """Seconds from a moment to the last recorded end."""
    question = f"SELECT extract(epoch FROM max(completed_at))::float8 FROM {table}"
    return float(bench.query(question, database=database)[0][0]) - since


def work_off(bench: Bench, service: Service, count: int) -> float:
    """Seconds that the service takes for a backlog that is made while its I/O worker is frozen."""
    worker = service.pids_of("io")
    freeze(worker)
    try:
        accept_all(service, count)
    finally:
        began = time.time()
        thaw(worker)
    wait_for(lambda: is_settled(bench), PATIENCE_SECONDS, "the service works its backlog off", LOOK_SECONDS)
    return last_end(bench, "service", "tickets", began)


def of_service(bench: Bench) -> dict[str, float]:
    service, count = bench.service(), bench.sizes.backlog
    work_off(bench, service, max(50, count // 20))  # what is prepared once is not counted
    before = {**service.cpu_by_role(), "postgres": bench.cpu_of_postgres()}
    # the fill is in these too, where it happens: in web, system and Postgres
    seconds = work_off(bench, service, count)
    after = {**service.cpu_by_role(), "postgres": bench.cpu_of_postgres()}
    used = {f"cpu_ms_{role}": (after[role] - before[role]) / count * 1000 for role in after}
    return {"service_backlog": count / seconds, **used}


def release(workers: list[Running]) -> float:
    began = time.time()
    for worker in workers:
        worker.thaw()
    return began


def fill(bench: Bench, system: str, told: str, workers: list[Running], count: int) -> None:
    for worker in workers:
        worker.freeze()
    bench.do([sys.executable, "-m", "benchmarks.systems.fill", system, str(count)], told)


def of_naive(bench: Bench) -> dict[str, float]:
    bench.freeze()
    bench.prepare_naive()
    count = bench.sizes.backlog
    bench.query("TRUNCATE naive_tickets", database="naive")
    worker = bench.celery("benchmarks.systems.naive:celery", "naive", "--concurrency", str(NAIVE_PROCESSES))
    try:
        fill(bench, "naive", "naive", [worker], count)
        began = release([worker])
        left = "naive_tickets WHERE status <> 'completed'"
        wait_for(
            lambda: is_empty(bench, left, database="naive"), PATIENCE_SECONDS, "the naive worker is done", LOOK_SECONDS
        )
        return {"naive_backlog": count / last_end(bench, "naive", "naive_tickets", began)}
    finally:
        worker.stop()


def of_raw_celery(bench: Bench, pool: str) -> dict[str, float]:
    bench.freeze()
    count = bench.sizes.backlog
    options = ["--pool", pool, "--concurrency", "10" if pool == "threads" else "2"]
    workers = [
        bench.celery("benchmarks.systems.raw_celery:app", "raw", *options) for _ in range(1 + (pool == "threads"))
    ]
    try:
        fill(bench, "raw", "raw", workers, count)
        before = marks.count(bench.marks("raw"))
        began = time.monotonic_ns()
        release(workers)
        done = before + count
        wait_for(lambda: marks.count(bench.marks("raw")) >= done, PATIENCE_SECONDS, "raw Celery is done", LOOK_SECONDS)
        last = int(bench.marks("raw").read_text().splitlines()[-1].split()[2])
        return {f"celery_{pool}_backlog": count / ((last - began) / 1e9)}
    finally:
        for worker in workers:
            worker.stop()


def of_procrastinate(bench: Bench) -> dict[str, float]:
    bench.freeze()
    bench.prepare_queue_in_postgres()
    count = bench.sizes.backlog
    bench.query("TRUNCATE procrastinate_jobs CASCADE", database="queue_in_postgres")
    worker = bench.procrastinate()
    try:
        fill(bench, "procrastinate", "queue_in_postgres", [worker], count)
        began = release([worker])
        left = "procrastinate_jobs WHERE status <> 'succeeded'"
        wait_for(
            lambda: is_empty(bench, left, database="queue_in_postgres"),
            PATIENCE_SECONDS,
            "Procrastinate is done",
            LOOK_SECONDS,
        )
        question = "SELECT extract(epoch FROM max(at))::float8 FROM procrastinate_events WHERE type = 'succeeded'"
        last = float(bench.query(question, database="queue_in_postgres")[0][0])
        return {"procrastinate_backlog": count / (last - began)}
    finally:
        worker.stop()


def at_once(bench: Bench, _number: int) -> Values:
    """One-second drives of 200 simulated robots, by 200 requests at once that each wait for the outcome: from the
    first POST /execute written to the last answer wholly read. Every drive must have completed.
    """
    service, count = bench.service(), bench.sizes.at_once
    params = {"speed": 0.1, "duration_seconds": 1, "direction": 0}
    drives = [{"command": "drive", "params": params, "target": f"robot-{number}"} for number in range(count)]
    made = service.ask("POST", "/tickets/batch", {"tickets": drives}, 201)
    bodies = [{"ticket_id": ticket["id"]} for ticket in made["tickets"]]
    outcome = carry_out(service.order("/execute", bodies, 200, connections=count, keep_answers=True))
    failed = [answer for answer in outcome.answers if '"completed"' not in answer]
    if failed:
        raise MeasureFailed(f"{len(failed)} of {count} did not complete: {failed[0][:200]}")
    return {"at_once_seconds": outcome.seconds}


MEASURES = (
    Measure(
        "backlog",
        (
            Row(
                "no-op tickets, from backlog to all settled, against the naive service",
                "service_backlog",
                "/s",
                "naive_backlog",
                at_least=3.5,
                peers=("procrastinate_backlog",),
            ),
            Row(
                "the same against raw Celery (threads 2x10)",
                "service_backlog",
                "/s",
                "celery_threads_backlog",
                at_least=1.0,
                peers=("celery_prefork_backlog",),
            ),
        ),
        backlog,
    ),
    Measure(
        "at_once",
        (Row("one-second tickets on 200 targets at once, all settled", "at_once_seconds", "s", at_most=3.0),),
        at_once,
    ),
)
