"""Tokens: only the algorithm of the settings, only with an end, never worth more than the client's record."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from sqlalchemy import Connection, text

from models.kernel import clock
from models.kernel.clients import Client, create_client
from models.kernel.errors import Unauthenticated
from models.kernel.settings import settings
from models.kernel.tokens import client_of_token

SECRET = "a secret of exactly thirty-two b."
READ_WRITE = frozenset({"read", "write"})

PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = (
    PRIVATE.public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    .decode()
)

Set = Callable[..., None]


@pytest.fixture
def chosen(environment: pytest.MonkeyPatch) -> Set:
    """Set variables of the environment; settings are read anew."""

    def choose(**variables: str) -> None:
        for name, value in variables.items():
            environment.setenv(name, value)
        settings.cache_clear()

    return choose


@pytest.fixture
def hs256(connection: Connection, chosen: Set) -> Connection:
    chosen(JWT_SECRET_KEY=SECRET)
    return connection


@pytest.fixture
def rs256(connection: Connection, chosen: Set) -> Connection:
    chosen(JWT_ALGORITHM="RS256", JWT_PUBLIC_KEY=PEM)
    return connection


def claims(**changes: Any) -> dict[str, Any]:
    whole = {"sub": "ada", "exp": int(clock.wall()) + 600, **changes}
    return {name: value for name, value in whole.items() if value is not None}


def signed(key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers=headers)


def by_hand(header: dict[str, Any], key: bytes, hashed: Any = hashlib.sha256) -> str:
    """A token as an attacker makes it, past the library's own refusals."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims())]
    signature = hmac.new(key, b".".join(parts), hashed).digest()
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def refusal(connection: Connection, token: str) -> str:
    with pytest.raises(Unauthenticated) as refused:
        client_of_token(connection, token)
    return refused.value.code


def test_a_token_of_an_unknown_client_may_read_and_write_for_the_default_tenant(hs256: Connection) -> None:
    assert client_of_token(hs256, signed()) == Client("ada", "default", READ_WRITE)


def test_a_token_takes_its_tenant_from_the_client_s_record(hs256: Connection) -> None:
    create_client(hs256, "ada", ["read", "write", "admin"], tenant="lab")
    assert client_of_token(hs256, signed(tenant="other")) == Client("ada", "lab", READ_WRITE)


@pytest.mark.parametrize(
    ("claimed", "own", "worth"),
    [
        (None, ["read"], {"read"}),
        (["admin"], ["read", "write"], {"read", "write"}),
        (["read", "write", "admin"], ["read"], {"read"}),
        (["read"], ["admin"], {"read"}),
        (["admin"], ["admin"], {"read", "write", "admin"}),
        (["admin"], [], set()),
        ([], ["admin"], set()),
        (["fly", "read"], ["read", "write"], {"read"}),
    ],
)
def test_a_token_is_worth_no_more_than_it_says_and_no_more_than_its_client(
    hs256: Connection, claimed: list[str] | None, own: list[str], worth: set[str]
) -> None:
    create_client(hs256, "ada", own)
    assert client_of_token(hs256, signed(permissions=claimed)).permissions == worth


def test_a_disabled_client_s_token_is_refused(hs256: Connection) -> None:
    create_client(hs256, "ada", ["read"])
    hs256.execute(text("UPDATE clients SET disabled_at = clock_timestamp()"))
    assert refusal(hs256, signed()) == "token_invalid"


def test_a_token_that_ended_is_refused_as_expired(hs256: Connection) -> None:
    assert refusal(hs256, signed(exp=int(clock.wall()) - 60)) == "token_expired"


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None},
        {"exp": "soon"},
        {"exp": float("inf")},
        {"sub": None},
        {"sub": ""},
        {"sub": "x" * 65},
        {"sub": "a\x00b"},
        {"nbf": 32503680000},
        {"permissions": "admin"},
        {"permissions": [1]},
        {"permissions": {"admin": True}},
    ],
)
def test_a_token_with_a_wrong_claim_is_refused(hs256: Connection, changes: dict[str, Any]) -> None:
    assert refusal(hs256, signed(**changes)) == "token_invalid"


def test_a_token_signed_with_another_secret_is_refused(hs256: Connection) -> None:
    assert refusal(hs256, signed("another secret of thirty-two bytes")) == "token_invalid"


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "....", "é.é.é", "e30.e30.e30"])
def test_what_is_no_token_is_refused(hs256: Connection, token: str) -> None:
    assert refusal(hs256, token) == "token_invalid"


