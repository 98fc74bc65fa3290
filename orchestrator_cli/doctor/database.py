"""Looks at Postgres: its settings, the schema, what waits there, and who says to be alive."""

from __future__ import annotations

import time

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from models.kernel.ledger import count_partitions_ahead
from models.kernel.processes import FRESH_SECONDS, list_fresh_roles
from models.kernel.session import statement
from models.kernel.settings import settings
from orchestrator_cli.checks import OLDEST_POSTGRES
from orchestrator_cli.doctor.findings import FAIL, OK, WARN, Finding, judge
from orchestrator_cli.doctor.machine import clock_finding
from orchestrator_cli.migrate import configuration

FEWEST_PARTITIONS_AHEAD = 2
MOST_COUNTED = 1000
LONGEST_WAIT_SECONDS = 60.0
MIGRATE = "run `orchestrator migrate`"


def look_at_database() -> list[Finding]:
    """Every finding about the database; what cannot be asked before the schema is there is left out."""
    with statement() as connection:
        found = [*server(connection), schema(connection)]
        if found[-1].verdict == OK:
            found += [
                ledger(connection),
                dead_letters(connection),
                *backlog(connection),
                processes(connection),
                emergency_stop(connection),
            ]
        return found


SETTINGS = (
    "server_version_num",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "max_prepared_transactions",
    "idle_in_transaction_session_timeout",
    "transaction_read_only",
    "max_connections",
)
KEEPS = ("fsync", "full_page_writes", "synchronous_commit")


def server(connection: Connection) -> list[Finding]:
    asked = text("SELECT name, current_setting(name) FROM unnest(:names) AS name")
    said = {row[0]: row[1] for row in connection.execute(asked, {"names": [*SETTINGS]})}
    version = int(said["server_version_num"]) // 10_000
    writable = said["transaction_read_only"] == "off"
    return [
        judge("database", version >= OLDEST_POSTGRES, f"Postgres {version}", f"{OLDEST_POSTGRES} or newer is needed"),
        judge(
            "database writable", writable, "primary" if writable else "read-only", "point DATABASE_URL at the primary"
        ),
        durability(said),
        *forgotten_transactions(said),
        connections(connection, int(said["max_connections"])),
        clock(connection),
    ]


def durability(said: dict[str, str]) -> Finding:
    lax = [f"{name} = {said[name]}" for name in KEEPS if said[name] == "off"]
    found = ", ".join(lax) or f"{', '.join(KEEPS)} are on"
    return judge("durability", not lax, found, "switch them on: what was answered may be lost in a crash")


def forgotten_transactions(said: dict[str, str]) -> list[Finding]:
    """Transactions that nobody ends: event streams wait for every writer."""
    prepared, idle = said["max_prepared_transactions"], said["idle_in_transaction_session_timeout"]
    why = "one that is forgotten holds every event stream up"
    return [
        judge(
            "prepared transactions", prepared == "0", f"max_prepared_transactions = {prepared}", f"set it to 0: {why}"
        ),
        judge("idle transactions", idle != "0", f"end after {idle}", f"set idle_in_transaction_session_timeout: {why}"),
    ]


def connections(connection: Connection, most: int) -> Finding:
    used = int(
        connection.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")) or 0
    )
    return judge(
        "connections",
        used < 0.8 * most,
        f"{used} of {most}",
        "raise max_connections or lower ORCHESTRATOR_DATABASE_POOL",
        WARN,
    )


def clock(connection: Connection) -> Finding:
    asked_at = time.time()
    theirs = float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0)
    return clock_finding("clock of the database", theirs, asked_at, time.time())


def schema(connection: Connection) -> Finding:
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return Finding("schema", FAIL, "there is none", MIGRATE)
    here = connection.scalar(text("SELECT version_num FROM alembic_version"))
    head = ScriptDirectory.from_config(configuration("")).get_current_head()
    return judge(
        "schema", here == head, f"at {here}, this version's is {head}" if here != head else f"at {head}", MIGRATE
    )


def ledger(connection: Connection) -> Finding:
    ahead = count_partitions_ahead(connection)
    return judge(
        "ledger partitions",
        ahead >= FEWEST_PARTITIONS_AHEAD,
        f"{ahead} ahead",
        "look at `orchestrator schedules list`: the schedule `partitions` makes them",
    )


def dead_letters(connection: Connection) -> Finding:
    waiting = "SELECT count(*) FROM (SELECT FROM dead_letters WHERE replayed_at IS NULL LIMIT :most) AS waiting"
    count = int(connection.scalar(text(waiting), {"most": MOST_COUNTED}) or 0)
    shown = f"{count} or more wait" if count == MOST_COUNTED else f"{count} wait"
    return judge("dead letters", count == 0, shown, "`orchestrator dead-letters list` says what died of what", WARN)


def backlog(connection: Connection) -> list[Finding]:
    """One finding for each queue that has work which nobody has begun; those that wait for their lane do not count."""
    rows = connection.execute(
        text(
            """
            SELECT queue, count(*) AS ready, extract(epoch FROM clock_timestamp() - min(run_at)) AS waited
              FROM (SELECT queue, run_at FROM jobs
                     WHERE fence IS NULL AND NOT waits AND run_at <= clock_timestamp() LIMIT 10000) AS ready
             GROUP BY queue ORDER BY queue
            """
        )
    )
    found = [
        judge(
            f"backlog {row.queue}",
            float(row.waited) < LONGEST_WAIT_SECONDS,
            f"{row.ready} jobs, the oldest ready for {float(row.waited):.0f} s",
            "more workers for this queue, or look at what the present ones do",
            WARN,
        )
        for row in rows
    ]
    return found or [Finding("backlog", OK, "nothing waits to be begun")]


def processes(connection: Connection) -> Finding:
    wanted = settings().process_roles
    missing = sorted(wanted - list_fresh_roles(connection))
    found = f"none within {FRESH_SECONDS:g} s of: {', '.join(missing)}" if missing else f"all {len(wanted)} roles run"
    return judge("processes", not missing, found, "start them (see the Procfile); their logs say why they ended")


def emergency_stop(connection: Connection) -> Finding:
    rows = connection.execute(
        text("SELECT scope, reason FROM latches WHERE released_at IS NULL ORDER BY engaged_at LIMIT 5")
    ).all()
    engaged = "; ".join(f"{row.scope}: {row.reason}" for row in rows)
    return judge("emergency stop", not rows, engaged or "not engaged", "`orchestrator estop release` ends it", WARN)
