"""Reads the service's event stream (WHATWG HTML, section 9.2) and keeps reading when the connection drops.

What is remembered is the id of the last event, with which the service resumes: nothing is lost or told twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from orchestrator_cli.errors import ServiceRefused, ServiceUnreachable
from orchestrator_cli.service import CONNECT_SECONDS, REFUSED, Service, failure

SILENCE_SECONDS = 40.0
"""The service sends a heartbeat every 15 s: after two that are missing the connection counts as dead."""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
PATIENCE_SECONDS = 120.0
LONGEST_LINE = 16 * 2**20

Say = Callable[[str], None]


class Stream:
    """One stream of events, over as many connections as it takes."""

    def __init__(self, service: Service, path: str, params: dict[str, str], say: Say) -> None:
        self.service = service
        self.path = path
        self.params = params
        self.say = say
        self.last_id = ""
        self.was_there = False

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event from the beginning on.

        Raises ServiceRefused when the service says no, ServiceUnreachable when it
        has been away for PATIENCE_SECONDS, or never was there: then at once.
        """
        pause, lost_at = FIRST_PAUSE, time.monotonic()
        while True:
            try:
                for message in self.connection():
                    pause, lost_at = FIRST_PAUSE, time.monotonic()
                    if message is not None:
                        yield message
                lost_at = max(lost_at, time.monotonic() - PATIENCE_SECONDS)
                reason = "the service ended the stream"
            except ServiceUnreachable as error:
                if not self.was_there or time.monotonic() - lost_at > PATIENCE_SECONDS:
                    raise
                reason = error.message
            self.say(f"{reason}; trying again")
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def connection(self) -> Iterator[dict[str, Any] | None]:
        """The events of one connection, and None for each sign of life."""
        import httpx

        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self.last_id} if self.last_id else {})
        params = {name: value for name, value in self.params.items() if name != "after" or not self.last_id}
        asked = {"params": params, "headers": headers, "timeout": timeout}
        try:
            with self.service.client.stream("GET", self.path, **asked) as answer:
                self.was_there = True
                if answer.status_code >= REFUSED:
                    raise refusal(answer)
                yield from self.messages(answer.iter_lines())
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self.service.silent(error) from None

    def messages(self, lines: Iterable[str]) -> Iterator[dict[str, Any] | None]:
        """What complete blocks of lines say. A block that the connection cut off is not told: it comes again."""
        kind, data, event_id = "", [], self.last_id
        for line in lines:
            if not line:
                self.last_id = event_id
                yield told(kind, "\n".join(data)) if data else None
                kind, data = "", []
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "id" and "\0" not in value:
                event_id = value
            elif name == "event":
                kind = value


def told(kind: str, text: str) -> dict[str, Any]:
    """An event. Raises what a problem that ends the stream says."""
    try:
        content = json.loads(text)
    except ValueError:
        raise ServiceUnreachable("the stream said something that is no JSON") from None
    if not isinstance(content, dict):
        raise ServiceUnreachable("the stream said something that is no event")
    if kind == "problem":
        raise ended_by(content)
    return content


def ended_by(problem: dict[str, Any]) -> ServiceRefused | ServiceUnreachable:
    """A problem in the stream: what a new connection may mend counts as a lost one."""
    status = int(problem.get("status", 503))
    made = failure(status, problem)
    mendable = problem.get("retriable") or status in {408, 429}
    return ServiceUnreachable(made.message, next_step=made.next_step, problem=problem) if mendable else made


def refusal(answer: Any) -> ServiceRefused | ServiceUnreachable:
    answer.read()
    try:
        content = answer.json()
    except ValueError:
        content = {}
    problem = content if isinstance(content, dict) else {}
    return ended_by({"status": answer.status_code, "detail": f"status {answer.status_code}", **problem})
