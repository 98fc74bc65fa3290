"""Where webhooks may be sent: every spelling of an address that is not public is refused."""

from __future__ import annotations

import ipaddress
import socket
import threading
from typing import Any

import pytest

from models.kernel.errors import Invalid, Unavailable
from models.kernel.settings import settings
from models.kernel.webhooks import addresses
from models.kernel.webhooks.addresses import check_receiver, is_public, list_addresses, parse_url, resolve


@pytest.fixture(autouse=True)
def closed(environment: pytest.MonkeyPatch) -> None:
    """The default: nothing private is allowed."""


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
    """Each lookup gets the next of these answers; the last one stays."""
    left = list(answers)

    def look(_host: str, port: int, **_: Any) -> list[Any]:
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look)


PRIVATE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.0.8", "192.0.0.11", "192.0.0.170",
    "192.0.0.192", "192.0.0.255", "192.0.2.1", "198.51.100.1", "203.0.113.1",
    "198.18.0.1", "192.88.99.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:c0a8:101::1", "2002:c000:c0::1",
    "64:ff9b::c000:c0", "2001::1", "2001:1::1", "2001:10::1", "2001:20::1", "2001:1ff:ffff::1",
    "2001:db8::1", "3fff::1", "fc00::1", "fd12:3456::1", "fe80::1", "fec0::1", "ff02::1", "ff0e::1", "100::1",
    "5f00::1", "4000::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(Invalid) as refused:
        check_receiver(f"https://{host}:8443/hook")
    assert refused.value.code == "webhook_address_refused"
    assert refused.value.errors[0]["pointer"] == "/url"


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "192.0.0.9",
        "192.0.0.10",
        "192.0.1.1",
        "2606:4700:4700::1111",
        "64:ff9b::808:808",
        "2002:808:808::1",
    ],
)
def test_a_public_address_is_taken_as_it_is(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    url = f"https://[{address}]/" if ":" in address else f"https://{address}/"
    assert check_receiver(url) == url


def test_a_scheme_is_kept_in_small_letters() -> None:
    assert check_receiver("HTTPS://8.8.8.8/Hook?To=HTTP://x") == "https://8.8.8.8/Hook?To=HTTP://x"


ODD_HOSTS = [
    "2130706433", "017700000001", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.1", "127.0.1", "127.0.0.01",
    "127.0.0.1.", "0", "0x0", "134744072", "1.2.3.4.5", "256.256.256.256", "0x", "example.0x7f", "example.1",
]  # fmt: skip


@pytest.mark.parametrize("host", ODD_HOSTS)
def test_an_ipv4_address_in_another_spelling_is_refused_before_anybody_resolves_it(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "getaddrinfo")
    with pytest.raises(Invalid) as refused:
        check_receiver(f"http://{host}/")
    assert refused.value.code == "webhook_address_refused"


MALFORMED = [
    "", "example.com", "//example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/",
    "javascript:alert(1)", "https://", "https:///path", "https://user@example.com/", "https://user:pass@example.com/",
    "https://@example.com/", "https://example.com:0/", "https://example.com:65536/", "https://example.com:port/",
    "https://exa mple.com/", "https://example.com/\n", "https://example.com\\@127.0.0.1/", "https://example.com/#part",
    "https://b\u00fccher.example/", "https://127\u30020\u30020\u30021/", "https://\uff11\uff12\uff17.0.0.1/",
    "https://[::1", "https://example.com:/", "https://example.com:+80/", "https://[v1.x]/", "https://[fe80::1%25eth0]/",
    "https://-example.com/", "https://example..com/", "https://.example.com/", "https://exa%6dple.com/",
    "https://a" + "a" * 63 + ".com/",
    "https://example.com/" + "a" * 2048, "https://example.com/\x00", "https://example.com/\ud800", "https://[::1]x/",
]  # fmt: skip


@pytest.mark.parametrize("url", MALFORMED, ids=ascii)
def test_what_is_no_plain_url_is_refused_with_a_reason(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "getaddrinfo")
    with pytest.raises(Invalid) as refused:
        check_receiver(url)
    assert refused.value.errors[0]["pointer"] == "/url"
    assert refused.value.code in {"webhook_url_invalid", "webhook_address_refused"}


def test_one_private_address_among_public_ones_refuses_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(Invalid, match="private"):
        check_receiver("https://hooks.example/")


def test_a_host_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(Invalid, match="no address"):
        check_receiver("https://hooks.example/")


def test_a_lookup_that_hangs_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        over.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(addresses, "LOOKUP_SECONDS", 0.05)
    monkeypatch.setattr(addresses, "lookups", threading.BoundedSemaphore(1))
    try:
        with pytest.raises(Unavailable) as late:
            resolve("hooks.example", 443)
        assert late.value.code == "dns_timeout"
        with pytest.raises(Unavailable) as busy:
            resolve("hooks.example", 443)
        assert busy.value.code == "dns_busy"
    finally:
        over.set()


def test_a_setting_opens_private_addresses(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ORCHESTRATOR_WEBHOOK_ALLOW_PRIVATE", "true")
    settings.cache_clear()
    assert check_receiver("http://127.0.0.1:9/") == "http://127.0.0.1:9/"
    assert list_addresses(parse_url("http://127.0.0.1:9/")) == ["127.0.0.1"]


def test_a_url_keeps_its_host_port_path_and_query() -> None:
    place = parse_url("https://Hooks.Example:8443/in?key=1")
    assert (place.scheme, place.host, place.port) == ("https", "hooks.example", 8443)
    assert (place.authority, place.path) == ("hooks.example:8443", "/in?key=1")
    assert parse_url("http://hooks.example").path == "/"
    assert parse_url("http://hooks.example").port == 80
