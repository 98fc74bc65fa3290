"""The one door to the environment: every setting, its default and its check.

``load`` turns a mapping of environment variables into a frozen ``Settings`` or
raises ``InvalidSettings`` naming each variable that is wrong. A variable that
starts with ``ORCHESTRATOR_`` and is not known is refused together with the
nearest known name, so that a misspelt limit can never be silently ignored.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from models.kernel.errors import InvalidSettings
from models.kernel.parsers import (
    Parser,
    flag,
    is_loopback,
    module_path,
    mqtt_url,
    networks,
    number,
    one_of,
    origins,
    permissions,
    postgres_url,
    topic,
    url,
    whole,
    words,
)

PREFIX = "ORCHESTRATOR_"
DEFAULT_HOME = Path(".orchestrator")
SHORTEST_SECRET = 32  # bytes: RFC 7518, section 3.2


def setting(parse: Parser, default: Any, help: str, env: str | None = None, *, secret: bool = False) -> Any:
    """One setting; the text of a secret one is never shown, neither in a refusal nor when settings are printed."""
    return field(default=default, repr=not secret, metadata={"parse": parse, "help": help, "env": env})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of the service. Durations are seconds unless the name says otherwise."""

    # where things are
    home: Path = setting(Path, DEFAULT_HOME, "data, sockets, logs and the admin token")  # noqa: RUF009
    database_url: str = setting(
        postgres_url, "", "Postgres 15 or newer; empty means the embedded one", env="DATABASE_URL", secret=True
    )
    broker_url: str = setting(
        url("redis", "rediss", "redis+socket"),
        "",
        "Redis or Valkey 7 or newer; empty means embedded",
        env="BROKER_URL",
        secret=True,
    )
    host: str = setting(str, "127.0.0.1", "address the API and Flower listen on")
    port: int = setting(whole(1, 65535), 8000, "the API's port", env="PORT")
    flower_port: int = setting(whole(1, 65535), 5555, "Flower's port", env="FLOWER_PORT")
    flower_auth: str = setting(
        str, "", "user:password for Flower; without it its pages are open, on loopback only", secret=True
    )
    log_level: str = setting(one_of("DEBUG", "INFO", "WARNING", "ERROR"), "INFO", "least severe line logged")

    # the web
    web_processes: int = setting(whole(1, 64), 2, "web processes behind the port")
    web_threads: int = setting(whole(2, 256), 8, "request threads in each web process")
    max_body_bytes: int = setting(whole(1024, 64 * 2**20), 2**20, "largest request body")
    rate_limit: int = setting(whole(0, 10**6), 1000, "requests a second of one client; 0 means no limit")
    cors_origins: frozenset[str] = setting(origins, frozenset(), "origins whose pages may call the API")
    trusted_proxies: frozenset[str] = setting(
        networks, frozenset(), "addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed"
    )
    hsts_seconds: int = setting(whole(0, 10**9), 0, "Strict-Transport-Security; 0 sends none (TLS ends elsewhere)")
    stream_readers: int = setting(whole(1, 100_000), 2000, "open event streams in each web process")
    stream_readers_per_client: int = setting(whole(1, 100_000), 500, "of them, those of one client")
    stream_buffer: int = setting(whole(10, 100_000), 1000, "events a slow reader may be behind before it is cut off")
    metrics_public: bool = setting(flag, True, "whether GET /metrics needs no credential")
    process_roles: frozenset[str] = setting(
        words,
        frozenset({"web", "dispatcher", "guardian", "relay", "io", "system", "cpu", "beat", "flower"}),
        "process roles that /readyz waits for",
    )

    # credentials
    jwt_algorithm: str = setting(one_of("HS256", "RS256"), "HS256", "how JWTs are signed", env="JWT_ALGORITHM")
    jwt_secret_key: str = setting(
        str, "", "HS256 secret, at least 32 bytes; empty refuses JWTs", env="JWT_SECRET_KEY", secret=True
    )
    jwt_public_key: str = setting(str, "", "RS256 public key, PEM text or a file's path", env="JWT_PUBLIC_KEY")
    jwt_jwks_file: str = setting(str, "", "RS256 key set (JWKS), a file's path")
    jwt_issuer: str = setting(str, "", "required iss claim; empty accepts any")
    jwt_audience: str = setting(str, "", "required aud claim; empty asks for none")
    anonymous_permissions: frozenset[str] = setting(
        permissions,
        frozenset(),
        "what a caller without a credential may do (loopback only)",
        env="ANONYMOUS_PERMISSIONS",
    )

    # the kernel
    database_pool: int = setting(whole(1, 200), 10, "database connections in each process")
    lock_timeout: float = setting(number(0.1, 60), 3.0, "longest wait for a row lock")
    statement_timeout: float = setting(number(0.1, 600), 10.0, "longest statement")
    lease_seconds: float = setting(number(1, 3600), 15.0, "how long a worker may be silent before its lease ends")
    dispatch_seconds: float = setting(number(0.05, 60), 1.0, "the dispatcher's pace when nothing wakes it")
    dispatch_window: int = setting(whole(1, 10_000), 24, "most messages waiting in one Celery queue")
    redispatch_seconds: float = setting(number(0.5, 3600), 5.0, "silence after which a message counts as lost")
    aging_seconds: float = setting(number(1, 86_400), 60.0, "wait after which a job may pass higher priorities")
    io_concurrency: int = setting(whole(1, 500), 200, "threads of the I/O worker, started as they are needed")
    cpu_concurrency: int = setting(whole(1, 64), 2, "processes of the CPU worker")
    system_concurrency: int = setting(whole(1, 500), 16, "threads of the system worker: schedules, webhooks, batches")
    ledger_partition_rows: int = setting(whole(1000, 10**9), 5_000_000, "ledger rows in one partition")
    ledger_keep_days: int = setting(whole(0, 36_500), 0, "days that the ledger is kept; 0 keeps it for ever")
    idempotency_hours: int = setting(whole(1, 8760), 24, "how long an Idempotency-Key is remembered")

    # tickets
    driver: str = setting(one_of("sim", "http", "mqtt"), "sim", "what carries robot commands")
    actuator_url: str = setting(
        url("http", "https"), "http://127.0.0.1:8001", "the actuator bus of the http driver", secret=True
    )
    actuator_timeout: float = setting(number(0.05, 60), 2.0, "longest wait for one answer of a robot")
    mqtt_url: str = setting(mqtt_url, "mqtt://127.0.0.1:1883", "the MQTT 5 broker of the mqtt driver", secret=True)
    mqtt_username: str = setting(str, "", "user at the MQTT broker")
    mqtt_password: str = setting(str, "", "password at the MQTT broker", secret=True)
    mqtt_ca_file: str = setting(str, "", "CA certificates for mqtts; empty means the system's")
    mqtt_cert_file: str = setting(str, "", "our certificate for mqtts, where the broker asks for one")
    mqtt_key_file: str = setting(str, "", "its private key")
    mqtt_prefix: str = setting(topic, "orchestrator", "first level of every MQTT topic")
    sim_time_scale: float = setting(number(0.01, 1000), 1.0, "simulated seconds in one real second")
    estop_repeat_seconds: float = setting(number(0.02, 10), 0.2, "pace of repeated stops to a robot without fences")
    execute_expiry_seconds: int = setting(whole(1, 86_400), 300, "how long an accepted motion may wait to start")

    # the engine
    engine_module: str = setting(
        module_path,
        "examples.regime_engine.engine",
        "the module with the engine's run and run_with_hysteresis",
        env="ENGINE_MODULE",
    )
    engine_config: Path = setting(  # noqa: RUF009
        Path, Path("examples/engine.toml"), "sources, cadence, retries and limits of engine runs, a TOML file"
    )
    engine_max_body_bytes: int = setting(
        whole(1024, 256 * 2**20),
        16 * 2**20,
        "largest body of POST /engine/events; a gzip one may inflate to four times",
    )

    # webhooks
    webhook_timeout: float = setting(number(0.1, 120), 10.0, "longest wait for a receiver's answer")
    webhook_attempts: int = setting(whole(1, 50), 8, "tries at one delivery")
    webhook_disable_after: int = setting(whole(1, 10_000), 20, "failed deliveries in a row that disable a subscription")
    webhook_allow_private: bool = setting(flag, False, "whether receivers may live at private or loopback addresses")

    # the command line
    service_url: str = setting(
        url("http", "https"),
        "",
        "the service that commands ask; empty means the one on this home",
        env="ORCHESTRATOR_URL",
    )
    service_token: str = setting(
        str,
        "",
        "API key or JWT that commands send; empty means the local admin's",
        env="ORCHESTRATOR_TOKEN",
        secret=True,
    )

    def __post_init__(self) -> None:
        if self.anonymous_permissions and not is_loopback(self.host):
            raise ValueError("ANONYMOUS_PERMISSIONS is only allowed while ORCHESTRATOR_HOST is a loopback address")
        if self.jwt_secret_key and len(self.jwt_secret_key.encode()) < SHORTEST_SECRET:
            raise ValueError("JWT_SECRET_KEY must have at least 32 bytes")


