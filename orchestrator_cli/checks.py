"""What has to be true before anything is started; each refusal is one line."""

from __future__ import annotations

import socket

import psycopg2
import redis
from sqlalchemy import make_url

from models.kernel.hints import redis_url
from models.kernel.settings import Settings, settings
from orchestrator_cli.errors import CannotStart
from orchestrator_tasks.engine.config import check_file_and_engine
from orchestrator_tasks.tickets.drivers.mqtt_broker import broker_of

OLDEST_POSTGRES = 15
OLDEST_REDIS = 7
REACH_SECONDS = 5


def ports(chosen: Settings) -> None:
    """Both ports are different and nobody listens on them."""
    if chosen.port == chosen.flower_port:
        raise CannotStart(f"PORT and FLOWER_PORT are both {chosen.port}", next_step="set one of them to another port")
    for name, port in (("PORT", chosen.port), ("FLOWER_PORT", chosen.flower_port)):
        family = socket.AF_INET6 if ":" in chosen.host else socket.AF_INET
        try:
            socket.create_server((chosen.host, port), family=family).close()
        except OSError as error:
            raise CannotStart(
                f"port {port} on {chosen.host} cannot be used: {error.strerror or error}",
                next_step=f"free it or set {name} to another port",
            ) from None


def robots(chosen: Settings) -> None:
    """What the mqtt driver needs to speak TLS can be read. Raises InvalidSettings."""
    if chosen.driver == "mqtt":
        broker_of(chosen)


def engine() -> None:
    """The engine that the settings name can be called, where there is one to call. Raises InvalidSettings.

    What was read for it is read anew later: the addresses of embedded servers are not among the settings yet.
    """
    try:
        check_file_and_engine()
    finally:
        settings.cache_clear()


def database(url: str) -> str:
    """Reach an external Postgres; returns what it is.

    Raises CannotStart when it does not answer in five seconds or is too old.
    """
    shown = make_url(url).render_as_string(hide_password=True).replace("+psycopg2", "")
    try:
        session = psycopg2.connect(
            url.replace("postgresql+psycopg2://", "postgresql://", 1), connect_timeout=REACH_SECONDS
        )
    except psycopg2.Error as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise CannotStart(f"DATABASE_URL {shown} cannot be reached: {reason}") from None
    version: int = session.server_version // 10_000
    session.close()
    if version < OLDEST_POSTGRES:
        raise CannotStart(
            f"DATABASE_URL {shown} is Postgres {version}", next_step=f"{OLDEST_POSTGRES} or newer is needed"
        )
    return f"external, Postgres {version}"


def broker(url: str) -> str:
    """Reach an external Redis or Valkey; returns what it is.

    Raises CannotStart when it does not answer in five seconds or is too old.
    """
    shown = make_url(url).render_as_string(hide_password=True)
    client = redis.Redis.from_url(redis_url(url), socket_connect_timeout=REACH_SECONDS, socket_timeout=REACH_SECONDS)
    try:
        version = str(client.info("server")["redis_version"])
    except (redis.RedisError, OSError) as error:
        raise CannotStart(f"BROKER_URL {shown} cannot be reached: {error}") from None
    finally:
        client.close()
    if int(version.split(".", maxsplit=1)[0]) < OLDEST_REDIS:
        raise CannotStart(f"BROKER_URL {shown} is Redis {version}", next_step=f"{OLDEST_REDIS} or newer is needed")
    return f"external, Redis protocol {version}"
