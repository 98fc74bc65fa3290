"""`orchestrator clients`: who may call, and their keys. Works on the database, so that it makes the first key too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from models.kernel.parsers import PERMISSIONS
from orchestrator_cli.addresses import database_url
from orchestrator_cli.errors import CommandFailed
from orchestrator_cli.output import facts, printing, show, table

if TYPE_CHECKING:
    from sqlalchemy import Connection

CLIENT = ("name", "tenant", "permissions", "rate_limit", "created_at", "disabled_at")
KEY = ("id", "created_at", "expires_at", "revoked_at")
PAGE = 1000
NEXT_STEP = "make a client with --may admin and a key for it first, or repeat this with --force"

may_option = click.option(
    "--may", type=click.Choice(sorted(PERMISSIONS)), multiple=True, help="A permission; give it once for each."
)
rate_option = click.option(
    "--rate-limit", type=click.IntRange(0, 10**6), help="Requests a second; 0 means no limit, else the setting counts."
)
expires_option = click.option(
    "--expires-in", type=click.IntRange(1, 10 * 366 * 86_400), metavar="SECONDS", help="When the key ends by itself."
)
force_option = click.option("--force", is_flag=True, help="Also when nobody could administer the service afterwards.")


@contextlib.contextmanager
def on_the_database() -> Iterator[Connection]:
    """A transaction on the database that the settings name, else on the running embedded one."""
    os.environ["DATABASE_URL"] = database_url()
    from models.kernel.session import transaction

    with transaction() as connection:
        yield connection


@contextlib.contextmanager
def administering(force: bool) -> Iterator[Connection]:
    """A transaction after which somebody can still administer the service, unless forced. Raises CommandFailed."""
    with on_the_database() as connection:
        if force:
            yield connection
            return
        from models.kernel import administration
        from models.kernel.errors import Conflict

        try:
            with administration.administering(connection):
                yield connection
        except Conflict as refused:
            if refused.code != administration.LAST_ADMIN:
                raise
            raise CommandFailed(refused.message, next_step=NEXT_STEP, problem={"code": refused.code}) from refused


def plain(row: Mapping[Any, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A row as JSON says it."""
    found = {name: row[name] for name in names}
    return {n: value.isoformat() if isinstance(value, datetime) else value for n, value in found.items()}


@click.group()
def clients() -> None:
    """Who may call, and their API keys."""


@clients.command("list")
@printing
def list_clients() -> None:
    """All clients, by name."""
    from models.kernel import clients as kernel

    with on_the_database() as connection:
        found, after = [], ""
        while page := kernel.list_clients(connection, PAGE, after):
            found += [plain(row, CLIENT) for row in page]
            after = page[-1]["name"]
    show({"clients": found}, table(CLIENT, found, nothing="no client"))


@clients.command()
@click.argument("name")
@may_option
@click.option("--tenant", default="default", show_default=True)
@rate_option
@printing
def create(name: str, may: tuple[str, ...], tenant: str, rate_limit: int | None) -> None:
    """Make a client; `clients key` then makes it a key. Without --may it may read and write."""
    from models.kernel.administration import register_client
    from models.kernel.clients import OPERATOR

    draft = {"name": name, "permissions": may or ("read", "write"), "tenant": tenant, "rate_limit": rate_limit}
    with on_the_database() as connection:
        made = plain(register_client(connection, draft, by=OPERATOR), CLIENT)
    show(made, facts(made))


@clients.command("show")
@click.argument("name")
@printing
def show_client(name: str) -> None:
    """One client and its keys."""
    from models.kernel.administration import get_client
    from models.kernel.clients import list_keys

    with on_the_database() as connection:
        client = plain(get_client(connection, name), CLIENT)
        keys = [plain(row, KEY) for row in list_keys(connection, name)]
    show({**client, "keys": keys}, [*facts(client), "", *table(KEY, keys, nothing="no key")])


@clients.command("set")
@click.argument("name")
@may_option
@click.option("--tenant")
@rate_option
@force_option
@printing
def set_client(name: str, may: tuple[str, ...], tenant: str | None, rate_limit: int | None, force: bool) -> None:
    """Change what is given; permissions are replaced as a whole."""
    wanted = {"permissions": may or None, "tenant": tenant, "rate_limit": rate_limit}
    change(name, {key: value for key, value in wanted.items() if value is not None}, force)


@clients.command()
@click.argument("name")
@force_option
@printing
def disable(name: str, force: bool) -> None:
    """Accept none of a client's keys and tokens from now on; it holds everywhere within five seconds."""
    change(name, {"disabled": True}, force)


@clients.command()
@click.argument("name")
@printing
def enable(name: str) -> None:
    """Accept a disabled client's keys and tokens again."""
    change(name, {"disabled": False})


def change(name: str, changes: dict[str, Any], force: bool = False) -> None:
    from models.kernel.administration import change_client
    from models.kernel.clients import OPERATOR

    with administering(force) as connection:
        changed = plain(change_client(connection, name, changes, by=OPERATOR), CLIENT)
    show(changed, facts(changed))


@clients.command()
@click.argument("name")
@expires_option
@printing
def key(name: str, expires_in: int | None) -> None:
    """Print a new API key for a client. It cannot be shown again."""
    from models.kernel.administration import get_client
    from models.kernel.clients import issue_key, later

    with on_the_database() as connection:
        get_client(connection, name)
        made = issue_key(connection, name, None if expires_in is None else later(expires_in))
    show_key(made)


def show_key(made: str) -> None:
    show({"id": made.split("_")[1], "key": made}, [made])


@clients.command()
@click.argument("name")
@printing
def keys(name: str) -> None:
    """A client's keys, newest first, without their secrets."""
    from models.kernel.administration import get_client
    from models.kernel.clients import list_keys

    with on_the_database() as connection:
        get_client(connection, name)
        found = [plain(row, KEY) for row in list_keys(connection, name, PAGE)]
    show({"keys": found}, table(KEY, found, nothing="no key"))


@clients.command()
@click.argument("key_id")
@click.option("--overlap", type=click.IntRange(0, 366 * 86_400), default=3600, show_default=True, metavar="SECONDS")
@expires_option
@force_option
@printing
def rotate(key_id: str, overlap: int, expires_in: int | None, force: bool) -> None:
    """Print a key that takes another's place; the old one, named by its id, ends after the overlap."""
    from models.kernel.clients import later, rotate_key

    with administering(force) as connection:
        made = rotate_key(connection, key_id, overlap, None if expires_in is None else later(expires_in))
    show_key(made)


@clients.command()
@click.argument("key_id")
@force_option
@printing
def revoke(key_id: str, force: bool) -> None:
    """Revoke a key by its id, the twelve characters after orc_; it opens nothing within five seconds."""
    from models.kernel.clients import get_key, revoke_key

    with administering(force) as connection:
        was_live = revoke_key(connection, key_id)
        revoked = plain(get_key(connection, key_id), KEY)
    show(revoked, [f"revoked {key_id}" if was_live else f"{key_id} was revoked before"])
