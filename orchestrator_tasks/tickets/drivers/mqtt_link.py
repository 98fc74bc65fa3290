"""One connection to an MQTT 5 broker for a whole process: requests out, answers back to whoever asked.

A request carries this process's own response topic and correlation data of its own; an
answer finds its `Exchange` by them, and what finds none (late, doubled, foreign, not
JSON) is logged and dropped. One thread keeps the connection, another (paho's) reads it,
however many wait.

Every connection has a client of its own. paho sends what was not acknowledged again
after it reconnected; a command that moves a robot must not be, so the client goes with
its connection, and each exchange on it hears that it was lost.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from models.kernel import clock, ids
from orchestrator_tasks.tickets.drivers.base import DriverFailed
from orchestrator_tasks.tickets.drivers.mqtt_broker import Broker

log = logging.getLogger(__name__)

KEEPALIVE = 5  # seconds; a dead connection is noticed within about two of these
CONNECT_SECONDS = 5.0
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between the tries to connect; the last one repeats."""

MOST_EXCHANGES = 5000
MOST_ANSWERS = 32  # of one exchange, waiting to be read
LONGEST_ANSWER = 64 * 1024  # bytes
IN_FLIGHT = 20  # unacknowledged messages; fewer when the broker says so
NO_SUBSCRIBER = 0x10  # PUBACK reason code (MQTT 5, 3.4.2.1): nobody has subscribed to this topic


@dataclass(frozen=True)
class Undelivered:
    """The broker gave the request to nobody."""

    reason: str


@dataclass(frozen=True)
class Lost:
    """The connection ended; whether the request arrived is unknown, and no answer will come."""

    reason: str


class Exchange:
    """One request and what comes back: answers as mappings, Undelivered, Lost, or what somebody else put in."""

    def __init__(self, correlation: bytes) -> None:
        self.correlation = correlation
        self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.misheard = False  # something came that could not be used

    def put(self, event: Any) -> None:
        if self.heard.qsize() < MOST_ANSWERS:
            self.heard.put(event)

    def hear(self, until: float) -> Any:
        """The next event, or None once it is `until` on the monotonic clock."""
        try:
            return self.heard.get(timeout=max(0.0, until - clock.monotonic()))
        except queue.Empty:
            return None


