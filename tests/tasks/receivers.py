"""Real receivers on loopback: they note every request and answer as the test says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


Act = Callable[["Handler"], None]


def status(code: int, **headers: str) -> Act:
    def act(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return act


class Receiver(ThreadingHTTPServer):
    """Answers 204 until `act` is set to something else; `acts` are used up first."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), Handler)
        self.requests: list[Request] = []
        self.acts: list[Act] = []
        self.act = status(204)
        self.came = threading.Event()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?who=me"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that hangs up is no error of ours."""


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lowered = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(Request({**lowered, ":path": self.path}, body))
        self.server.came.set()
        act = self.server.acts.pop(0) if self.server.acts else self.server.act
        act(self)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read what came."""


def hang(handler: Handler) -> None:
    """Says nothing until the test is over."""
    handler.server.over.wait(30)


def trickle(handler: Handler) -> None:
    """Headers that never end, a byte at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.server.over.wait(0.02):
        handler.wfile.write(b"X")
        handler.wfile.flush()


def flood(handler: Handler) -> None:
    """A body of which nobody needs a byte."""
    handler.send_response(200)
    handler.end_headers()
    piece = b"x" * 65_536
    while not handler.server.over.is_set():
        handler.wfile.write(piece)


@contextlib.contextmanager
def receiving(kind: type[Receiver] = Receiver, address: str = "127.0.0.1") -> Iterator[Receiver]:
    with kind(address) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
