"""Real readers on a real server: one that does not read costs the others nothing, and is told why it was cut off."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from models.kernel.session import statement
from tests.kernel.races import until
from tests.web.service import key_with, rows

EVENTS, SIZE, BUFFER = 300, 100_000, 40

BIG = f"""
    INSERT INTO ledger (subject_kind, subject_id, revision, topic, actor, correlation_id, body)
    SELECT 'ticket', 'big', n, 'ticket_created', 'test', 'c', jsonb_build_object('text', repeat('x', {SIZE}))
      FROM generate_series(1, :n) AS n
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def port(database: str, broker: str, tmp_path: Path) -> Iterator[int]:
    """One web process of the service, on a port of its own."""
    port = free_port()
    own = {
        "DATABASE_URL": database,
        "BROKER_URL": broker,
        "PORT": str(port),
        "ORCHESTRATOR_HOME": str(tmp_path),
        "ORCHESTRATOR_WEB_PROCESSES": "1",
        "ORCHESTRATOR_STREAM_BUFFER": str(BUFFER),
    }
    process = subprocess.Popen([sys.executable, "-m", "orchestrator_web"], env={**os.environ, **own})
    try:
        until(lambda: answers(port), "the web process answers")
        yield port
    finally:
        process.terminate()
        process.wait(20)


def answers(port: int) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False


def small_socket(port: int) -> socket.socket:
    """A connection whose own buffer holds little, so that the server notices soon what is not read."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    made.settimeout(30)
    made.connect(("127.0.0.1", port))
    return made


class Blocks:
    """A client of server-sent events on a socket that takes little."""

    def __init__(self, port: int, key: str) -> None:
        self.socket = small_socket(port)
        request = f"GET /tickets/events HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {key}\r\n\r\n"
        self.socket.sendall(request.encode())
        self.answer = http.client.HTTPResponse(self.socket)
        self.answer.begin()
        assert self.line().startswith("retry")

    def line(self) -> str:
        return self.answer.readline().decode()

    def messages(self) -> Iterator[dict[str, Any]]:
        while line := self.line():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))

    def close(self) -> None:
        self.answer.close()
        self.socket.close()


def socket_to(port: int, key: str) -> ClientConnection:
    headers = {"Authorization": f"Bearer {key}"}
    return connect(
        f"ws://127.0.0.1:{port}/ws/tickets",
        additional_headers=headers,
        sock=small_socket(port),
        compression=None,
        max_queue=1,
        ping_interval=None,
        legacy=True,
    )


def happen(count: int) -> None:
    with statement() as connection:
        for _ in range(count):
            connection.execute(text(BIG), {"n": 1})


def heard_by(fast: Blocks) -> list[int]:
    """What a reader who reads hears of as many events as happen meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: list(itertools.islice(fast.messages(), EVENTS)))
        happen(EVENTS)
        return numbers(reading.result(60))


def numbers(messages: list[dict[str, Any]]) -> list[int]:
    return [message["seq"] for message in messages if "seq" in message]


def test_a_reader_that_does_not_read_is_cut_off_and_another_hears_everything(port: int) -> None:
    key = key_with("read")
    slow, fast = Blocks(port, key), Blocks(port, key)
    heard = heard_by(fast)
    assert heard == [row["seq"] for row in rows("SELECT seq FROM ledger WHERE subject_id = 'big' ORDER BY seq")]
    late = list(slow.messages())
    problem = late.pop()
    assert (problem["status"], problem["code"]) == (408, "reader_too_slow")
    assert numbers(late) == heard[: len(late)]
    assert len(late) < EVENTS
    slow.close()
    fast.close()


def test_a_websocket_that_reads_too_slowly_is_told_why_it_is_cut_off(port: int) -> None:
    """It takes one message in four. (One that takes none for ten seconds cannot be told anything.)

    The server drops the connection with the close frame when the socket is full: the message is what can be relied on.
    """
    key = key_with("read")
    fast, slow = Blocks(port, key), socket_to(port, key)
    late, heard, told = list[dict[str, Any]](), list[int](), fast.messages()

    def read() -> None:
        for n in range(2 * EVENTS):
            if n < EVENTS:
                happen(1)
                heard.append(next(told)["seq"])
            if n % 4 == 0 or n >= EVENTS:
                late.append(json.loads(slow.recv(timeout=30)))

    with contextlib.closing(slow.socket), pytest.raises(ConnectionClosed):
        read()
    assert late.pop()["problem"]["code"] == "reader_too_slow"
    assert numbers(late) == heard[: len(numbers(late))]
    fast.close()


def test_a_client_that_floods_a_websocket_is_dropped(port: int) -> None:
    """The server collects a message until it is whole, and shows nothing of it before."""
    quiet, flooding = socket_to(port, key := key_with("read")), socket_to(port, key)
    with contextlib.closing(quiet.socket), contextlib.closing(flooding.socket):
        flooding.socket.sendall(b"\x01\xff" + (2**21).to_bytes(8) + bytes(4) + b"x" * 2**20)  # half of a first fragment
        with pytest.raises(ConnectionClosed):
            list(iter(lambda: flooding.recv(timeout=10), None))
        assert json.loads(quiet.recv(timeout=10))["type"] == "opened"
        happen(1)
        assert json.loads(quiet.recv(timeout=10))["ticket_id"] == "big"


def test_a_refused_handshake_shows_the_problem_to_its_client(port: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        socket_to(port, "orc_000000000000_" + "x" * 32)
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body or b"{}")["code"] == "key_invalid"


def test_a_client_that_left_is_noticed_although_nothing_happens(port: int) -> None:
    """The place of a stream is free again as soon as its client is gone."""
    reader = Blocks(port, key_with("read"))
    following = "SELECT count(*) AS n FROM pg_stat_activity WHERE query LIKE 'SELECT ledger.seq%'"
    until(lambda: rows(following)[0]["n"], "the ledger is followed")
    reader.close()
    quiet = following + " AND state_change > clock_timestamp() - interval '300 milliseconds'"
    until(lambda: not rows(quiet)[0]["n"], "nobody follows the ledger any more")
