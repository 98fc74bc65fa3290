"""The load generator against a small server: it counts what it must, and hides nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.harness import MeasureFailed
from benchmarks.load import Order, carry_out

HELD_UP_SECONDS = 0.5


class Answering(BaseHTTPRequestHandler):
    """Answers 201 with the body that it was sent; the request `slow` holds its connection up."""

    protocol_version = "HTTP/1.1"
    slow = threading.Event()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if body == b"slow":
            self.slow.wait(HELD_UP_SECONDS)
        self.send_response(500 if body == b"bad" else 201)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def order() -> Iterator[Callable[..., Order]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield lambda bodies, **options: Order(server.server_port, "/", bodies, 201, **options)
        server.shutdown()


def test_each_body_is_sent_once_when_no_time_is_given(order: Callable[..., Order]) -> None:
    bodies = [f"body-{number}" for number in range(50)]
    outcome = carry_out(order(bodies, connections=4, keep_answers=True))
    assert sorted(outcome.answers) == sorted(bodies)
    assert sorted(outcome.numbers) == list(range(50))
    assert all(latency > 0 for latency in outcome.latencies_ms)


def test_a_closed_loop_ends_in_time_and_says_what_it_cost(order: Callable[..., Order]) -> None:
    outcome = carry_out(order(["a"], seconds=0.3, connections=2))
    assert 0.25 < outcome.seconds < 5
    assert outcome.rate > 0
    assert outcome.cpu_seconds > 0


def test_an_open_loop_counts_the_wait_of_those_that_a_slow_answer_delays(order: Callable[..., Order]) -> None:
    outcome = carry_out(order(["slow", *["a"] * 49], rate=100.0, seconds=0.5, connections=1))
    assert len(outcome.latencies_ms) == 50
    delayed = [latency for latency in outcome.latencies_ms if latency > HELD_UP_SECONDS * 1000 / 2]
    assert len(delayed) > 20


def test_an_answer_that_was_not_expected_fails_the_measure(order: Callable[..., Order]) -> None:
    with pytest.raises(MeasureFailed, match="answered 500: bad"):
        carry_out(order(["a", "bad"], connections=1))


def test_a_server_that_is_not_there_fails_the_measure() -> None:
    with pytest.raises(MeasureFailed, match="the load generator failed"):
        carry_out(Order(1, "/", ["a"], 201))