def variable_of(item: Any) -> str:
    """The environment variable that sets a field of ``Settings``."""
    return str(item.metadata["env"] or PREFIX + item.name.upper())


def variables() -> dict[str, Any]:
    return {variable_of(item): item for item in fields(Settings)}


def load(environ: Mapping[str, str]) -> Settings:
    """Read and check all settings.

    Raises InvalidSettings with one line for each variable that is wrong.
    """
    known = variables()
    problems = [refuse_unknown(name, known) for name in environ if name.startswith(PREFIX) and name not in known]
    values: dict[str, Any] = {}
    for name, item in known.items():
        text = environ.get(name, "")
        if not text:
            continue
        try:
            values[item.name] = item.metadata["parse"](text)
        except ValueError as error:
            problems.append(f"{name}={text!r}: {error}" if item.repr else f"{name}: {error}")
    if problems:
        raise InvalidSettings("\n".join(problems))
    try:
        return Settings(**values)
    except ValueError as error:
        raise InvalidSettings(str(error)) from None


def refuse_unknown(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{name} is not a setting{hint}"


def inherited(*names: str) -> dict[str, str]:
    """Those of the variables that are set: the environment of a child process that is to know no others."""
    return {name: os.environ[name] for name in names if name in os.environ}


@functools.cache
def settings() -> Settings:
    """The settings of this process, read once from its environment."""
    return load(os.environ)
