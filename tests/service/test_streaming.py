"""A reader of events through everything that can be restarted: each event exactly once, and in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import orjson
import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.service.load import Load
from tests.service.running import Running, drive
from tests.service.test_killing import UNCERTAIN, goes_on, kill, valkey_of
from tests.service.waiting import eventually

Event = dict[str, Any]


class Reader:
    """Reads events for the length of a block; reconnects with the last id whenever the stream ends."""

    def __init__(self, service: Running) -> None:
        self.service = service
        self.events: list[Event] = []
        self.connections = 0
        self.refused: list[int] = []
        self.cursor = ""
        self.over = threading.Event()
        self.pool = ThreadPoolExecutor(1)
        self.reading: Future[None] | None = None

    def __enter__(self) -> Reader:
        self.reading = self.pool.submit(self.read)
        eventually(lambda: self.cursor, what="the stream is open")
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.service.ask("POST", "/ticket", json={"command": "scan"})  # so that the reader wakes, and sees the end
        assert self.reading is not None
        self.reading.result(30)
        self.pool.shutdown()

    def read(self) -> None:
        while not self.over.is_set():
            try:
                for event in self.connection():
                    self.cursor = event["id"]
                    if "seq" in event:
                        self.events.append(event)
                    if self.over.is_set():
                        return
            except (httpx.HTTPError, OSError, WebSocketException, EOFError):
                self.over.wait(0.05)  # nobody answers: come back

    def connection(self) -> Iterator[Event]:
        raise NotImplementedError


class Blocks(Reader):
    """By server-sent events."""

    def connection(self) -> Iterator[Event]:
        headers = {"Last-Event-ID": self.cursor} if self.cursor else {}
        with (
            self.service.client() as client,
            client.stream("GET", "/tickets/events", headers=headers, timeout=30) as answer,
        ):
            if answer.status_code != 200:
                self.refused.append(answer.status_code)
                raise EOFError
            self.connections += 1
            block: dict[str, str] = {}
            for line in answer.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    block[name] = value
                    continue
                if "data" in block and block["event"] != "problem":
                    yield orjson.loads(block["data"])
                elif "id" in block:
                    yield {"id": block["id"]}
                block = {}


class Messages(Reader):
    """By WebSocket."""

    def connection(self) -> Iterator[Event]:
        url = self.service.url.replace("http", "ws") + "/ws/tickets" + (f"?after={self.cursor}" if self.cursor else "")
        headers = {"Authorization": f"Bearer {self.service.token}"}
        with connect(url, additional_headers=headers, proxy=None, open_timeout=20) as socket:
            self.connections += 1
            for message in socket:
                event = orjson.loads(message)
                if event["type"] != "problem":
                    yield event


def told(service: Running, tickets: list[str]) -> list[tuple[int, str, str]]:
    question = (
        "SELECT seq, subject_id, topic FROM ledger WHERE subject_id = ANY(%s) AND topic <> 'refused' ORDER BY seq"
    )
    return [(row["seq"], row["subject_id"], row["topic"]) for row in service.rows(question, tickets)]


@pytest.mark.parametrize("kind", [Blocks, Messages])
def test_each_event_is_heard_once_and_in_order_whatever_is_restarted(
    service: Running, robot: str, kind: type[Reader]
) -> None:
    with kind(service) as reader:
        with Load(service, robot) as load:
            kill(service, "web")
            goes_on(service, load)
            eventually(lambda: reader.connections >= 2, what="the reader came back to another web process")
            connections = reader.connections
            with valkey_of(service) as client:
                client.flushall()
            kill(service, "valkey")
            goes_on(service, load)
            kill(service, "postgres")
            goes_on(service, load)
        load.assert_nothing_was_lost(excused=UNCERTAIN)
        expected = told(service, load.created)
        eventually(lambda: len(heard(reader, load.created)) >= len(expected), within=30, what="the rest was heard")
        assert reader.connections == connections, "neither Redis nor Postgres ends a stream"
    assert heard(reader, load.created) == expected
    assert set(reader.refused) <= {503}


def heard(reader: Reader, tickets: list[str]) -> list[tuple[int, str, str]]:
    wanted = set(tickets)
    return [(e["seq"], e["ticket_id"], e["type"]) for e in list(reader.events) if e["ticket_id"] in wanted]


def test_ctrl_c_ends_open_streams_with_a_reason_and_stays_quick(service: Running, robot: str) -> None:
    with service.client() as client, client.stream("GET", "/tickets/events") as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("retry: ")
        cursor = next(lines).removeprefix("id: ")
        assert service.stop() < 10
        rest = list(lines)
    problem = orjson.loads(next(line for line in rest if line.startswith("data: ")).removeprefix("data: "))
    assert ("event: problem" in rest, problem["code"]) == (True, "going_away")
    service.start()
    mine = service.create(**drive(robot))
    with service.client() as client, client.stream("GET", f"/tickets/events?after={cursor}") as answer:
        first = next(line for line in answer.iter_lines() if line.startswith("data: "))
    assert orjson.loads(first.removeprefix("data: "))["ticket_id"] == mine


def test_a_credential_that_is_revoked_ends_its_stream_within_five_seconds(service: Running) -> None:
    assert service.ask("POST", "/clients", json={"name": "guest", "permissions": ["read"]}).status_code == 201
    made = service.ask("POST", "/clients/guest/keys", json={}).json()
    headers = {"Authorization": f"Bearer {made['key']}"}
    with httpx.stream("GET", f"{service.url}/tickets/events", headers=headers, timeout=30, trust_env=False) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("retry: ")
        assert service.ask("DELETE", f"/clients/guest/keys/{made['id']}").status_code < 300
        began = time.monotonic()
        problem = next(line for line in lines if line.startswith("data: "))
        assert time.monotonic() - began < 5
    assert orjson.loads(problem.removeprefix("data: "))["status"] == 401