class Link:
    """The connection, kept up from the first use on."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.name = f"orchestrator-{ids.new_uuid()}"
        self.answers = f"{broker.prefix}/drivers/{self.name}/answers"
        self.changed = threading.Condition()
        self.exchanges: dict[bytes, Exchange] = {}
        self.receipts: dict[int, Exchange | str] = {}  # by message id: who waits for it, or what it said before
        self.up: Client | None = None
        self.down = threading.Event()
        self.over = threading.Event()
        self.trouble = "not connected yet"
        self.in_flight = IN_FLIGHT
        self.count = 0
        self.thread: threading.Thread | None = None

    # what callers do

    def wait_until_up(self, until: float) -> None:
        """Wait for the connection. Raises DriverFailed (`mqtt_unavailable`) when there is none by then."""
        with self.changed:
            if self.thread is None:
                self.thread = threading.Thread(target=self.run, name="mqtt-link", daemon=True)
                self.thread.start()
            if not self.changed.wait_for(lambda: self.up is not None, max(0.0, until - clock.monotonic())):
                raise self.unavailable()

    @contextlib.contextmanager
    def exchange(self, about: str) -> Iterator[Exchange]:
        """An exchange that hears answers for the length of the block. `about` makes its correlation readable."""
        with self.changed:
            if len(self.exchanges) >= MOST_EXCHANGES:
                raise DriverFailed("Too many MQTT commands wait for an answer", code="mqtt_busy")
            self.count += 1
            exchange = Exchange(f"{about}/{self.count}".encode())
            self.exchanges[exchange.correlation] = exchange
        try:
            yield exchange
        finally:
            with self.changed:
                del self.exchanges[exchange.correlation]

    def request(self, exchange: Exchange, topic: str, document: bytes, expires_in: int) -> None:
        """Publish once. Raises DriverFailed only when nothing was sent; all else the exchange hears."""
        marks = Properties(PacketTypes.PUBLISH)
        marks.ResponseTopic, marks.CorrelationData = self.answers, exchange.correlation
        marks.MessageExpiryInterval, marks.PayloadFormatIndicator = expires_in, 1
        client = self.up
        if client is None:
            raise self.unavailable()
        sent = client.publish(topic, document, qos=1, properties=marks)
        if sent.rc in (MQTTErrorCode.MQTT_ERR_NO_CONN, MQTTErrorCode.MQTT_ERR_QUEUE_SIZE):
            raise self.unavailable()
        with self.changed:
            said = self.receipts.pop(sent.mid, None)
            if self.up is not client:
                exchange.put(Lost(self.trouble))  # it went before anybody knew of this message
            elif said is None:
                self.receipts[sent.mid] = exchange
            elif isinstance(said, str) and said:
                exchange.put(Undelivered(said))

    def unavailable(self) -> DriverFailed:
        return DriverFailed(f"MQTT broker unavailable: {self.trouble}", code="mqtt_unavailable")

    def close(self) -> None:
        """End the connection and its threads."""
        self.over.set()
        self.lose("closed")
        if self.thread is not None:
            self.thread.join()

    # what keeps it up

    def run(self) -> None:
        pauses = iter(PAUSES)
        while not self.over.is_set():
            self.down.clear()
            client = self.new_client()
            try:
                client.connect(self.broker.host, self.broker.port, KEEPALIVE, clean_start=True)
                client.loop_start()
                if self.came_up():
                    pauses = iter(PAUSES)
                    self.down.wait()
            except (OSError, ValueError) as error:  # a certificate for another host is a ValueError
                self.lose(str(error) or type(error).__name__)
            client.disconnect()
            client.loop_stop()
            self.over.wait(next(pauses, PAUSES[-1]))

    def came_up(self) -> bool:
        with self.changed:
            self.changed.wait_for(lambda: self.up is not None or self.down.is_set(), CONNECT_SECONDS)
            if self.up is None and not self.down.is_set():
                self.trouble = f"no answer within {CONNECT_SECONDS:g} s"
            return self.up is not None

    def new_client(self) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2, self.name, protocol=MQTTProtocolVersion.MQTTv5, reconnect_on_failure=False
        )
        client.connect_timeout = CONNECT_SECONDS
        client.max_inflight_messages = self.in_flight
        client.max_queued_messages_set(MOST_EXCHANGES)
        client.suppress_exceptions = True
        client.enable_logger(log.getChild("paho"))
        if self.broker.username:
            client.username_pw_set(self.broker.username, self.broker.password or None)
        if self.broker.tls is not None:
            client.tls_set_context(self.broker.tls)
        client.on_connect, client.on_subscribe = self.connected, self.subscribed
        client.on_disconnect, client.on_publish, client.on_message = self.disconnected, self.published, self.received
        return client

    def lose(self, reason: str) -> None:
        """The connection is gone, or never was: whoever waits for an answer hears it."""
        with self.changed:
            if reason != self.trouble and not self.over.is_set():  # not at each try
                log.warning("there is no connection to the MQTT broker", extra={"error": reason})
            self.up, self.trouble = None, reason
            self.receipts.clear()
            for exchange in self.exchanges.values():
                exchange.put(Lost(reason))
            self.down.set()
            self.changed.notify_all()

    # what paho tells, in its thread

    def connected(self, client: Client, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self.lose(str(reason))
            return
        accepted = getattr(properties, "ReceiveMaximum", self.in_flight)
        if accepted < self.in_flight:
            self.in_flight = accepted  # paho takes it before it connects only
            self.lose(f"the broker takes {accepted} messages at once")
            return
        client.subscribe(self.answers, qos=1)

    def subscribed(self, client: Client, _data: Any, _mid: int, reasons: list[Any], _properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self.lose(f"no subscription to {self.answers}: {reasons[0]}")
            return
        log.info("connected to the MQTT broker", extra={"broker": f"{self.broker.host}:{self.broker.port}"})
        with self.changed:
            self.up, self.trouble = client, ""
            self.changed.notify_all()

    def disconnected(self, _client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not self.down.is_set():
            self.lose(str(reason))

    def published(self, _client: Client, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        """The broker's receipt, which may come before `request` has noted whose it is."""
        problem = str(reason) if reason.is_failure or reason.value == NO_SUBSCRIBER else ""
        with self.changed:
            waiting = self.receipts.pop(mid, None)
            if waiting is None:
                self.receipts[mid] = problem
            elif problem and isinstance(waiting, Exchange):
                waiting.put(Undelivered(problem))

    def received(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        correlation = getattr(message.properties, "CorrelationData", b"")
        answer = read_object(message.payload)
        with self.changed:
            exchange = self.exchanges.get(correlation)
        if exchange is None or answer is None:
            what = "is for nobody here" if exchange is None else "is no JSON object"
            log.warning(f"an MQTT answer {what}", extra={"correlation": repr(correlation[:100])})
            if exchange is not None:
                exchange.misheard = True
            return
        exchange.put(answer)


def read_object(payload: bytes) -> Mapping[str, Any] | None:
    try:
        document = orjson.loads(payload) if len(payload) <= LONGEST_ANSWER else None
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None
