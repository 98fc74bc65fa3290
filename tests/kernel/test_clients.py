"""Clients and keys: the secret is nowhere but with its owner, and a key that ended opens nothing."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from models.kernel import clients
from models.kernel.clients import Caller, Client
from models.kernel.errors import Invalid


@pytest.fixture
def key(connection: Connection) -> str:
    clients.create_client(connection, "ada", ["read", "write"], tenant="lab")
    return clients.issue_key(connection, "ada")


def key_id(key: str) -> str:
    return key.split("_")[1]


def test_a_key_proves_its_client(connection: Connection, key: str) -> None:
    found = clients.find_client_by_key(connection, key)
    assert found == Client("ada", "lab", frozenset({"read", "write"}))


def test_the_secret_is_nowhere_in_the_database(connection: Connection, key: str) -> None:
    secret = key.split("_", 2)[2]
    columns = connection.execute(
        text(
            "SELECT quote_ident(table_name), quote_ident(column_name) FROM information_schema.columns"
            " WHERE table_schema = 'public'"
        )
    ).all()
    assert ("api_keys", "secret_sha256") in [tuple(column) for column in columns]
    for table, column in columns:
        found = text(f"SELECT count(*) FROM {table} WHERE strpos({column}::text, :secret) > 0")
        assert connection.scalar(found, {"secret": secret}) == 0, f"{table}.{column}"


def test_two_keys_of_one_client_differ_and_end_apart(connection: Connection, key: str) -> None:
    other = clients.issue_key(connection, "ada")
    assert other != key
    assert clients.revoke_key(connection, key_id(key))
    assert clients.find_client_by_key(connection, key) is None
    assert clients.find_client_by_key(connection, other) is not None


def test_a_key_is_revoked_once(connection: Connection, key: str) -> None:
    assert clients.revoke_key(connection, key_id(key))
    assert not clients.revoke_key(connection, key_id(key))
    assert not clients.revoke_key(connection, "000000000000")


def test_an_expired_key_opens_nothing(connection: Connection) -> None:
    clients.create_client(connection, "ada", ["read"])
    assert clients.find_client_by_key(connection, clients.issue_key(connection, "ada", "2020-01-01")) is None
    assert clients.find_client_by_key(connection, clients.issue_key(connection, "ada", "2999-01-01")) is not None


def test_a_disabled_client_s_key_opens_nothing(connection: Connection, key: str) -> None:
    assert clients.set_enabled(connection, "ada", False)
    clients.create_client(connection, "ada", ["read"])  # a new record does not lift the ban
    assert clients.find_client_by_key(connection, key) is None
    assert clients.find_client(connection, "ada") is None
    assert clients.is_disabled(connection, "ada")
    assert not clients.is_disabled(connection, "nobody")
    assert not clients.set_enabled(connection, "nobody", True)
    assert clients.set_enabled(connection, "ada", True)
    assert clients.find_client_by_key(connection, key) is not None


@pytest.mark.parametrize("change", ["x{}", "{}x", "{} ", "{}\n", "{}\x00", "ORC{}", ""])
def test_what_is_not_exactly_the_key_opens_nothing(connection: Connection, key: str, change: str) -> None:
    assert clients.find_client_by_key(connection, change.format(key)) is None


def test_the_right_id_with_another_secret_opens_nothing(connection: Connection, key: str) -> None:
    other = clients.issue_key(connection, "ada")
    assert clients.find_client_by_key(connection, f"orc_{key_id(key)}_{other.split('_', 2)[2]}") is None


def test_a_client_made_again_takes_the_new_permissions(connection: Connection, key: str) -> None:
    clients.create_client(connection, "ada", ["read"])
    found = clients.find_client_by_key(connection, key)
    assert found == Client("ada", "default", frozenset({"read"}))


def test_an_unknown_permission_is_refused_and_not_dropped(connection: Connection) -> None:
    with pytest.raises(Invalid, match="wrtie"):
        clients.create_client(connection, "ada", ["read", "wrtie"])


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "ada\n", "añna"])
def test_a_name_that_makes_no_sense_is_refused_here_and_by_the_database(connection: Connection, name: str) -> None:
    with pytest.raises(Invalid, match="name"):
        clients.create_client(connection, name, ["read"])
    by_hand = text("INSERT INTO clients (name, permissions) VALUES (:name, '{read}')")
    with pytest.raises(IntegrityError, match="clients_name_check"):
        connection.execute(by_hand, {"name": name})


def test_a_tenant_that_makes_no_sense_is_refused_here_and_by_the_database(connection: Connection) -> None:
    with pytest.raises(Invalid, match="tenant"):
        clients.create_client(connection, "ada", ["read"], tenant="a b")
    with pytest.raises(IntegrityError, match="clients_tenant_check"):
        connection.execute(text("INSERT INTO clients (name, permissions, tenant) VALUES ('ada', '{read}', 'a b')"))


def test_what_is_done_by_hand_is_told_to_the_ledger_too(connection: Connection, key: str) -> None:
    clients.set_enabled(connection, "ada", False)
    clients.set_enabled(connection, "nobody", False)
    clients.revoke_key(connection, key_id(key))
    clients.revoke_key(connection, key_id(key))
    told = connection.execute(text("SELECT topic, subject_id, actor, body FROM ledger WHERE subject_kind = 'client'"))
    rows = told.all()
    topics = ["client.set", "client.key_issued", "client.disabled", "client.key_revoked"]
    assert [tuple(row)[:3] for row in rows] == [(topic, "ada", "operator") for topic in topics]
    assert key.split("_", 2)[2] not in str(rows)


def test_admin_implies_the_other_permissions() -> None:
    def caller(*permissions: str) -> Caller:
        return Caller("x", "default", frozenset(permissions), "c")

    assert caller("admin").may("write")
    assert caller("read").may("read")
    assert not caller("read").may("write")
    assert not caller("read", "write").may("admin")


def test_the_admin_key_does_everything_and_can_be_made_again(connection: Connection) -> None:
    first, second = clients.issue_admin_key(), clients.issue_admin_key()
    for key in (first, second):
        found = clients.find_client_by_key(connection, key)
        assert found is not None
        assert "admin" in found.permissions
        assert clients.key_is_valid(key)
    assert not clients.key_is_valid("orc_000000000000_" + "x" * 32)
