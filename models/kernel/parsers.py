"""How the text of a setting becomes its value; each parser raises ValueError, saying what would be right."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

PERMISSIONS = frozenset({"read", "write", "admin"})
TOPIC_LEVEL = re.compile(r"[A-Za-z0-9._:-]+", re.ASCII)
LONGEST_TOPIC = 200
STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")

Parser = Callable[[str], Any]


def whole(low: int, high: int) -> Parser:
    """A whole number in [low, high]."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high}")
        return value

    return parse


def number(low: float, high: float) -> Parser:
    """A decimal number in [low, high]."""

    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError(f"must be between {low:g} and {high:g}")
        return value

    return parse


def module_path(text: str) -> str:
    """A Python module by its dotted name."""
    if not all(part.isidentifier() for part in text.split(".")):
        raise ValueError("must be a module's dotted name, such as regime_engine.engine")
    return text


def one_of(*choices: str) -> Parser:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return parse


def flag(text: str) -> bool:
    lowered = text.lower()
    if lowered not in {"1", "0", "true", "false", "yes", "no"}:
        raise ValueError("must be true or false")
    return lowered in {"1", "true", "yes"}


def words(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(",") if part.strip())


def permissions(text: str) -> frozenset[str]:
    found = words(text)
    unknown = found - PERMISSIONS
    if unknown:
        raise ValueError(f"unknown permission {sorted(unknown)[0]!r}")
    return found


def url(*schemes: str) -> Parser:
    def parse(text: str) -> str:
        scheme, separator, _ = text.partition("://")
        if not separator or scheme not in schemes:
            raise ValueError(f"must start with {' or '.join(s + '://' for s in schemes)}")
        return well_formed(text)

    return parse


def mqtt_url(text: str) -> str:
    """A broker's address without credentials: those have settings of their own, of which one is never shown."""
    parts = urlsplit(url("mqtt", "mqtts")(text))
    if not parts.hostname or parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("must be a scheme, a host and a port, with neither user nor path")
    return text


def topic(text: str) -> str:
    """The beginning of MQTT topics: levels without wildcards, none of them empty."""
    if len(text) > LONGEST_TOPIC or not all(map(TOPIC_LEVEL.fullmatch, text.split("/"))):
        raise ValueError("must be letters, digits or . _ : - in levels that a / parts")
    return text


def well_formed(text: str) -> str:
    """A URL that every library behind it can take apart. Raises ValueError, quoting nothing of it."""
    if STRAY_PERCENT.search(text):
        raise ValueError("has a % that no two hexadecimal digits follow (write %25)")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("is no URL: look at its host and port") from None
    if port == 0:
        raise ValueError("names port 0")
    return text


def postgres_url(text: str) -> str:
    """``postgres://`` and ``postgresql://`` both mean the psycopg2 driver here."""
    for scheme in ("postgresql+psycopg2://", "postgresql://", "postgres://"):
        if text.startswith(scheme):
            well_formed(text)
            return "postgresql+psycopg2://" + text.removeprefix(scheme)
    raise ValueError("must start with postgresql://")


ORIGIN = re.compile(r"(?!http:.*:80$|https:.*:443$)https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")


def origins(text: str) -> frozenset[str]:
    """Origins exactly as browsers send them (RFC 6454): `*`, a path or the scheme's own port would never match one."""
    found = words(text)
    for origin in sorted(found):
        if not ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is no origin: write scheme://host or scheme://host:port, in lower case")
        well_formed(origin)
    return found


def networks(text: str) -> frozenset[str]:
    """Addresses and networks (CIDR)."""
    found = words(text)
    for network in sorted(found):
        ipaddress.ip_network(network)
    return found


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
