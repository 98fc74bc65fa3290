"""Who may call: clients and their API keys.

A key reads `orc_<key id>_<secret>`; only the SHA-256 of the secret is stored. The
secret has 192 random bits, so a slow hash would protect nothing and cost every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    RowMapping,
    Table,
    Text,
    func,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from models.kernel import ids
from models.kernel.errors import Conflict, Invalid, NotFound
from models.kernel.expressions import seconds
from models.kernel.ledger import note
from models.kernel.metadata import metadata
from models.kernel.parsers import PERMISSIONS
from models.kernel.session import transaction

KIND = "client"
ADMIN = "admin"
"""The client of whoever runs the service; `up` keeps its key in the home."""

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
    Column("rate_limit", Integer, comment="requests a second; null: the setting, 0: no limit"),
    CheckConstraint("permissions <@ ARRAY['read', 'write', 'admin']", name="permissions"),
    CheckConstraint("name ~ '^[A-Za-z0-9._:@-]{1,64}$'", name="name"),
    CheckConstraint("tenant ~ '^[A-Za-z0-9._:@-]{1,64}$'", name="tenant"),
    CheckConstraint("rate_limit BETWEEN 0 AND 1000000", name="rate_limit"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("client", Text, ForeignKey("clients.name"), nullable=False),
    Column("secret_sha256", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("expires_at", DateTime(timezone=True)),
    Column("revoked_at", DateTime(timezone=True)),
    CheckConstraint("length(secret_sha256) = 64", name="hash"),
    Index("api_keys_client_ix", "client", "created_at", "id"),
)

LIVE = (
    api_keys.c.revoked_at.is_(None),
    func.coalesce(api_keys.c.expires_at, text("'infinity'")) > func.clock_timestamp(),
)
SHOWN = [column for column in api_keys.c if column.name != "secret_sha256"]


@dataclass(frozen=True)
class Caller:
    """Whoever makes a request: a client's name, what it may do, and the request's correlation id."""

    name: str
    tenant: str
    permissions: frozenset[str]
    correlation_id: str
    rate_limit: int | None = None

    def may(self, permission: str) -> bool:
        return permission in self.permissions or "admin" in self.permissions


@dataclass(frozen=True)
class Client:
    """A client as its credential proves it."""

    name: str
    tenant: str
    permissions: frozenset[str]
    rate_limit: int | None = None


OPERATOR = Caller("operator", "default", PERMISSIONS, "")
"""Whoever has the database's address in hand: the command line and the installer."""


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create_client(
    connection: Connection, name: str, permissions: Iterable[str], tenant: str = "default", *, by: Caller = OPERATOR
) -> None:
    """Create a client, or set the permissions and tenant of the one that has this name. Raises Invalid.

    A client that was disabled stays so.
    """
    values = checked(name=name, permissions=permissions, tenant=tenant)
    made = insert(clients).values(values)
    connection.execute(made.on_conflict_do_update(index_elements=["name"], set_=without(values, "name")))
    tell(connection, "client.set", name, by, **without(values, "name"))


def set_enabled(connection: Connection, name: str, enabled: bool, *, by: Caller = OPERATOR) -> bool:
    """Enable or disable a client: none of a disabled one's keys and tokens is accepted. False when it is unknown."""
    stamp = None if enabled else func.clock_timestamp()
    known = connection.execute(update(clients).where(clients.c.name == name).values(disabled_at=stamp)).rowcount
    if known:
        tell(connection, "client.enabled" if enabled else "client.disabled", name, by)
    return bool(known)


def issue_key(connection: Connection, client: str, expires_at: Any = None, *, by: Caller = OPERATOR) -> str:
    """Make a key for a client. The answer is the only time that the key can be read."""
    key_id, secret = ids.new_key_id(), ids.new_secret()
    values = {"id": key_id, "client": client, "secret_sha256": digest(secret), "expires_at": expires_at}
    connection.execute(insert(api_keys).values(values))
    tell(connection, "client.key_issued", client, by, key_id=key_id)
    return f"orc_{key_id}_{secret}"


def revoke_key(connection: Connection, key_id: str, *, by: Caller = OPERATOR) -> bool:
    """Revoke a key; False when it is unknown or was revoked before."""
    live = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    client = connection.scalar(live.values(revoked_at=func.clock_timestamp()).returning(api_keys.c.client))
    if client is not None:
        tell(connection, "client.key_revoked", client, by, key_id=key_id)
    return client is not None


def revoke_keys(connection: Connection, client: str, *, by: Caller = OPERATOR) -> None:
    """Revoke every key of a client that was not revoked before."""
    live = update(api_keys).where(api_keys.c.client == client, api_keys.c.revoked_at.is_(None))
    for key_id in connection.scalars(live.values(revoked_at=func.clock_timestamp()).returning(api_keys.c.id)).all():
        tell(connection, "client.key_revoked", client, by, key_id=key_id)


def later(after_seconds: float) -> Any:
    """The moment so many seconds from now, by the database's clock."""
    return func.clock_timestamp() + seconds(after_seconds)


