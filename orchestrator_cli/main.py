"""The `orchestrator` command."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Connection

from models.kernel.errors import InvalidSettings, OrchestratorError
from models.kernel.parsers import PERMISSIONS
from models.kernel.settings import load, variables
from orchestrator_cli.errors import CannotStart

WRONG_SETTINGS = 2
CANNOT = 1


class PlainErrors(click.Group):
    """Whatever stops a command is one line on stderr, never a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except InvalidSettings as error:
            refuse("; ".join(error.message.splitlines()), WRONG_SETTINGS)
        except CannotStart as error:
            refuse(error.line(), CANNOT)
        except OrchestratorError as error:
            refuse(error.message, CANNOT)
        except OSError as error:
            refuse(str(error), CANNOT)


def refuse(line: str, code: int) -> None:
    sys.stdout.flush()
    click.echo(f"orchestrator: {line}", err=True)
    sys.exit(code)


@click.group(cls=PlainErrors, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Robot tickets, engine runs, training runs, inference tasks and a droplet mesh over one durable kernel.

    Settings come from the environment: PORT, FLOWER_PORT, DATABASE_URL, BROKER_URL,
    ORCHESTRATOR_HOME and the rest of models/kernel/settings.py.
    """


def run_up(procfile: Path | None) -> None:
    from orchestrator_cli.up import up

    up(os.environ, procfile) if procfile else up(os.environ)


@main.command()
@click.option(
    "--procfile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Which processes to run; the project's Procfile unless given.",
)
def up(procfile: Path | None) -> None:
    """Start everything and keep it running until Ctrl-C."""
    run_up(procfile)


@main.command()
@click.option("--down", metavar="REVISION", help="Take the schema back to this revision instead.")
def migrate(down: str | None) -> None:
    """Bring the database's schema up to date."""
    url = database_url()
    act = migration(down)
    act(url)


def migration(down: str | None) -> Callable[[str], None]:
    from orchestrator_cli import migrate as steps

    return (lambda url: steps.downgrade(url, down)) if down else steps.upgrade


def database_url() -> str:
    """The database that the settings name, else the running embedded one."""
    from orchestrator_cli.embedded.postgres import Postgres
    from orchestrator_cli.home import Home

    chosen = load(os.environ)
    if chosen.database_url:
        return chosen.database_url
    embedded = Postgres(Home.at(chosen.home).directory / "postgres")
    if not embedded.data.exists() or not embedded.answers():
        raise CannotStart("no database is running", next_step="start it with `make up` or set DATABASE_URL")
    return embedded.url()


@main.command()
def settings() -> None:
    """List every setting: its variable, its default, what it means."""
    for name, item in variables().items():
        default = ",".join(sorted(item.default)) if isinstance(item.default, frozenset) else str(item.default)
        click.echo(f"{name:38} {default or '-':24} {item.metadata['help']}")


@main.command()
@click.argument("client")
@click.option(
    "--may", type=click.Choice(sorted(PERMISSIONS)), multiple=True, required=True, help="Give it once for each."
)
@click.option("--tenant", default="default", show_default=True)
def key(client: str, may: tuple[str, ...], tenant: str) -> None:
    """Print a new API key for a client, which is made, or changed to these permissions."""
    from models.kernel.clients import create_client, issue_key

    with on_the_database() as connection:
        create_client(connection, client, may, tenant)
        click.echo(issue_key(connection, client))


@main.command()
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Revoke an API key by its id, the twelve characters after orc_; it opens nothing within five seconds."""
    from models.kernel.clients import revoke_key

    with on_the_database() as connection:
        if not revoke_key(connection, key_id):
            raise CannotStart(f"there is no live key {key_id}", next_step="its id stands between the underscores")
    click.echo(f"revoked {key_id}")


@contextlib.contextmanager
def on_the_database() -> Iterator[Connection]:
    """A transaction on the database that the settings name, else on the running embedded one."""
    os.environ["DATABASE_URL"] = database_url()
    from models.kernel.session import transaction

    with transaction() as connection:
        yield connection


if __name__ == "__main__":
    main()
