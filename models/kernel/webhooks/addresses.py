"""Where the service may call out to: URLs that strangers gave, and the addresses behind them.

A host is resolved and every address of it must be public; whoever connects uses the
very address that was checked, so that a name which resolves differently a moment later
(DNS rebinding) gains nothing. What counts as public follows the IANA special-purpose
address registries (RFC 6890), kept here since Python's own copies differ from version
to version, and is decided for IPv6 by what is allowed, 2000::/3 (RFC 4291, section
2.4), and not by what is not. Any port may be called: receivers listen where they like.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

from models.kernel.errors import Invalid, Unavailable
from models.kernel.settings import settings

LONGEST_URL = 2048
LOOKUP_SECONDS = 2.0
LOOKUPS_AT_ONCE = 16
PORTS = {"http": 80, "https": 443}

REFUSED = "webhook_address_refused"
MALFORMED = "webhook_url_invalid"

PLAIN = re.compile(r"[\x21-\x7e]+")
LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST = re.compile(rf"(?=.{{1,253}}\Z){LABEL}(?:\.{LABEL})*\.?")
NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")

GLOBAL_V6 = ipaddress.ip_network("2000::/3")
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
# Registered as not globally reachable, besides multicast (RFC 5771) and the relays that RFC 7526 withdrew.
SPECIAL_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
]  # fmt: skip
REACHABLE_V4 = {ipaddress.IPv4Address("192.0.0.9"), ipaddress.IPv4Address("192.0.0.10")}  # RFC 7723, RFC 8155
# 2001::/23 whole: the parts of it that are reachable are anycast services and identifiers, no receivers.
SPECIAL_V6 = [ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "3fff::/20")]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

lookups = threading.BoundedSemaphore(LOOKUPS_AT_ONCE)


@dataclass(frozen=True)
class Place:
    """Where a URL points to, taken apart."""

    scheme: str
    host: str
    port: int
    authority: str  # as the Host header spells it
    path: str  # with the query


def refused(why: str, code: str = REFUSED) -> Invalid:
    return Invalid(f"/url: {why}", errors=[{"pointer": "/url", "detail": why}], code=code)


def parse_url(url: str) -> Place:
    """Take a URL apart. Raises Invalid unless it is plain http or https to one host, without credentials."""
    if not 0 < len(url) <= LONGEST_URL or not PLAIN.fullmatch(url) or "\\" in url:
        raise refused(f"must be 1 to {LONGEST_URL} visible ASCII characters (an IDN host in its xn-- form)", MALFORMED)
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname or ""
    except ValueError:
        raise refused("is no URL: look at its host and port", MALFORMED) from None
    if parts.scheme not in PORTS:
        raise refused("must start with https:// or http://", MALFORMED)
    if "@" in parts.netloc:
        raise refused("must carry no credentials", MALFORMED)
    if "#" in url:
        raise refused("must carry no fragment", MALFORMED)
    if port == 0:
        raise refused("names port 0", MALFORMED)
    check_host(host, bracketed="[" in parts.netloc)
    spelled = f"[{host}]" if "[" in parts.netloc else host
    authority = spelled if port is None else f"{spelled}:{port}"
    if parts.netloc.lower() != authority:
        raise refused("is no URL: look at its host and port", MALFORMED)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(parts.scheme, host, port or PORTS[parts.scheme], authority, path)


def check_host(host: str, *, bracketed: bool) -> None:
    """Raises Invalid unless this is a name, a dotted IPv4 address or a bracketed IPv6 address.

    127.1, 2130706433, 0x7f.1 and 0177.0.0.1 are addresses to some and names to others: they are neither here.
    """
    if bracketed:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise refused("its host is no IPv6 address", MALFORMED) from None
        if "%" in host:
            raise refused("its host names a zone")
        return
    if not HOST.fullmatch(host):
        raise refused("its host is no name and no address", MALFORMED)
    if NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise refused("write an IPv4 address as four decimal numbers") from None


def is_public(address: Address) -> bool:
    """Whether an address is one that anybody on the Internet may be asked to call."""
    if isinstance(address, ipaddress.IPv4Address):
        return address in REACHABLE_V4 or not any(address in network for network in SPECIAL_V4)
    if address in NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.sixtofour is not None:
        return is_public(address.sixtofour)
    return address in GLOBAL_V6 and not any(address in network for network in SPECIAL_V6)


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, in the resolver's order; numbers are their own.

    Raises Invalid when there are none, Unavailable when the resolver takes longer than LOOKUP_SECONDS.
    """
    answers: list[list[str] | OSError | UnicodeError] = []
    gate = lookups

    def look() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.append(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, UnicodeError) as error:
            answers.append(error)
        finally:
            gate.release()

    if not gate.acquire(timeout=LOOKUP_SECONDS):
        raise Unavailable("Too many names are being looked up", code="dns_busy")
    thread = threading.Thread(target=look, name="lookup", daemon=True)  # getaddrinfo knows no deadline
    thread.start()
    thread.join(LOOKUP_SECONDS)
    if not answers:
        raise Unavailable(f"Looking up {host} took longer than {LOOKUP_SECONDS:g} s", code="dns_timeout")
    if not isinstance(answers[0], list) or not answers[0]:
        raise refused("its host has no address")
    return answers[0]


def list_addresses(place: Place) -> list[str]:
    """The addresses to connect to. Raises Invalid when one of them is not public; Unavailable as `resolve` does."""
    found = resolve(place.host, place.port)
    if not settings().webhook_allow_private:
        for address in found:
            if not is_public(ipaddress.ip_address(address.partition("%")[0])):
                raise refused("its host is at a private, local or reserved address")
    return found


def check_receiver(url: str) -> str:
    """The URL, its scheme in small letters, if a webhook may be sent there.

    Raises Invalid; Unavailable when its host cannot be looked up now.
    """
    place = parse_url(url)
    if not settings().webhook_allow_private:
        list_addresses(place)
    return place.scheme + url[len(place.scheme) :]
