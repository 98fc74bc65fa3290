"""Where the service, its database and its broker are: what the settings name, else what runs on the local home.

Nothing heavy is imported before it is needed: a command that only asks the service loads no database driver.
"""

from __future__ import annotations

import os

from models.kernel.settings import Settings, load
from orchestrator_cli.errors import CannotStart
from orchestrator_cli.home import Home

START_IT = "start it with `make up`"


def base_url(chosen: Settings, port: int) -> str:
    """The address a person on this machine would use."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(chosen.host, chosen.host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def local_url(chosen: Settings) -> str:
    """Where the service of this home answers: what it said when it started, else what the settings name.

    So a command in another terminal needs no PORT of its own.
    """
    try:
        return Home.at(chosen.home).address.read_text().strip()
    except OSError:
        return base_url(chosen, chosen.port)


def service_url(chosen: Settings) -> str:
    return (chosen.service_url or local_url(chosen)).rstrip("/")


def service_token(chosen: Settings) -> str:
    """The credential of the settings, else the local administrator's, which only belongs to the local service.

    Raises CannotStart when there is none.
    """
    if chosen.service_token:
        return chosen.service_token
    home = Home.at(chosen.home)
    if chosen.service_url:
        raise CannotStart(
            f"there is no credential for {chosen.service_url}", next_step="set --token or ORCHESTRATOR_TOKEN"
        )
    try:
        return home.token.read_text().strip()
    except OSError:
        raise CannotStart(
            f"there is no admin token in {home.directory}",
            next_step=f"{START_IT}, or set ORCHESTRATOR_URL and ORCHESTRATOR_TOKEN to ask another service",
        ) from None


def database_url(chosen: Settings | None = None) -> str:
    """The database that the settings name, else the running embedded one. Raises CannotStart when there is none."""
    from orchestrator_cli.embedded.postgres import Postgres

    chosen = chosen or load(os.environ)
    if chosen.database_url:
        return chosen.database_url
    embedded = Postgres(Home.at(chosen.home).directory / "postgres")
    if not embedded.data.exists() or not embedded.answers():
        raise CannotStart("no database is running", next_step=f"{START_IT} or set DATABASE_URL")
    return embedded.url()


def broker_url(chosen: Settings | None = None) -> str:
    """The broker that the settings name, else the embedded one. Raises CannotStart when that was never started."""
    from orchestrator_cli.embedded.valkey import Valkey

    chosen = chosen or load(os.environ)
    if chosen.broker_url:
        return chosen.broker_url
    embedded = Valkey(Home.at(chosen.home).directory / "valkey")
    if not embedded.data.exists():
        raise CannotStart("no broker is running", next_step=f"{START_IT} or set BROKER_URL")
    return embedded.url()
