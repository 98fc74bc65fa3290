"""JSON Web Tokens (RFC 7519): HS256 or RS256, one algorithm at a time, never `none`.

The algorithm comes from the settings, not from the token's header, so that a token
cannot choose how it is checked. `exp` and `sub` are required; a token without a
`permissions` claim means read and write. Tenant and limits come from the client of
that name when there is one: a token is never worth more than its client's record.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import jwt
from sqlalchemy import Connection

from models.kernel.clients import Client, find_client, is_disabled
from models.kernel.errors import Unauthenticated
from models.kernel.parsers import PERMISSIONS
from models.kernel.settings import settings

log = logging.getLogger(__name__)

LEEWAY_SECONDS = 5
LONGEST_NAME = 64
DEFAULT_PERMISSIONS = frozenset({"read", "write"})


def client_of_token(connection: Connection, token: str) -> Client:
    """The client that a token proves. Raises Unauthenticated."""
    claims = verified_claims(token)
    name = claims.get("sub")
    if not isinstance(name, str) or not 1 <= len(name) <= LONGEST_NAME or "\x00" in name:
        raise Unauthenticated("The token's sub claim must be a name of 1 to 64 characters", code="token_invalid")
    granted = permissions_of(claims)
    known = find_client(connection, name)
    if known is not None:
        return Client(name, known.tenant, effective(granted, known.permissions), known.rate_limit)
    if is_disabled(connection, name):
        raise Unauthenticated("The token's client is disabled", code="token_invalid")
    return Client(name, "default", granted)


def effective(granted: frozenset[str], own: frozenset[str]) -> frozenset[str]:
    """What a token may do: no more than it says and no more than its client may. Admin implies the others."""
    return implied(granted) & implied(own)


def implied(permissions: frozenset[str]) -> frozenset[str]:
    return PERMISSIONS if "admin" in permissions else permissions


def permissions_of(claims: dict[str, Any]) -> frozenset[str]:
    named = claims.get("permissions")
    if named is None:
        return DEFAULT_PERMISSIONS
    if not isinstance(named, list) or not all(isinstance(item, str) for item in named):
        raise Unauthenticated("The token's permissions claim must be a list of texts", code="token_invalid")
    return frozenset(named) & PERMISSIONS


def verified_claims(token: str) -> dict[str, Any]:
    """The claims of a token whose signature, times, issuer and audience hold. Raises Unauthenticated."""
    chosen = settings()
    try:
        return jwt.decode(
            token,
            verification_key(token),
            algorithms=[chosen.jwt_algorithm],
            audience=chosen.jwt_audience or None,
            issuer=chosen.jwt_issuer or None,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "sub"], "verify_aud": bool(chosen.jwt_audience)},
        )
    except jwt.ExpiredSignatureError:
        raise Unauthenticated("Token has expired", code="token_expired") from None
    except OSError:
        log.exception("the key that proves tokens cannot be read")
        raise Unauthenticated("JWTs are not accepted here: their key cannot be read", code="token_invalid") from None
    except (jwt.PyJWTError, ValueError):
        raise Unauthenticated("Could not validate credentials", code="token_invalid") from None


def verification_key(token: str) -> Any:
    chosen = settings()
    if chosen.jwt_algorithm == "HS256":
        if not chosen.jwt_secret_key:
            raise Unauthenticated("JWTs are not accepted here: JWT_SECRET_KEY is not set", code="token_invalid")
        return chosen.jwt_secret_key
    if chosen.jwt_jwks_file:
        return key_of_set(chosen.jwt_jwks_file, jwt.get_unverified_header(token).get("kid"))
    return public_key(chosen.jwt_public_key)


def public_key(text: str) -> str:
    if not text:
        raise Unauthenticated("JWTs are not accepted here: JWT_PUBLIC_KEY is not set", code="token_invalid")
    return text if text.lstrip().startswith("-----BEGIN") else file_as_of(text, Path(text).stat().st_mtime_ns)


def key_set(path: str) -> jwt.PyJWKSet:
    return parsed(file_as_of(path, Path(path).stat().st_mtime_ns))


@functools.lru_cache(maxsize=8)
def file_as_of(path: str, _modified: int) -> str:
    """A key file, read again when it was changed, so that keys rotate without a restart."""
    return Path(path).read_text()


@functools.lru_cache(maxsize=8)
def parsed(document: str) -> jwt.PyJWKSet:
    return jwt.PyJWKSet.from_json(document)


def key_of_set(path: str, kid: str | None) -> Any:
    for key in key_set(path).keys:
        if key.key_id == kid and key.key_type == "RSA":
            return key.key
    raise Unauthenticated("The token names an unknown key", code="token_invalid")