def test_a_token_without_a_signature_is_refused(hs256: Connection) -> None:
    unsigned = jwt.encode(claims(), None, "none")
    assert refusal(hs256, unsigned) == "token_invalid"
    for name in ("none", "None", "NONE", ""):
        assert refusal(hs256, by_hand({"alg": name, "typ": "JWT"}, b"")) == "token_invalid"


def test_an_rs256_token_holds_under_the_public_key(rs256: Connection) -> None:
    assert client_of_token(rs256, signed(PRIVATE, "RS256")).name == "ada"
    assert refusal(rs256, signed(OTHER_PRIVATE, "RS256")) == "token_invalid"


def test_the_public_key_may_be_a_file(rs256: Connection, chosen: Set, tmp_path: Path) -> None:
    file = tmp_path / "public.pem"
    file.write_text(PEM)
    chosen(JWT_PUBLIC_KEY=str(file))
    assert client_of_token(rs256, signed(PRIVATE, "RS256")).name == "ada"


def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(rs256: Connection) -> None:
    assert refusal(rs256, by_hand({"alg": "HS256", "typ": "JWT"}, PEM.encode())) == "token_invalid"


def test_a_token_cannot_choose_how_it_is_checked(hs256: Connection) -> None:
    assert refusal(hs256, signed(PRIVATE, "RS256")) == "token_invalid"
    assert refusal(hs256, by_hand({"alg": "HS512", "typ": "JWT"}, SECRET.encode(), hashlib.sha512)) == "token_invalid"


def jwk(key: rsa.RSAPrivateKey, kid: str) -> dict[str, Any]:
    return {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": kid, "alg": "RS256"}


@pytest.fixture
def jwks(connection: Connection, chosen: Set, tmp_path: Path) -> Connection:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [jwk(OTHER_PRIVATE, "old"), jwk(PRIVATE, "new")]}))
    chosen(JWT_ALGORITHM="RS256", ORCHESTRATOR_JWT_JWKS_FILE=str(file))
    return connection


def test_a_key_set_is_searched_by_the_token_s_key_id(jwks: Connection) -> None:
    assert client_of_token(jwks, signed(PRIVATE, "RS256", {"kid": "new"})).name == "ada"
    assert client_of_token(jwks, signed(OTHER_PRIVATE, "RS256", {"kid": "old"})).name == "ada"


@pytest.mark.parametrize("kid", ["old", "unknown", None])
def test_a_token_that_names_another_key_of_the_set_or_none_is_refused(jwks: Connection, kid: str | None) -> None:
    headers = {"kid": kid} if kid else None
    assert refusal(jwks, signed(PRIVATE, "RS256", headers)) == "token_invalid"


@pytest.mark.parametrize(
    "variables", [{"JWT_PUBLIC_KEY": "/nowhere/key.pem"}, {"ORCHESTRATOR_JWT_JWKS_FILE": "/nowhere/keys.json"}, {}]
)
def test_a_key_that_is_not_there_refuses_tokens_and_breaks_nothing(
    connection: Connection, chosen: Set, variables: dict[str, str]
) -> None:
    chosen(JWT_ALGORITHM="RS256", **variables)
    assert refusal(connection, signed(PRIVATE, "RS256", {"kid": "new"})) == "token_invalid"


def test_without_a_secret_no_token_is_accepted(connection: Connection, chosen: Set) -> None:
    chosen()
    assert refusal(connection, by_hand({"alg": "HS256", "typ": "JWT"}, b"")) == "token_invalid"


def test_issuer_and_audience_are_demanded_when_set(hs256: Connection, chosen: Set) -> None:
    chosen(ORCHESTRATOR_JWT_ISSUER="https://issuer", ORCHESTRATOR_JWT_AUDIENCE="orchestrator")
    right = {"iss": "https://issuer", "aud": "orchestrator"}
    assert client_of_token(hs256, signed(**right)).name == "ada"
    assert client_of_token(hs256, signed(**right | {"aud": ["x", "orchestrator"]})).name == "ada"
    for wrong in ({"iss": "https://other"}, {"iss": None}, {"aud": "other"}, {"aud": None}):
        assert refusal(hs256, signed(**right | wrong)) == "token_invalid"


def test_a_rotated_key_set_is_read_without_a_restart(connection: Connection, chosen: Set, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    claims = {"sub": "ana", "exp": int(clock.wall()) + 60}
    chosen(JWT_ALGORITHM="RS256", ORCHESTRATOR_JWT_JWKS_FILE=str(path))
    for moment, key in enumerate((PRIVATE, OTHER_PRIVATE), start=1):
        path.write_text(json.dumps({"keys": [jwk(key, "only")]}))
        os.utime(path, (moment, moment))
        token = jwt.encode(claims, key, "RS256", headers={"kid": "only"})
        assert client_of_token(connection, token).name == "ana"
