"""How many tickets a second can be created, and how long one takes."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.harness import Measure, MeasureFailed, Row, Values, alternate, quantile
from benchmarks.load import CONNECTIONS, Order, carry_out
from benchmarks.processes import Running, cpu_seconds, free_port
from orchestrator_cli.embedded.binaries import postgres_binary
from orchestrator_cli.embedded.postgres import DATABASE

TICKET = json.dumps({"command": "drive", "params": {"speed": 1.5, "direction": 90, "duration_seconds": 5}})
WARM_SECONDS = 0.5
PROCESSES = 2
BATCH = 100
OPEN_RATE = 100.0
INSERT = """\
INSERT INTO tickets (command, params, priority, timeout_seconds, metadata, target, tenant, created_by, state,
    correlation_id)
VALUES ('drive', '{"speed": 1.5, "direction": 90, "duration_seconds": 5}', 'normal', 300, '{}', 'default', 'default',
    'bench', 'pending', gen_random_uuid()::text);
"""
COPIED = "command, params, priority, timeout_seconds, metadata, target, tenant, created_by, state, correlation_id"


def single_creates(bench: Bench, number: int) -> Values:
    """Single creates, 16 keep-alive clients in a closed loop, each request one ticket: requests a second from the
    first request sent to the last answer received, after half a second that does not count. The service runs whole;
    while a baseline is measured it stands still, and while it is measured no baseline runs. gunicorn is started anew
    for every slice of every round. No baseline asks who is calling. In the same slices: p50 and p99 of a request,
    from written to wholly read; the share of a core that the clients used; the CPU
    milliseconds of a create in the service's web processes and in Postgres.
    """
    acts = [
        lambda: of_service(bench),
        lambda: of_echo(bench),
        lambda: of_naive(bench, "/ticket", "naive"),
        lambda: of_naive(bench, "/forgetful", "forgetful"),
        lambda: of_naive(bench, "/draft", "commit_only"),
        lambda: of_procrastinate(bench),
    ]
    return alternate(number, acts)


def slice_of(bench: Bench, order: Order, name: str) -> dict[str, float]:
    carry_out(Order(**{**vars(order), "seconds": min(WARM_SECONDS, bench.sizes.seconds)}))
    outcome = carry_out(Order(**{**vars(order), "seconds": bench.sizes.seconds}))
    found = {"rate": outcome.rate, "client_cpu_share": outcome.cpu_seconds / outcome.seconds}
    found |= {f"p{share}": quantile(outcome.latencies_ms, share / 100) for share in (50, 99)}
    return {f"{name}_{what}": value for what, value in found.items()}


def of_service(bench: Bench) -> dict[str, float]:
    service = bench.service()
    web = service.pid_of("web")
    question = "SELECT last_value FROM ledger_seq"
    before, postgres, seq = cpu_seconds(web), bench.cpu_of_postgres(), bench.query(question, database="service")[0][0]
    found = slice_of(bench, service.order("/ticket", [TICKET], 201), "service")
    made = bench.query(question, database="service")[0][0] - seq
    found["service_web_cpu_ms"] = (cpu_seconds(web) - before) / made * 1000
    found["service_postgres_cpu_ms"] = (bench.cpu_of_postgres() - postgres) / made * 1000
    return found


def of_echo(bench: Bench) -> dict[str, float]:
    bench.freeze()
    port = free_port()
    echo = bench.run("echo", [sys.executable, "-m", "benchmarks.systems.echo", str(port), str(PROCESSES)], "echo")
    with stopping(echo):
        echo.wait_until_it_answers(port)
        return slice_of(bench, Order(port, "/ticket", [TICKET], 201), "echo")


def of_naive(bench: Bench, path: str, name: str) -> dict[str, float]:
    bench.freeze()
    bench.prepare_naive()
    web, port = bench.gunicorn("naive")
    with stopping(web):
        found = slice_of(bench, Order(port, path, [TICKET], 201), name)
    bench.broker().delete("naive")  # nobody works here: what was sent is not carried out
    return found


def of_procrastinate(bench: Bench) -> dict[str, float]:
    bench.freeze()
    bench.prepare_queue_in_postgres()
    web, port = bench.gunicorn("queue_in_postgres")
    with stopping(web):
        found = slice_of(bench, Order(port, "/ticket", [TICKET], 201), "procrastinate")
    bench.query("TRUNCATE procrastinate_jobs CASCADE", database="queue_in_postgres")
    return found


@contextlib.contextmanager
def stopping(running: Running) -> Iterator[None]:
    try:
        yield
    finally:
        running.stop()


def open_loop(bench: Bench, _number: int) -> Values:
    """Single creates at a constant 100 a second over 16 connections, open loop: from the moment at which a request
    was due, whatever became of the ones before, to its answer wholly read.
    """
    service = bench.service()
    seconds = bench.sizes.open_seconds
    outcome = carry_out(service.order("/ticket", [TICKET], 201, rate=OPEN_RATE, seconds=seconds))
    shares = {f"open_p{share}": quantile(outcome.latencies_ms, share / 100) for share in (50, 95, 99)}
    return {**shares, "client_cpu_share": outcome.cpu_seconds / outcome.seconds}


def batches(bench: Bench, number: int) -> Values:
    """Tickets a second by POST /tickets/batch, 1,000 tickets a request, 4 clients in a closed loop, against single
    creates by 16 clients in the same round, each from the first request sent to the last answer received. Beside it
    what Postgres itself gives: rows a second by COPY, all in one transaction, and by single-row INSERTs that commit
    each (pgbench, 16 clients), into the service's own table with all its indexes; no ledger, no HTTP.
    """
    acts = [lambda: singles(bench), lambda: in_batches(bench), lambda: limits(bench)]
    return alternate(number, acts)


def singles(bench: Bench) -> dict[str, float]:
    order = bench.service().order("/ticket", [TICKET], 201, seconds=bench.sizes.seconds)
    return {"single_rate": carry_out(order).rate}


def in_batches(bench: Bench) -> dict[str, float]:
    size = min(1000, bench.sizes.backlog)
    body = json.dumps({"tickets": [json.loads(TICKET)] * size})
    service = bench.service()
    order = service.order("/tickets/batch", [body], 201, seconds=bench.sizes.seconds, connections=4)
    return {"batch_rate": carry_out(order).rate * size}


def limits(bench: Bench) -> dict[str, float]:
    bench.freeze()
    name = f"limits_{next(bench.numbers)}"
    bench.migrated_database(name)
    return {"copy_rate": copy_rate(bench, name), "insert_rate": insert_rate(bench, name)}


def copy_rate(bench: Bench, database: str) -> float:
    import io
    import time

    import psycopg2

    rows = bench.sizes.backlog * 4
    line = 'drive\t{"speed": 1.5, "direction": 90, "duration_seconds": 5}\tnormal\t300\t{}\tdefault\tdefault\tbench'
    text = "".join(f"{line}\tpending\tc-{n}\n" for n in range(rows))
    connection = psycopg2.connect(bench.postgres.url(database))
    with connection, connection.cursor() as cursor:
        began = time.perf_counter()
        cursor.copy_expert(f"COPY tickets ({COPIED}) FROM STDIN", io.StringIO(text))
        connection.commit()
        took = time.perf_counter() - began
    connection.close()
    return rows / took


def insert_rate(bench: Bench, database: str) -> float:
    script = bench.directory / "insert.sql"
    script.write_text(INSERT)
    seconds = max(1, round(bench.sizes.seconds / 2))
    options = ["--no-vacuum", "--protocol", "prepared", "--client", str(CONNECTIONS), "--time", str(seconds)]
    url = bench.postgres.url(database).replace(f"/{DATABASE}?", f"/{database}?")
    said = bench.do([postgres_binary("pgbench"), *options, "--file", str(script), url], "limits")
    found = re.search(r"tps = ([0-9.]+)", said)
    if found is None:
        raise MeasureFailed(f"pgbench said no rate: {said[-200:]}")
    return float(found[1])


MEASURES = (
    Measure(
        "creates",
        (
            Row(
                "POST /ticket, 16 clients, against the echo",
                "service_rate",
                "/s",
                "echo_rate",
                at_least=0.6,
                peers=("naive_rate", "forgetful_rate", "commit_only_rate", "procrastinate_rate"),
            ),
            Row(
                "the same against the naive service",
                "service_rate",
                "/s",
                "naive_rate",
                at_least=2.5,
                peers=("procrastinate_rate",),
            ),
            Row(
                "its p99 against the naive service's",
                "service_p99",
                "ms",
                "naive_p99",
                at_most=0.2,
                peers=("procrastinate_p99",),
            ),
        ),
        single_creates,
    ),
    Measure("open_loop", (Row("p95 at an open-loop 100/s", "open_p95", "ms", at_most=15),), open_loop),
    Measure(
        "batches",
        (
            Row(
                "POST /tickets/batch, tickets a second against singles", "batch_rate", "/s", "single_rate", at_least=15
            ),
            Row("the limit: COPY, for scale", "copy_rate", "/s"),
            Row("the limit: INSERTs that commit each, for scale", "insert_rate", "/s"),
        ),
        batches,
    ),
)
