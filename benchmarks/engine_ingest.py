"""How fast events come in, against COPY: `python -m benchmarks.engine_ingest [events] [batch] [clients]`.

In each round, on one embedded Postgres of its own, the same events go in batches, each with a commit of its own:
by COPY of prepared text into a table of the same shape (the measure of it all), through `append_events`, once
checked before and once with the check, and over HTTP into the web as it is shipped, two processes behind one port, from
one client and from several.
Three rounds, each beginning with another way; medians, and the ratio to COPY of the same round.
"""

from __future__ import annotations

import http.client
import io
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
import psycopg2
from sqlalchemy import text

from benchmarks.processes import Running, environment, free_port
from models.engine.contract import Received, check_event
from models.engine.inputs import COLUMNS, append_events
from models.kernel import clients
from models.kernel.session import statement, transaction
from orchestrator_cli import migrate
from orchestrator_cli.embedded.postgres import Postgres
from orchestrator_cli.embedded.valkey import Valkey

ROUNDS = 3
MOST_RECORDS = 10**9
SYMBOLS = [f"SYM{number}-USD" for number in range(50)]
SOURCES = {"feed": frozenset(SYMBOLS)}
PAYLOAD = '{"e":"trade","E":1700000000123,"s":"BTCUSDT","t":12345,"p":"43250.10","q":"0.002","m":true}'

CONFIGURED = """
    WITH made AS (
        INSERT INTO engine_configs (digest, body, accepted_by)
        VALUES (repeat('0', 64), CAST(:body AS jsonb), 'benchmark') RETURNING version)
    UPDATE engine_control SET config_version = (SELECT version FROM made)
"""
SAME_SHAPE = """
    CREATE TABLE copied (LIKE engine_inputs INCLUDING ALL) PARTITION BY RANGE (ingest_seq);
    CREATE TABLE copied_1 PARTITION OF copied FOR VALUES FROM (1) TO (1000000000);
"""


def make_event(number: int) -> bytes:
    is_snapshot = number % 50 == 0
    ticks = {"price": 43250.1 + number, "quantity": 0.002, "side": "buy"}
    inputs = {"timestamp_ms": 180_000 * number, "market": {"price": 43250.1, "vwap": 43249.0, "atr": 120.5}}
    return orjson.dumps(
        {
            "schema": "raw_market_event",
            "schema_version": "1",
            "event_type": "SnapshotInputs" if is_snapshot else "TradeTick",
            "source_id": "feed",
            "symbol": SYMBOLS[number % len(SYMBOLS)],
            "exchange_ts_ms": 1_700_000_000_000 + number,
            "recv_ts_ms": 1_700_000_000_050 + number,
            "source_event_id": str(number),
            "raw_payload": PAYLOAD,
            "raw_payload_encoding": "text",
            "normalized": inputs if is_snapshot else ticks,
        }
    )


