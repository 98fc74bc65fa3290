"""Looks at the engine: the workers' module, configuration, state, room in the log, cadence, outputs that wait."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from models.engine.config import Config
from models.engine.control import find_ingestion_reason, get_config
from models.engine.inputs import partition_rows
from models.engine.publications import count_pending, find_publication
from models.engine.queries import get_buffer, get_status, is_planning, overdue_ms
from models.engine.states import DEGRADED, RUNNING
from models.engine.workers import Running, find_misfits, list_engines
from models.kernel.errors import OrchestratorError, Unavailable
from models.kernel.session import statement
from models.kernel.settings import settings
from orchestrator_cli.doctor.findings import FAIL, OK, WARN, Finding, judge
from orchestrator_tasks.engine.adapter import CHECK
from orchestrator_tasks.engine.hosts import CHECK_MEMORY_MB, Interrupt, Interrupted, call_engine, close_host

ACCEPT = "`orchestrator engine config --accept FILE` accepts one; --check FILE says what is wrong with it"
FULL_SHARE = 0.8
PENDING_SHARE = 0.5
LATEST_MS = 10_000
IMPORT_SECONDS = 6.0
NEXT = {
    "init": "`orchestrator engine start` starts it",
    "drained": "`orchestrator engine start` goes on",
    "stopped": "`orchestrator engine reset` and then `start` begin anew; it takes no events",
    DEGRADED: "see what takes the outputs; it goes on by itself",
}


def look_at_engine() -> list[Finding]:
    """Every finding about the engine but its module; none before the schema is there."""
    try:
        with statement() as connection:
            return findings(connection)
    except Unavailable as error:
        if error.code == "schema_missing":
            return []
        raise


def look_at_module() -> list[Finding]:
    """The engine that the workers found when they started; where none is alive, whether ENGINE_MODULE is one here."""
    engines = announced()
    return [running(engines) if engines else loaded()]


def announced() -> list[Running]:
    """None of a database that there is not, or that does not answer: it has a finding of its own."""
    if not settings().database_url:
        return []
    try:
        with statement() as connection:
            return list_engines(connection)
    except OrchestratorError:
        return []


def running(engines: list[Running]) -> Finding:
    """What this shell's ENGINE_MODULE names is no matter: the runs are made by the workers."""
    if len(engines) == 1:
        return Finding("engine module", OK, f"{engines[0].name}, as {engines[0].workers} worker(s) loaded it")
    found = "; ".join(f"{each.name} in {each.workers} worker(s)" for each in engines)
    return Finding("engine module", WARN, found, "start all workers of the queue cpu with one ENGINE_MODULE")


def loaded() -> Finding:
    """Loaded in a process of its own, as a worker does."""
    module, slow = settings().engine_module, Interrupt()
    timer = threading.Timer(IMPORT_SECONDS, slow.set, ("slow",))
    timer.start()
    try:
        check = {"mode": CHECK, "config": {}}
        error = call_engine(check, IMPORT_SECONDS, CHECK_MEMORY_MB, slow).get("error_detail")
    except Interrupted:
        error = f"ENGINE_MODULE={module}: it was not imported within {IMPORT_SECONDS:g} s"
    finally:
        timer.cancel()
        close_host()
    if error:
        return Finding("engine module", FAIL, error, "set ENGINE_MODULE to an engine that can be imported")
    return Finding("engine module", OK, f"{module} has run and run_with_hysteresis; no worker has said which it runs")


def findings(connection: Connection) -> list[Finding]:
    control, configured = get_status(connection), get_config(connection)
    found = [configuration(control, configured, list_engines(connection))]
    if configured is not None:
        config, buffer = configured[1], get_buffer(connection)
        found += [state(control, find_ingestion_reason(connection)), depth(buffer, config), room(connection, config)]
        found += [cadence(control, config, buffer["now_ms"]), *outputs(connection, config)]
    return found


def configuration(control: Mapping[str, Any], configured: tuple[int, Config] | None, engines: list[Running]) -> Finding:
    wrong = (control["config_error"] or "").splitlines()
    if configured is not None:
        wrong = wrong or find_misfits(engines, configured[1].engine.hysteresis)
    if wrong:
        first, *more = wrong
        return Finding("engine configuration", FAIL, first + (f" (and {len(more)} more)" if more else ""), ACCEPT)
    if configured is None:
        return Finding("engine configuration", WARN, "none was accepted: the engine does nothing", ACCEPT)
    version, config = configured
    found = f"version {version}, {len(config.symbols)} symbols, {config.engine.engine_mode}, {config.scheduler.mode}"
    return Finding("engine configuration", OK, found)


def state(control: Mapping[str, Any], unread: str | None) -> Finding:
    now, why = control["state"], "; ".join(each for each in (control["paused_why"], unread) if each)
    found = f"{now}: {why}" if why else str(now)
    return judge("engine state", now == RUNNING and not why, found, NEXT.get(now, "it goes on by itself"), WARN)


def depth(buffer: Mapping[str, Any], config: Config) -> Finding:
    most = config.buffer_retention.max_records
    found = f"{buffer['depth']} of {most} records"
    if buffer["depth"] >= most:
        return Finding("engine buffer", FAIL, found, "it takes no events: raise buffer_retention, or remove a mark")
    why = "it takes no events once it is full: raise buffer_retention, or remove a mark"
    return judge("engine buffer", buffer["depth"] < FULL_SHARE * most, found, why, WARN)


def room(connection: Connection, config: Config) -> Finding:
    ahead = int(connection.scalar(text("SELECT beyond_seq - last_seq - 1 FROM engine_head")) or 0)
    return judge(
        "engine partitions",
        ahead >= partition_rows(config.buffer_retention.max_records),
        f"room for {ahead} records ahead",
        "look at `orchestrator schedules list`: `engine_inputs` makes them; until then appends make their own",
        WARN,
    )


def cadence(control: Mapping[str, Any], config: Config, now_ms: int) -> Finding:
    """How far the planner is behind what is due; a paused one waits for something else."""
    if not is_planning(control) or control["next_tick_ms"] is None:
        return Finding("engine cadence", OK, "nothing is planned now")
    late = overdue_ms(control, now_ms)
    lag = "-" if control["lag_ms"] is None else control["lag_ms"]
    found = (
        f"every {config.scheduler.interval_ms} ms, the last tick was {lag} ms late, {control['missed_ticks']} missed"
    )
    if late > LATEST_MS:
        return Finding("engine cadence", FAIL, f"a tick is {late} ms late", "is there a beat and a `system` worker?")
    return Finding("engine cadence", OK, found)


def outputs(connection: Connection, config: Config) -> list[Finding]:
    chosen = config.output_publish
    if not chosen.stream:
        return [Finding("engine outputs", OK, "pushed nowhere; they are read over HTTP")]
    pending, publication = count_pending(connection, chosen.max_pending + 1), find_publication(connection)
    error = publication and publication["last_error"]
    found = f"{pending} of {chosen.max_pending} wait for {chosen.stream}" + (f": {error}" if error else "")
    good = not error and pending <= PENDING_SHARE * chosen.max_pending
    return [judge("engine outputs", good, found, "is there a `relay`, and does the broker take them?", WARN)]
