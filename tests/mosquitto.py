"""A real MQTT broker of the tests' own: mosquitto on loopback, in the clear, with passwords, and with TLS."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import pwd
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.programs import program
from tests.service.waiting import eventually

USER, PASSWORD = "robots", "a secret that no log may show"

CONFIGURATION = """\
per_listener_settings true
user {user}

listener {plain} 127.0.0.1
allow_anonymous true

listener {guarded} 127.0.0.1
allow_anonymous false
password_file {directory}/passwords

listener {tls} 127.0.0.1
allow_anonymous true
cafile {directory}/ca.pem
certfile {directory}/server.pem
keyfile {directory}/server.key
require_certificate false
"""


class Mosquitto:
    """One broker process; it may be stopped and started again on the same ports."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.plain, self.guarded, self.tls = free_ports(3)
        self.process: subprocess.Popen[bytes] | None = None
        self.ca = directory / "ca.pem"
        certify(directory)
        passwords = directory / "passwords"
        passwords.touch(0o600)
        subprocess.run([program("mosquitto_passwd"), "-b", passwords, USER, PASSWORD], check=True, capture_output=True)
        user = pwd.getpwuid(os.geteuid()).pw_name
        facts = {"plain": self.plain, "guarded": self.guarded, "tls": self.tls, "directory": directory, "user": user}
        (directory / "mosquitto.conf").write_text(CONFIGURATION.format(**facts))

    def start(self) -> None:
        with (self.directory / "mosquitto.log").open("ab") as output:
            self.process = subprocess.Popen(
                [program("mosquitto"), "-c", self.directory / "mosquitto.conf"], stdout=output, stderr=output
            )
        eventually(lambda: all(map(listens, (self.plain, self.guarded, self.tls))), what="mosquitto listens")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.plain}"


@contextlib.contextmanager
def mosquitto_in(directory: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(directory)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def listens(port: int) -> bool:
    with contextlib.closing(socket.socket()) as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def certify(directory: Path) -> None:
    """A CA of the tests' own, and a certificate of it for the broker at 127.0.0.1."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root, server = named("Test CA"), named("Test broker")
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    own = builder(root, root, authority).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    own = own.add_extension(usage, critical=True)
    signed = builder(server, root, key).add_extension(address, critical=False)
    for name, made in (("ca.pem", own), ("server.pem", signed)):
        pem = made.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        (directory / name).write_bytes(pem)
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "server.key").write_bytes(key.private_bytes(*plain))


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def tls_context(broker: Mosquitto) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=broker.ca)