class Bench:
    """The events, cut into batches, and every way in."""

    def __init__(self, url: str, port: int, token: str, events: int, batch: int) -> None:
        self.url, self.port, self.token, self.events = url, port, token, events
        made = [make_event(number) for number in range(events)]
        self.batches = [made[start : start + batch] for start in range(0, events, batch)]
        self.bodies = [b"\n".join(each) for each in self.batches]
        self.checked = [self.check(each) for each in self.batches]
        self.copied = 0

    def check(self, batch: Sequence[bytes]) -> list[Received]:
        return [check_event(each, SOURCES, 180_000) for each in batch]

    def copy(self) -> float:
        """COPY of text that was prepared before."""
        prepared = [self.rows_of(batch) for batch in self.checked]
        connection = psycopg2.connect(self.url)
        began = time.perf_counter()
        for rows in prepared:
            with connection, connection.cursor() as cursor:
                cursor.copy_expert(f"COPY copied ({', '.join(COLUMNS)}) FROM STDIN", rows, 1 << 16)
        took = time.perf_counter() - began
        connection.close()
        return took

    def rows_of(self, batch: Sequence[Received]) -> io.StringIO:
        first = self.copied + 1
        self.copied += len(batch)
        at = 1_700_000_000_000
        return io.StringIO(
            "".join(
                f"{seq}\t{at}\t{r.source_id}\t{r.symbol}\t{r.event_type}\t"
                f"{r.snapshot_ts_ms or chr(92) + 'N'}\t{r.event.replace(chr(92), chr(92) * 2)}\n"
                for seq, r in enumerate(batch, first)
            )
        )

    def append(self) -> float:
        began = time.perf_counter()
        for batch in self.checked:
            with transaction() as connection:
                append_events(connection, batch, max_records=MOST_RECORDS)
        return time.perf_counter() - began

    def check_and_append(self) -> float:
        began = time.perf_counter()
        for batch in self.batches:
            with transaction() as connection:
                append_events(connection, self.check(batch), max_records=MOST_RECORDS)
        return time.perf_counter() - began

    def post(self, senders: int) -> float:
        """Batches sent by so many clients, each waiting for its answer before it sends the next."""
        threads = [threading.Thread(target=self.send, args=(self.bodies[n::senders],)) for n in range(senders)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    def send(self, bodies: Sequence[bytes]) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/x-ndjson"}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        for body in bodies:
            connection.request("POST", "/engine/events", body, headers)
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 201:
                os._exit(f"POST answered {answer.status}: {said[:300]!r}" and 1)
        connection.close()


def measure(bench: Bench, senders: int) -> dict[str, list[float]]:
    """Events a second of each way in each round."""
    ways: dict[str, Callable[[], float]] = {
        "COPY": bench.copy,
        "append_events": bench.append,
        "check and append": bench.check_and_append,
        "POST, one client": lambda: bench.post(1),
        f"POST, {senders} clients": lambda: bench.post(senders),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(ROUNDS):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(bench.events / ways[name]())
    return found


def show(found: dict[str, list[float]], events: int, batch: int) -> None:
    print(f"{events} events in batches of {batch}, {ROUNDS} rounds, {os.cpu_count()} cores; events a second")
    print(f"{'':24}{'median':>10}{'of COPY':>10}   each round")
    for name, rates in found.items():
        ratios = [mine / copy for mine, copy in zip(rates, found["COPY"], strict=True)]
        each = " ".join(f"{rate:8.0f}" for rate in rates)
        print(f"{name:24}{statistics.median(rates):10.0f}{statistics.median(ratios):10.2f}   {each}")


def prepare(url: str) -> str:
    """A migrated database with a configuration and a table of the same shape; answers an admin's key."""
    migrate.upgrade(url)
    body = {
        "sources": [{"source_id": name, "symbols": sorted(symbols)} for name, symbols in SOURCES.items()],
        "engine": {"engine_mode": "truth", "alignment_ms": 180_000},
        "buffer_retention": {"max_records": MOST_RECORDS, "max_age_ms": None},
    }
    with statement() as connection:
        connection.execute(text(CONFIGURED), {"body": orjson.dumps(body).decode()})
        connection.execute(text(SAME_SHAPE))
    return clients.issue_admin_key()


def main() -> None:
    given = [int(word) for word in sys.argv[1:4]]
    events, batch, senders = given + [40_000, 2_000, 4][len(given) :]
    with tempfile.TemporaryDirectory() as directory:
        postgres, valkey = Postgres(Path(directory) / "postgres"), Valkey(Path(directory) / "valkey")
        port = free_port()
        try:
            postgres.start()
            valkey.start()
            own = {"DATABASE_URL": postgres.url(), "BROKER_URL": valkey.url(), "PORT": str(port)}
            os.environ |= {**own, "ORCHESTRATOR_HOME": f"{directory}/home"}
            token = prepare(postgres.url())
            env = environment(**own, ORCHESTRATOR_HOME=f"{directory}/home")
            web = Running([sys.executable, "-m", "orchestrator_web"], Path(directory) / "web.log", env)
            try:
                web.wait_until_it_answers(port)
                bench = Bench(postgres.url(), port, token, events, batch)
                show(measure(bench, senders), events, batch)
            finally:
                web.stop()
        finally:
            valkey.stop()
            postgres.stop()


if __name__ == "__main__":
    main()
