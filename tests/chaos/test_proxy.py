"""The proxy before a server: what passes, what is cut, what is late, and what is swallowed."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.proxy import Proxy

PATIENCE = 10.0


class Echo:
    """Answers on a unix socket with what it was sent."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.threads = [threading.Thread(target=self.run, daemon=True)]
        self.threads[0].start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(PATIENCE)

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.listener.accept()
                self.threads.append(threading.Thread(target=self.serve, args=(peer,), daemon=True))
                self.threads[-1].start()

    def serve(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError), peer:
            while data := peer.recv(1024):
                peer.sendall(data)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    path = tmp_path / "echo.sock"
    echo = Echo(path)
    proxy = Proxy(path).start()
    yield proxy
    proxy.stop()
    echo.close()


@contextlib.contextmanager
def connected(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as client:
        yield client


def asked(client: socket.socket, what: bytes = b"hello") -> bytes:
    client.sendall(what)
    return client.recv(1024)


def test_what_is_sent_arrives_both_ways(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert asked(client) == b"hello"


def test_a_cut_resets_open_connections_and_lets_new_ones_through(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert asked(client) == b"hello"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with connected(proxy) as client:
        assert asked(client) == b"hello"


def test_a_delay_makes_answers_late_until_it_is_cleared(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert asked(client) == b"hello"
        proxy.slow(0.2)
        began = time.monotonic()
        assert asked(client) == b"hello"
        assert time.monotonic() - began >= 0.4
        proxy.clear()
        assert asked(client) == b"hello"


def test_a_half_open_connection_swallows_everything_and_is_reset_when_cleared(proxy: Proxy) -> None:
    with connected(proxy) as deaf:
        assert asked(deaf) == b"hello"
        proxy.half_open()
        deaf.settimeout(0.3)
        with pytest.raises(TimeoutError):
            asked(deaf)
        with connected(proxy) as fresh:
            assert asked(fresh) == b"hello"
            proxy.clear()
            deaf.settimeout(PATIENCE)
            with pytest.raises(ConnectionResetError):
                deaf.recv(1)
            assert asked(fresh) == b"hello"


def test_a_server_that_is_down_refuses_through_the_proxy(tmp_path: Path) -> None:
    proxy = Proxy(tmp_path / "nobody.sock").start()
    try:
        with connected(proxy) as client, contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    finally:
        proxy.stop()
