"""The engine as a whole: what it shall do, what keeps it from doing it, and under which configuration."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from typing import Any

from sqlalchemy import BigInteger, Connection, Text, cast, func, insert, literal, null, or_, select, update

from models.engine.canonical import canonical, normalise
from models.engine.config import Config, read_config
from models.engine.queries import Row, find_config_row, get_status
from models.engine.states import DEGRADED, DRAINED, ENGINE, INIT, RUNNING, STOPPED
from models.engine.tables import engine_configs, engine_control
from models.kernel.clients import Caller
from models.kernel.errors import Conflict, IllegalTransition, NotFound
from models.kernel.ledger import ledger, note
from models.kernel.transition import Rows, Subject, Told, Transition

SUBJECT = Subject(ENGINE, engine_control)
ENGINE_ID = "engine"
SERVICE = "service"
LONGEST_ERROR = 2000

STARTED, WAS_DRAINED, WAS_STOPPED, WAS_RESET = "engine_started", "engine_drained", "engine_stopped", "engine_reset"
WAS_DEGRADED, RECOVERED = "engine_degraded", "engine_recovered"
CONFIGURED, INGESTION_PAUSED, INGESTION_RESUMED = "engine_configured", "ingestion_paused", "ingestion_resumed"


def unblocked(engine: Any, _given: Any = None) -> dict[str, Any]:
    """Nothing keeps the planner any longer; the time for which something did is summed."""
    lasted = cast(func.extract("epoch", func.clock_timestamp() - engine.blocked_at) * 1000, BigInteger)
    return {
        "scheduling_paused": literal(False),
        "paused_why": null(),
        "blocked_at": null(),
        "blocked_ms": engine.blocked_ms + func.coalesce(func.greatest(lasted, 0), 0),
    }


def blocked(engine: Any, given: Any) -> dict[str, Any]:
    return {
        "scheduling_paused": literal(True),
        "paused_why": given.why,
        "blocked_at": func.clock_timestamp(),
        "blocks": engine.blocks + 1,
    }


def anew(_engine: Any, _given: Any) -> dict[str, Any]:
    """The cadence begins with the present moment: what an operator kept from being planned stays unplanned."""
    return {"next_tick_ms": null()}


def move(sources: set[str], target: str, topic: str, **parts: Any) -> Transition:
    told = Told(
        topic=lambda _e: literal(topic),
        body=lambda engine: {"state": engine.state, "config_version": engine.config_version, "why": engine.paused_why},
    )
    return Transition(subject=SUBJECT, sources=frozenset(sources), targets=frozenset({target}), told=told, **parts)


START = move({INIT, DRAINED}, RUNNING, STARTED, guard=lambda e: e.config_version.is_not(None), set=anew)
DRAIN = move({RUNNING}, DRAINED, WAS_DRAINED)
STOP = move({INIT, RUNNING, DRAINED, DEGRADED}, STOPPED, WAS_STOPPED, set=unblocked)
RESET = move({STOPPED}, INIT, WAS_RESET)
DEGRADE = move({RUNNING}, DEGRADED, WAS_DEGRADED, given={"why": Text}, set=blocked)
RECOVER = move({DEGRADED}, RUNNING, RECOVERED, set=unblocked)


def start_engine(connection: Connection, caller: Caller) -> Row:
    """Plan runs from now on. Raises IllegalTransition, Conflict when no configuration was accepted yet."""
    return act(connection, START, caller, "starts from init or drained")


def drain_engine(connection: Connection, caller: Caller) -> Row:
    """Plan nothing any more; what is planned is carried out, and events are taken in. Raises IllegalTransition."""
    return act(connection, DRAIN, caller, "drains while it is running")


def stop_engine(connection: Connection, caller: Caller) -> Row:
    """Plan nothing any more and take no events in; what is planned is carried out. Raises IllegalTransition."""
    return act(connection, STOP, caller, "stops once")


def reset_engine(connection: Connection, caller: Caller) -> Row:
    """Make a stopped engine ready to be started. Raises IllegalTransition."""
    return act(connection, RESET, caller, "is reset once it was stopped")


def act(connection: Connection, move: Transition, caller: Caller, rule: str) -> Row:
    rows = move(connection, [{"id": ENGINE_ID}], actor=caller.name, correlation_id=caller.correlation_id)
    status = get_status(connection)
    if rows:
        return status
    state = status["state"]
    if move is START and state in START.sources:
        raise Conflict("No configuration was accepted: see engine.config_error", code="engine_not_configured")
    raise IllegalTransition(f"The engine is {state}: it {rule}", state=state, code=f"engine_{state}")


def degrade_engine(connection: Connection, why: str) -> bool:
    """Pause the planning of a running engine, because its outputs are not taken; False when it does not run."""
    return by_itself(connection, DEGRADE, [{"id": ENGINE_ID, "why": why[:LONGEST_ERROR]}])


def recover_engine(connection: Connection, why: str) -> bool:
    """Go on planning where a degraded engine left off; False when it is not degraded."""
    return by_itself(connection, RECOVER, [{"id": ENGINE_ID}], reason=why)


def by_itself(connection: Connection, move: Transition, rows: list[dict[str, Any]], reason: str | None = None) -> bool:
    moved: Rows = move(connection, rows, actor=SERVICE, correlation_id=SERVICE, reason=reason)
    return bool(moved)


def pause_ingestion(connection: Connection, why: str) -> bool:
    """Say that no events are taken in; False when that was said before."""
    return set_ingestion(connection, True, why)


def resume_ingestion(connection: Connection, why: str = "") -> bool:
    """Say that events are taken in again; False when that was said before."""
    return set_ingestion(connection, False, why)


def set_ingestion(connection: Connection, paused: bool, why: str) -> bool:
    change = update(engine_control).where(engine_control.c.ingestion_paused.is_not(paused))
    if connection.execute(change.values(ingestion_paused=paused)).rowcount == 0:
        return False
    tell(connection, INGESTION_PAUSED if paused else INGESTION_RESUMED, SERVICE, {"why": why})
    return True


def find_ingestion_reason(connection: Connection) -> str | None:
    """Why no events are read from the stream; None while they are."""
    if not get_status(connection)["ingestion_paused"]:
        return None
    told = ledger.c.subject_kind == ENGINE.kind, ledger.c.subject_id == ENGINE_ID, ledger.c.topic == INGESTION_PAUSED
    why = select(ledger.c.body["why"].astext).where(*told).order_by(ledger.c.seq.desc()).limit(1)
    found: str | None = connection.scalar(why)
    return found


def tell(connection: Connection, topic: str, actor: str, body: Mapping[str, Any]) -> None:
    note(connection, topic, subject=(ENGINE.kind, ENGINE_ID), actor=actor, correlation_id=actor, body=body)


# the configuration


def get_config(connection: Connection) -> tuple[int, Config] | None:
    """The present configuration and its version; None when none was accepted yet."""
    version = connection.scalar(select(engine_control.c.config_version))
    return None if version is None else (version, get_version(connection, version))


VERSIONS: dict[tuple[Any, int], Config] = {}
"""What this process has read, by database and version: versions never change."""
READING = threading.Lock()
"""One thread reads a version, the others wait for what it read: a great one takes long, and longer in all at once."""


def get_version(connection: Connection, version: int) -> Config:
    """The configuration of a version. Raises NotFound."""
    kept = connection.engine.url, version
    if kept not in VERSIONS:
        row = find_config_row(connection, version)
        if row is None:
            raise NotFound(f"There is no configuration {version}", code="config_not_found")
        with READING:
            if kept not in VERSIONS:
                VERSIONS[kept] = read_config(row["body"])
    return VERSIONS[kept]


def accept_config(connection: Connection, body: Mapping[str, Any], accepted_by: str) -> int:
    """Make a configuration the present one; answers its version, which is the same for bodies that mean the same.

    `connection` must be a transaction. The cadence begins anew if it is another one.
    Raises InvalidSettings naming each wrong key.
    """
    config = read_config(body)
    status = connection.execute(select(engine_control).with_for_update()).mappings().one()
    complete = normalise(config.body())
    before = find_config_row(connection)
    version = keep_version(connection, complete, accepted_by)
    values: dict[str, Any] = {"config_version": version, "config_error": null()}
    if before is None or cadence_of(before["body"]) != cadence_of(complete):
        values["next_tick_ms"] = null()
    same = engine_control.c.config_version.is_distinct_from(version)
    change = update(engine_control).where(or_(same, engine_control.c.config_error.is_not(None))).values(values)
    connection.execute(change)
    if status["config_version"] != version:
        tell(connection, CONFIGURED, accepted_by, {"version": version, "before": status["config_version"]})
    return version


def propose_config(connection: Connection, body: Mapping[str, Any], accepted_by: str) -> int | None:
    """Accept a configuration unless it says nothing new; None when the present one stays.

    It says nothing new when it was accepted from here before, and somebody else has accepted another one since.
    `connection` must be a transaction. Raises InvalidSettings naming each wrong key.
    """
    digest = digest_of(normalise(read_config(body).body()))
    connection.execute(select(engine_control.c.id).with_for_update())
    first = connection.scalar(select(engine_configs.c.accepted_by).where(engine_configs.c.digest == digest))
    present = find_config_row(connection)
    if present is None or first != accepted_by or present["accepted_by"] == accepted_by:
        return accept_config(connection, body, accepted_by)
    connection.execute(update(engine_control).values(config_error=null()))
    return None


def digest_of(complete: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(complete).encode()).hexdigest()


def keep_version(connection: Connection, complete: Mapping[str, Any], accepted_by: str) -> int:
    """The version of a complete body, which is a new one if nobody accepted it before."""
    digest = digest_of(complete)
    known = connection.scalar(select(engine_configs.c.version).where(engine_configs.c.digest == digest))
    if known is not None:
        return int(known)
    row = {"digest": digest, "body": complete, "accepted_by": accepted_by}
    return int(connection.execute(insert(engine_configs).values(row).returning(engine_configs.c.version)).scalar_one())


def cadence_of(body: Mapping[str, Any]) -> tuple[Any, ...]:
    return body["scheduler"], body["engine"]["alignment_ms"]


def refuse_config(connection: Connection, error: str) -> None:
    """Keep for the status why the file was refused; the engine goes on under the configuration that it has."""
    short = error.replace("\0", "")[:LONGEST_ERROR]
    connection.execute(update(engine_control).values(config_error=short))
