"""Large bodies of events: read in pieces up to a limit of their own, a few at a time, and never beyond."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from models.kernel.settings import settings
from tests.engine.configured import configure
from tests.engine.market import event, lines_of
from tests.web.server import Heard, Message, Server, own_logs, run

MIB = 2**20
NDJSON = [("content-type", "application/x-ndjson")]
PATH = "/engine/events"


@pytest.fixture
def server(database: str, broker: str, admin_key: str) -> Iterator[Server]:
    configure()
    with own_logs():
        from orchestrator_web import asgi

        yield Server(asgi.Application(), admin_key)


class Pieces:
    """A body in pieces of one MiB, and how many of them were read. It says nowhere how long it is."""

    def __init__(self, body: bytes, repeated: int = 1) -> None:
        self.cut = [body[start : start + MIB] for start in range(0, len(body), MIB)] * repeated
        self.read = 0

    def __iter__(self) -> Iterator[Message]:
        for part in self.cut:
            self.read += 1
            yield {"type": "http.request", "body": part, "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}


def send(server: Server, pieces: Pieces, headers: list[tuple[str, str]] = NDJSON) -> Heard:
    heard: list[Heard | None] = []

    async def scenario() -> None:
        heard.append(await server.call("POST", PATH, parts=pieces, headers=headers))  # type: ignore[arg-type]

    run(scenario)
    assert heard[0] is not None
    return heard[0]


def test_a_body_of_several_mebibytes_is_appended(server: Server) -> None:
    body = lines_of(*[event(raw_payload="x" * 500_000)] * 8)
    answer = send(server, Pieces(body))
    assert (answer.status, answer.json()["accepted"]) == (201, 8)


def test_an_endless_line_is_refused_before_it_is_read(server: Server) -> None:
    pieces = Pieces(b"x" * MIB, repeated=1024)
    answer = send(server, pieces)
    assert (answer.status, answer.json()["code"]) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"
    assert pieces.read == 17


def test_a_length_of_a_gigabyte_is_refused_before_any_of_it_is_read(server: Server) -> None:
    pieces = Pieces(b"x" * MIB)
    answer = send(server, pieces, [*NDJSON, ("content-length", str(2**30))])
    assert (answer.status, pieces.read) == (413, 0)


def test_large_bodies_are_read_a_few_at_a_time(server: Server) -> None:
    bridge = server.application.bridge
    large, small = Pieces(lines_of(*[event(raw_payload="x" * 600_000)] * 4)), Pieces(lines_of(event()))
    bridge.large = bridge.most_large
    answer = send(server, large)
    assert (answer.status, answer.json()["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
    assert large.read == 2
    assert send(server, small).status == 201
    assert bridge.large == bridge.most_large
    bridge.large -= 1
    assert send(server, large).status == 201
    assert bridge.large == bridge.most_large - 1


def test_other_paths_keep_the_common_limit(server: Server) -> None:
    async def scenario() -> None:
        pieces = Pieces(b"x" * (2 * MIB))
        heard = await server.call("POST", "/ticket", parts=pieces, headers=NDJSON)  # type: ignore[arg-type]
        assert heard is not None
        assert (heard.status, pieces.read) == (413, 2)

    run(scenario)


def test_the_limit_is_a_setting(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ORCHESTRATOR_ENGINE_MAX_BODY_BYTES", "4096")
    assert settings().engine_max_body_bytes == 4096
