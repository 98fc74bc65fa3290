"""Who may call: clients and their API keys.

A key reads `orc_<key id>_<secret>`; only the SHA-256 of the secret is stored. The
secret has 192 random bits, so a slow hash would protect nothing and cost every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    ForeignKey,
    Table,
    Text,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from models.kernel import ids
from models.kernel.errors import Invalid
from models.kernel.metadata import metadata
from models.kernel.parsers import PERMISSIONS
from models.kernel.session import transaction

NAME = re.compile(r"[A-Za-z0-9._:@-]{1,64}")
KEY = re.compile(r"orc_([0-9a-f]{12})_([A-Za-z0-9_-]{32})")

clients = Table(
    "clients",
    metadata,
    Column("name", Text, primary_key=True),
    Column("tenant", Text, nullable=False, server_default="default"),
    Column("permissions", ARRAY(Text), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("disabled_at", DateTime(timezone=True)),
    CheckConstraint("permissions <@ ARRAY['read', 'write', 'admin']", name="permissions"),
    CheckConstraint("name ~ '^[A-Za-z0-9._:@-]{1,64}$'", name="name"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("client", Text, ForeignKey("clients.name"), nullable=False, index=True),
    Column("secret_sha256", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("expires_at", DateTime(timezone=True)),
    Column("revoked_at", DateTime(timezone=True)),
    CheckConstraint("length(secret_sha256) = 64", name="hash"),
)


@dataclass(frozen=True)
class Caller:
    """Whoever makes a request: a client's name, what it may do, and the request's correlation id."""

    name: str
    tenant: str
    permissions: frozenset[str]
    correlation_id: str

    def may(self, permission: str) -> bool:
        return permission in self.permissions or "admin" in self.permissions


@dataclass(frozen=True)
class Client:
    """A client as its credential proves it."""

    name: str
    tenant: str
    permissions: frozenset[str]


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create_client(connection: Connection, name: str, permissions: Iterable[str], tenant: str = "default") -> None:
    """Create a client, or set the permissions and tenant of the one that has this name. Raises Invalid.

    A client that was disabled stays so.
    """
    if not NAME.fullmatch(name):
        raise Invalid("A client's name has 1 to 64 letters, digits or . _ : @ -")
    wanted = set(permissions)
    if unknown := wanted - PERMISSIONS:
        raise Invalid(f"Unknown permission: {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {"permissions": sorted(wanted), "tenant": tenant}
    made = insert(clients).values(name=name, **values)
    connection.execute(made.on_conflict_do_update(index_elements=["name"], set_=values))


def set_enabled(connection: Connection, name: str, enabled: bool) -> bool:
    """Enable or disable a client: none of a disabled one's keys and tokens is accepted. False when it is unknown."""
    stamp = None if enabled else func.clock_timestamp()
    return bool(connection.execute(update(clients).where(clients.c.name == name).values(disabled_at=stamp)).rowcount)


def issue_key(connection: Connection, client: str, expires_at: Any = None) -> str:
    """Make a key for a client. The answer is the only time that the key can be read."""
    key_id, secret = ids.new_key_id(), ids.new_secret()
    values = {"id": key_id, "client": client, "secret_sha256": digest(secret), "expires_at": expires_at}
    connection.execute(insert(api_keys).values(values))
    return f"orc_{key_id}_{secret}"


def revoke_key(connection: Connection, key_id: str) -> bool:
    """Revoke a key; False when it is unknown or was revoked before."""
    live = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    return bool(connection.execute(live.values(revoked_at=func.clock_timestamp())).rowcount)


def find_client_by_key(connection: Connection, key: str) -> Client | None:
    """The client that a key proves, unless it is unknown, revoked, expired or disabled."""
    parts = KEY.fullmatch(key)
    if parts is None:
        return None
    live = (api_keys.c.revoked_at.is_(None), clients.c.disabled_at.is_(None))
    fresh = func.coalesce(api_keys.c.expires_at, text("'infinity'")) > func.clock_timestamp()
    row = connection.execute(
        select(api_keys.c.secret_sha256, clients.c.name, clients.c.tenant, clients.c.permissions)
        .join(clients, clients.c.name == api_keys.c.client)
        .where(api_keys.c.id == parts[1], *live, fresh)
    ).one_or_none()
    if row is None or not hmac.compare_digest(row.secret_sha256, digest(parts[2])):
        return None
    return Client(row.name, row.tenant, frozenset(row.permissions))


def find_client(connection: Connection, name: str) -> Client | None:
    """An enabled client by its name."""
    row = connection.execute(
        select(clients).where(clients.c.name == name, clients.c.disabled_at.is_(None))
    ).one_or_none()
    return Client(row.name, row.tenant, frozenset(row.permissions)) if row else None


def is_disabled(connection: Connection, name: str) -> bool:
    """Whether a client of this name exists and was disabled."""
    return connection.scalar(select(clients.c.disabled_at).where(clients.c.name == name)) is not None


def issue_admin_key() -> str:
    """A key for the client `admin`, which is made when it is missing."""
    with transaction() as connection:
        create_client(connection, "admin", PERMISSIONS)
        return issue_key(connection, "admin")


def key_is_valid(key: str) -> bool:
    with transaction() as connection:
        return find_client_by_key(connection, key) is not None
