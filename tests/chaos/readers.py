"""Readers of events, by both protocols, who come back with the last id whenever a stream ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from tests.chaos.callers import World
from tests.chaos.evidence import Heard

SILENCE_SECONDS = 25.0
EARLIEST = "earliest"


class Reader:
    """Reads from the earliest event until it is told to end."""

    def __init__(self, world: World, name: str, target: str | None = None) -> None:
        self.world = world
        self.heard = Heard(name, target)
        self.cursor = EARLIEST
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, name=name, daemon=True)
        self.failure: BaseException | None = None
        self.open: Any = None

    def start(self) -> Reader:
        self.thread.start()
        return self

    def run(self) -> None:
        while not self.over.is_set():
            try:
                for event in self.connection():
                    self.take(event)
                    if self.over.is_set():
                        return
            except (httpx.HTTPError, httpx.StreamError, OSError, WebSocketException, EOFError, RuntimeError):
                self.over.wait(0.1)
            except BaseException as error:
                self.failure = error
                return

    def take(self, event: dict[str, Any]) -> None:
        if event.get("type") == "problem" or "code" in event:
            self.heard.problems.append(str(event.get("code")))
            return
        self.cursor = event["id"]
        if "seq" in event:
            kept = ("seq", "type", "ticket_id", "revision")
            self.heard.events.append({name: event[name] for name in kept})

    @property
    def question(self) -> dict[str, str]:
        return {"after": self.cursor} | ({"target": self.heard.target} if self.heard.target else {})

    def connection(self) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def stop(self) -> None:
        self.over.set()
        if self.open is not None:
            self.open()
        self.thread.join(2 * SILENCE_SECONDS)
        if self.thread.is_alive():
            raise AssertionError(f"{self.heard.name} does not end")
        if self.failure is not None:
            raise self.failure


class Blocks(Reader):
    """By server-sent events."""

    def connection(self) -> Iterator[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self.world.token}"}
        with (
            httpx.Client(base_url=self.world.url, headers=headers, timeout=SILENCE_SECONDS, trust_env=False) as client,
            client.stream("GET", "/tickets/events", params=self.question) as answer,
        ):
            if answer.status_code != 200:
                self.heard.problems.append(str(answer.status_code))
                raise EOFError
            self.heard.connections += 1
            block: dict[str, str] = {}
            for line in answer.iter_lines():
                if self.over.is_set():
                    return
                if line:
                    name, _, value = line.partition(": ")
                    block[name] = value
                    continue
                if "data" in block:
                    yield orjson.loads(block["data"])
                elif "id" in block:
                    yield {"id": block["id"]}
                block = {}


class Messages(Reader):
    """By WebSocket."""

    def connection(self) -> Iterator[dict[str, Any]]:
        question = "&".join(f"{name}={value}" for name, value in self.question.items())
        url = f"{self.world.url.replace('http', 'ws')}/ws/tickets?{question}"
        headers = {"Authorization": f"Bearer {self.world.token}"}
        with connect(url, additional_headers=headers, proxy=None, open_timeout=20) as socket:
            self.heard.connections += 1
            yield from self.messages(socket)

    def messages(self, socket: ClientConnection) -> Iterator[dict[str, Any]]:
        while not self.over.is_set():
            try:
                yield orjson.loads(socket.recv(timeout=1.0))
            except TimeoutError:
                continue
