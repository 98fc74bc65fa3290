"""One signed message to one receiver: the call itself, bounded in time, in bytes and in where it may go.

The address that was checked is the one that is connected to; the Host header and the
name in the certificate stay the URL's. Redirects are not followed, proxies of the
environment are not asked, no connection is kept, and of the answer only the status
line and a few headers are read.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import certifi
import httpx

from models.kernel import clock
from models.kernel.errors import Invalid, Unavailable
from models.kernel.webhooks.addresses import Place, list_addresses, parse_url

for shows_urls in ("httpx", "httpcore"):
    logging.getLogger(shows_urls).setLevel(logging.WARNING)  # a receiver's URL may hold a token

SHUTDOWN, TIMEOUT = "shutdown", "timeout"
GONE = 410
LONGEST_WISH = 86_400.0


@dataclass(frozen=True)
class Message:
    """What is sent: the very bytes that were signed."""

    url: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """What became of one call. `wished` is how many seconds the receiver asked to be left alone."""

    status_code: int | None = None
    error: str | None = None
    error_code: str | None = None
    wished: float = 0.0

    @property
    def delivered(self) -> bool:
        return self.error is None

    @property
    def final(self) -> bool:
        """Whether trying again could not help."""
        return self.error_code in {"webhook_address_refused", "webhook_url_invalid", "receiver_gone"}

    @property
    def cut_short(self) -> bool:
        return self.error_code == SHUTDOWN


class Call:
    """Hangs up when it is told to, or when its time is up: a client's own read timeout begins anew with every byte."""

    def __init__(self, seconds: float) -> None:
        self.lines: list[Any] = []
        self.reason: str | None = None
        self.lock = threading.Lock()
        self.timer = threading.Timer(seconds, self.set, [TIMEOUT])
        self.timer.daemon = True

    def set(self, reason: str) -> None:
        with self.lock:
            self.reason = self.reason or reason
            if self.lines:
                self.hang_up()

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.lines[-1].get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def follow(self, event: str, facts: Mapping[str, Any]) -> None:
        """Told by httpcore what the call is at; keeps the line, and its encrypted form after it."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self.lock:
                self.lines.append(facts["return_value"])
                if self.reason is not None:
                    self.hang_up()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.timer.start()
        try:
            yield
        finally:
            self.timer.cancel()


@functools.cache
def trusted() -> ssl.SSLContext:
    """The system's certificates and certifi's: a small image may have none of its own."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def post(message: Message, seconds: float, call: Call, turn: int = 0) -> Answer:
    """Send a message and say what became of it. `turn` picks among several addresses."""
    try:
        place = parse_url(message.url)
        addresses = list_addresses(place)
    except (Invalid, Unavailable) as error:
        return Answer(error=error.message, error_code=error.code)
    request = request_to(place, addresses[turn % len(addresses)], message, seconds, call)
    try:
        with call.running(), httpx.Client(verify=trusted(), trust_env=False, follow_redirects=False) as client:
            if call.reason is not None:
                return cut_off(call, seconds)
            response = client.send(request, stream=True)
            response.close()
            return meaning(response)
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
        if isinstance(error, httpx.TimeoutException):
            call.reason = call.reason or TIMEOUT  # the client's own timer rang a moment before the call's
        if call.reason is not None:
            return cut_off(call, seconds)
        return Answer(error=f"The receiver did not answer: {type(error).__name__}", error_code="receiver_unreachable")


def request_to(place: Place, address: str, message: Message, seconds: float, call: Call) -> httpx.Request:
    host = f"[{address}]" if ":" in address else address
    own = {
        "Host": place.authority,
        "Content-Type": "application/json",
        "User-Agent": "orchestrator-webhooks",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    extensions = {
        "sni_hostname": place.host.rstrip("."),
        "trace": call.follow,
        "timeout": httpx.Timeout(seconds).as_dict(),
    }
    address_url = f"{place.scheme}://{host}:{place.port}{place.path}"
    headers = {**own, **message.headers}
    return httpx.Request("POST", address_url, content=message.body, headers=headers, extensions=extensions)


def cut_off(call: Call, seconds: float) -> Answer:
    if call.reason == TIMEOUT:
        return Answer(error=f"The receiver did not answer within {seconds:g} s", error_code="receiver_timeout")
    return Answer(error=f"The delivery was cut short: {call.reason}", error_code=call.reason)


def meaning(response: httpx.Response) -> Answer:
    """2xx is delivered, 410 ends the subscription (both as Standard Webhooks says), all else is tried again."""
    status = response.status_code
    if httpx.codes.is_success(status):
        return Answer(status)
    if status == GONE:
        return Answer(status, "The receiver answered 410: it wants no more", "receiver_gone")
    what = "a redirect, which is not followed" if httpx.codes.is_redirect(status) else f"HTTP {status}"
    code = "receiver_redirected" if httpx.codes.is_redirect(status) else "receiver_refused"
    return Answer(status, f"The receiver answered {what}", code, wish(response.headers.get("Retry-After", "")))


def wish(text: str) -> float:
    """Retry-After (RFC 9110, section 10.2.3) in seconds from now; 0 when it says nothing that can be used."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), LONGEST_WISH)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max(0.0, (aware - clock.utcnow()).total_seconds()), LONGEST_WISH)
