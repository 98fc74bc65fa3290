"""One signed message to one address: names, certificates and what an interrupted call leaves behind."""

from __future__ import annotations

import datetime
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from models.kernel.clock import utcnow
from orchestrator_tasks.kernel import posting
from orchestrator_tasks.kernel.posting import Answer, Call, Message, post, wish
from tests.tasks.receivers import Receiver, hang, receiving

HOST = "hooks.example"


@pytest.fixture(autouse=True)
def open_to_loopback(environment: pytest.MonkeyPatch, set_to: Callable[..., None]) -> None:
    set_to(webhook_allow_private="true")


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's name leads to loopback."""
    really = socket.getaddrinfo

    def look(host: str, *more: Any, **options: Any) -> Any:
        return really("127.0.0.1" if host.endswith(".example") else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for HOST, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(utcnow() - datetime.timedelta(days=1))
        .not_valid_after(utcnow() + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path / "hooks.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + secret)
    return file


@pytest.fixture
def secure(certificate: Path, resolved: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Receiver, list[str]]]:
    """A receiver behind TLS, whose certificate is trusted, and the server names that were asked for."""
    asked: list[str] = []
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    server.sni_callback = lambda _s, name, _c: asked.append(name)
    client = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(posting, "trusted", lambda: client)
    with receiving() as receiver:
        receiver.socket = server.wrap_socket(receiver.socket, server_side=True)
        yield receiver, asked


def send(url: str, seconds: float = 5.0, call: Call | None = None) -> Answer:
    return post(Message(url, b"{}", {"webhook-id": "msg_1"}), seconds, call or Call(seconds))


def test_the_certificate_is_held_to_the_url_s_name_though_a_number_is_connected_to(
    secure: tuple[Receiver, list[str]],
) -> None:
    receiver, asked = secure
    answer = send(f"https://{HOST}:{receiver.server_port}/in?x=1")
    assert (answer.delivered, answer.status_code) == (True, 204)
    assert asked == [HOST]
    assert receiver.requests[0].headers["host"] == f"{HOST}:{receiver.server_port}"
    assert receiver.requests[0].headers[":path"] == "/in?x=1"


def test_a_certificate_for_another_name_is_not_accepted(secure: tuple[Receiver, list[str]]) -> None:
    receiver, _ = secure
    answer = send(f"https://other.example:{receiver.server_port}/")
    assert (answer.delivered, answer.error_code) == (False, "receiver_unreachable")
    assert receiver.requests == []


def test_a_certificate_that_nobody_vouches_for_is_not_accepted(
    secure: tuple[Receiver, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, _ = secure
    monkeypatch.undo()
    with monkeypatch.context() as resolving:
        resolving.setattr(posting, "list_addresses", lambda _place: ["127.0.0.1"])
        answer = send(f"https://{HOST}:{receiver.server_port}/")
    assert (answer.delivered, answer.error_code) == (False, "receiver_unreachable")


def test_a_receiver_at_an_ipv6_address_is_reached() -> None:
    class Six(Receiver):
        address_family = socket.AF_INET6

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with receiving(Six, "::1") as receiver:
        assert send(f"http://[::1]:{receiver.server_port}/").delivered
        assert receiver.requests[0].headers["host"] == f"[::1]:{receiver.server_port}"


def test_several_addresses_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "list_addresses", lambda _place: ["127.0.0.9", "127.0.0.1"])
    with receiving() as receiver:
        message = Message(f"http://{HOST}:{receiver.server_port}/", b"{}", {})
        assert not post(message, 5.0, Call(5.0), turn=0).delivered
        assert post(message, 5.0, Call(5.0), turn=1).delivered


def test_a_call_that_was_cut_short_before_it_began_sends_nothing() -> None:
    with receiving() as receiver:
        call = Call(5.0)
        call.set("shutdown")
        assert send(receiver.url, call=call).cut_short
        assert receiver.requests == []


def test_no_proxy_of_the_environment_is_asked(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", "http://127.0.0.1:9")
    environment.setenv("all_proxy", "http://127.0.0.1:9")
    with receiving() as receiver:
        assert send(receiver.url).delivered


def test_a_url_that_was_stored_and_is_wrong_fails_without_a_call() -> None:
    assert send("gopher://127.0.0.1/").final


@pytest.mark.parametrize(("text", "seconds"), [("", 0.0), ("7", 7.0), (" 8 ", 8.0), ("1.5", 0.0), ("0", 0.0)])
def test_a_wish_in_seconds_is_digits_and_nothing_else(text: str, seconds: float) -> None:
    assert wish(text) == seconds


def test_a_timeout_is_one_whoever_notices_it_first() -> None:
    """The client's own timer may ring a moment before the call's."""
    with receiving() as receiver:
        receiver.act = hang
        answer = send(f"http://127.0.0.1:{receiver.server_port}/", 0.1, Call(60.0))
        receiver.over.set()
    assert (answer.error_code, answer.error) == ("receiver_timeout", "The receiver did not answer within 0.1 s")
