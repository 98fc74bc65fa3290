"""How one administrator changes clients and keys without shutting every administrator out.

Administrators take turns: each act runs in a transaction under one lock, and whoever
would end the last key that can administer is refused. Tokens do not count as such a
key, since who signs them is not known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from models.kernel.clients import LIVE, Caller, api_keys, checked, clients, later, tell, without
from models.kernel.errors import Conflict, NotFound

LASTING_SECONDS = 3600.0
"""A key that ends sooner does not keep the door open."""

LAST_ADMIN = "last_admin"


@contextlib.contextmanager
def administering(connection: Connection) -> Iterator[None]:
    """Whatever is done inside leaves at least one key that can administer, if there was one; else Conflict."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("clients"))))
    before = count_admin_keys(connection)
    yield
    if before and not count_admin_keys(connection):
        raise Conflict("Nobody could administer the service any more: this is the last such key", code=LAST_ADMIN)


def count_admin_keys(connection: Connection) -> int:
    """How many keys can administer the service for LASTING_SECONDS to come; at most one is counted."""
    lasting = api_keys.c.expires_at > later(LASTING_SECONDS)
    found = (
        select(text("1"))
        .select_from(api_keys.join(clients, clients.c.name == api_keys.c.client))
        .where(*LIVE, clients.c.disabled_at.is_(None), clients.c.permissions.contains(["admin"]))
        .where(or_(api_keys.c.expires_at.is_(None), lasting))
        .limit(1)
    )
    return len(connection.execute(found).all())


def register_client(connection: Connection, draft: Mapping[str, Any], *, by: Caller) -> RowMapping:
    """Make a client from name, permissions, tenant and rate_limit. Raises Invalid; Conflict when the name is taken."""
    values = checked(**draft)
    made = connection.execute(insert(clients).values(values).on_conflict_do_nothing().returning(clients)).mappings()
    row = made.one_or_none()
    if row is None:
        raise Conflict(f"There is a client {values['name']} already", code="client_exists")
    tell(connection, "client.created", values["name"], by, **without(values, "name"))
    return row


def change_client(connection: Connection, name: str, changes: Mapping[str, Any], *, by: Caller) -> RowMapping:
    """Change permissions, tenant, rate_limit (None: the setting) or disabled of a client. Raises NotFound, Invalid."""
    values = checked(**changes)
    told = dict(values)
    if "disabled" in values:
        now = func.coalesce(clients.c.disabled_at, func.clock_timestamp())
        values["disabled_at"] = now if values.pop("disabled") else None
    if not values:
        return get_client(connection, name)
    changed = update(clients).where(clients.c.name == name).values(values).returning(clients)
    row = connection.execute(changed).mappings().one_or_none()
    if row is None:
        raise unknown_client(name)
    tell(connection, "client.changed", name, by, **told)
    return row


def get_client(connection: Connection, name: str) -> RowMapping:
    """A client's record. Raises NotFound."""
    row = connection.execute(select(clients).where(clients.c.name == name)).mappings().one_or_none()
    if row is None:
        raise unknown_client(name)
    return row


def unknown_client(name: str) -> NotFound:
    return NotFound(f"There is no client {name}", code="client_not_found")