def rotate_key(
    connection: Connection, key_id: str, overlap_seconds: float = 0, expires_at: Any = None, *, by: Caller = OPERATOR
) -> str:
    """Make a key that takes the place of another, which ends `overlap_seconds` from now, or earlier if it was to.

    Raises NotFound when there is no such key, Conflict when it has ended.
    """
    end = func.least(api_keys.c.expires_at, later(overlap_seconds))
    ends = update(api_keys).where(api_keys.c.id == key_id, *LIVE).values(expires_at=end)
    client = connection.scalar(ends.returning(api_keys.c.client))
    if client is None:
        get_key(connection, key_id)
        raise Conflict(f"The key {key_id} has ended", code="key_ended")
    tell(connection, "client.key_rotated", client, by, key_id=key_id, overlap_seconds=overlap_seconds)
    return issue_key(connection, client, expires_at, by=by)


def get_key(connection: Connection, key_id: str) -> RowMapping:
    """What is known of a key, its secret apart. Raises NotFound."""
    row = connection.execute(select(*SHOWN).where(api_keys.c.id == key_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no key {key_id}", code="key_not_found")
    return row


def list_keys(
    connection: Connection, client: str, limit: int = 100, after: tuple[Any, str] | None = None
) -> Sequence[RowMapping]:
    """A client's keys without their secrets, newest first, beyond the position `after`."""
    wanted = select(*SHOWN).where(api_keys.c.client == client)
    if after is not None:
        wanted = wanted.where(tuple_(api_keys.c.created_at, api_keys.c.id) < tuple_(*after))
    newest = (api_keys.c.created_at.desc(), api_keys.c.id.desc())
    return connection.execute(wanted.order_by(*newest).limit(limit)).mappings().all()


def list_clients(connection: Connection, limit: int = 100, after: str = "") -> Sequence[RowMapping]:
    """Clients by name, beyond the name `after`."""
    wanted = select(clients).where(clients.c.name > after).order_by(clients.c.name).limit(limit)
    return connection.execute(wanted).mappings().all()


def checked(**wanted: Any) -> dict[str, Any]:
    """A client's values as they are stored. Raises Invalid, where the database would refuse them less kindly."""
    for item in wanted.keys() & {"name", "tenant"}:
        if not NAME.fullmatch(wanted[item]):
            raise Invalid(f"A client's {item} has 1 to 64 letters, digits or . _ : @ -")
    if "permissions" in wanted:
        asked = set(wanted["permissions"])
        if unknown := asked - PERMISSIONS:
            raise Invalid(f"Unknown permission: {', '.join(sorted(unknown))}")
        wanted["permissions"] = sorted(asked)
    return wanted


def without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def tell(connection: Connection, topic: str, client: str, by: Caller, **body: Any) -> None:
    """Record what was done to a client, and by whom; never a secret."""
    trace = by.correlation_id or ids.new_uuid()
    note(connection, topic, subject=(KIND, client), actor=by.name, correlation_id=trace, body=body)


def find_client_by_key(connection: Connection, key: str) -> Client | None:
    """The client that a key proves, unless it is unknown, revoked, expired or disabled."""
    parts = KEY.fullmatch(key)
    if parts is None:
        return None
    row = connection.execute(
        select(api_keys.c.secret_sha256, clients)
        .join(clients, clients.c.name == api_keys.c.client)
        .where(api_keys.c.id == parts[1], *LIVE, clients.c.disabled_at.is_(None))
    ).one_or_none()
    if row is None or not hmac.compare_digest(row.secret_sha256, digest(parts[2])):
        return None
    return client_of_row(row)


def find_client(connection: Connection, name: str) -> Client | None:
    """An enabled client by its name."""
    row = connection.execute(
        select(clients).where(clients.c.name == name, clients.c.disabled_at.is_(None))
    ).one_or_none()
    return client_of_row(row) if row else None


def client_of_row(row: Any) -> Client:
    return Client(row.name, row.tenant, frozenset(row.permissions), row.rate_limit)


def is_disabled(connection: Connection, name: str) -> bool:
    """Whether a client of this name exists and was disabled."""
    return connection.scalar(select(clients.c.disabled_at).where(clients.c.name == name)) is not None


def issue_admin_key() -> str:
    """A key for the client `admin`, which is made when it is missing and enabled when it was disabled.

    Whoever disabled it closed the door to the keys it had, so that none of them comes back with it.
    """
    with transaction() as connection:
        if is_disabled(connection, ADMIN):
            revoke_keys(connection, ADMIN)
            set_enabled(connection, ADMIN, True)
        create_client(connection, ADMIN, PERMISSIONS)
        return issue_key(connection, ADMIN)


def admin_is_disabled() -> bool:
    with transaction() as connection:
        return is_disabled(connection, ADMIN)


def key_is_valid(key: str) -> bool:
    with transaction() as connection:
        return find_client_by_key(connection, key) is not None
