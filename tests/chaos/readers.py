"""Readers of events, by both protocols, who come back with the last id whenever a stream ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from tests.chaos.callers import World
from tests.chaos.evidence import Heard

SILENCE_SECONDS = 25.0
EARLIEST = "earliest"


DATA = '"data":'


@dataclass(frozen=True)
class Feed:
    """Where events come from by either protocol, which filter narrows them, and what of one is kept."""

    blocks: str
    messages: str
    filter: str

    def of_block(self, block: dict[str, str]) -> dict[str, Any]:
        """What a server-sent event says; one without data is a place to come back to."""
        return orjson.loads(block["data"]) if "data" in block else {"id": block["id"]}

    def of_message(self, text: str) -> dict[str, Any]:
        return dict(orjson.loads(text))

    def kept(self, event: dict[str, Any]) -> dict[str, Any] | None:
        return {name: event[name] for name in ("seq", "type", "ticket_id", "revision")} if "seq" in event else None


class Outputs(Feed):
    """An output is kept as the text that came: it is promised byte for byte."""

    def of_block(self, block: dict[str, str]) -> dict[str, Any]:
        if "data" not in block or block.get("event") == "problem":
            return super().of_block(block)
        return {"id": block["id"], "text": block["data"]}

    def of_message(self, text: str) -> dict[str, Any]:
        message = super().of_message(text)
        return {"id": message["id"], "text": text[text.index(DATA) + len(DATA) : -1]} if "data" in message else message

    def kept(self, event: dict[str, Any]) -> dict[str, Any] | None:
        return {"event": event["text"]} if "text" in event else None


TICKETS = Feed("/tickets/events", "/ws/tickets", "target")
OUTPUTS = Outputs("/engine/outputs/events", "/ws/engine", "symbol")


class Reader:
    """Reads from the earliest event until it is told to end."""

    def __init__(self, world: World, name: str, feed: Feed = TICKETS, target: str | None = None) -> None:
        self.world = world
        self.feed = feed
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
        if (kept := self.feed.kept(event)) is not None:
            self.heard.events.append(kept)

    @property
    def question(self) -> dict[str, str]:
        return {"after": self.cursor} | ({self.feed.filter: self.heard.target} if self.heard.target else {})

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
            client.stream("GET", self.feed.blocks, params=self.question) as answer,
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
                if "data" in block or "id" in block:
                    yield self.feed.of_block(block)
                block = {}


class Messages(Reader):
    """By WebSocket."""

    def connection(self) -> Iterator[dict[str, Any]]:
        question = "&".join(f"{name}={value}" for name, value in self.question.items())
        url = f"{self.world.url.replace('http', 'ws')}{self.feed.messages}?{question}"
        headers = {"Authorization": f"Bearer {self.world.token}"}
        with connect(url, additional_headers=headers, proxy=None, open_timeout=20) as socket:
            self.heard.connections += 1
            yield from self.messages(socket)

    def messages(self, socket: ClientConnection) -> Iterator[dict[str, Any]]:
        while not self.over.is_set():
            try:
                yield self.feed.of_message(str(socket.recv(timeout=1.0)))
            except TimeoutError:
                continue
