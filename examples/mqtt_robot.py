"""A small robot on MQTT 5, to try the `mqtt` driver against: python examples/mqtt_robot.py [name] [url] [ca-file]

    python examples/mqtt_robot.py rover mqtt://127.0.0.1:1883
    MQTT_PASSWORD=... python examples/mqtt_robot.py rover mqtts://rover@broker.example:8883 ca.pem --time-scale 10

The name `+` plays every robot at once. What a robot owes, and this one does:

* it carries out one motion at a time, in real time, and answers `accepted`, then `done`;
* it refuses a drive whose fence is not above the highest one it has obeyed, and one that comes
  after `not_after`; a message that the broker delivers twice it drops without an answer;
* a stop it obeys at once, and afterwards nothing that was ordered before it. A stop that is not
  `unconditional` leaves alone what moves under a newer fence;
* when it loses the broker it stops, for no stop could reach it any more, and it notices a dead
  connection within seconds;
* it connects with a clean start and no session, so that nothing old waits for it at the broker.

The highest fence is kept in memory: a robot that restarts stands still, and only `not_after`
keeps an old drive from it. One that moves something heavy should keep it in a file.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

FASTEST = 3.0  # m/s
KEEPALIVE = 5  # seconds; a dead connection is noticed within about two of these
REMEMBERED = 1000  # messages, to know one that comes twice
READINGS = {"yaw": 0.0, "pitch": 0.0, "roll": 0.0}, {"front": 2.0, "rear": 2.0, "left": 1.0, "right": 1.0}

Answer = Callable[..., None]
log = logging.getLogger("mqtt_robot")


@dataclass
class Motion:
    """One drive on its way."""

    fence: int
    speed: float
    answer: Answer
    timer: threading.Timer
    began: float


class Robot:
    """What one robot does with its orders. `taken` keeps what came: moment, command, fence, what became of it."""

    def __init__(self, time_scale: float = 1.0) -> None:
        self.time_scale = time_scale
        self.lock = threading.Lock()
        self.obeyed = 0
        self.motion: Motion | None = None
        self.seen: deque[bytes] = deque(maxlen=REMEMBERED)
        self.taken: deque[tuple[datetime, str, int, str]] = deque(maxlen=REMEMBERED)

    def take(self, order: dict[str, Any], correlation: bytes, answer: Answer) -> None:
        command, fence = order["command"], order["fence"]
        with self.lock:
            if correlation in self.seen:
                return
            self.seen.append(correlation)
            problem = self.problem_with(order) if command == "drive" else ""
            self.taken.append((datetime.now(UTC), command, fence, problem or "taken"))
            if problem:
                answer("refused", reason=problem)
            elif command == "drive":
                self.drive(fence, order["params"], answer)
            elif command == "scan":
                answer("done", **scan())
            else:
                self.halt(fence, command, order.get("unconditional", False))
                answer("done")

    def problem_with(self, order: dict[str, Any]) -> str:
        """Why a drive does not begin, or nothing."""
        if order["fence"] <= self.obeyed:
            return f"fence {self.obeyed} was already obeyed"
        if datetime.now(UTC) > datetime.fromisoformat(order["not_after"]):
            return "too late to begin"
        if not 0 <= order["params"]["speed"] <= FASTEST:
            return f"faster than {FASTEST} m/s"
        return "in motion" if self.motion else ""

    def drive(self, fence: int, params: dict[str, Any], answer: Answer) -> None:
        timer = threading.Timer(params["duration_seconds"] / self.time_scale, self.arrive, [fence])
        timer.daemon = True
        self.obeyed = fence
        self.motion = Motion(fence, params["speed"], answer, timer, monotonic())
        answer("accepted")
        timer.start()

    def arrive(self, fence: int) -> None:
        with self.lock:
            if self.motion and self.motion.fence == fence:
                self.rest("done")

    def halt(self, fence: int, reason: str, unconditional: bool) -> None:
        self.obeyed = max(self.obeyed, fence)
        if self.motion and (unconditional or self.motion.fence <= fence):
            self.rest("stopped", reason=reason)

    def cut_off(self) -> None:
        """Nobody can stop this robot any more: it stops by itself."""
        with self.lock:
            if self.motion:
                self.rest("stopped", reason="connection lost")

    def rest(self, status: str, **why: str) -> None:
        motion, self.motion = self.motion, None
        assert motion is not None
        motion.timer.cancel()
        distance = motion.speed * (monotonic() - motion.began) * self.time_scale
        motion.answer(status, distance=round(distance, 3), **why)


class Radio:
    """The robots' connection: orders come in, answers go to whoever asked."""

    def __init__(self, name: str, prefix: str = "orchestrator", time_scale: float = 1.0) -> None:
        self.topic = f"{prefix}/robots/{name}/commands"
        self.time_scale = time_scale
        self.robots: dict[str, Robot] = {}
        self.ready = threading.Event()
        self.client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self.client.on_connect, self.client.on_subscribe = self.connected, self.subscribed
        self.client.on_disconnect, self.client.on_message = self.disconnected, self.receive

    def connect(self, url: str, ca_file: str = "", password: str = "") -> None:
        parts = urlsplit(url)
        if parts.username:
            self.client.username_pw_set(parts.username, password)
        if parts.scheme == "mqtts":
            self.client.tls_set(ca_file or None)
        port = parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        self.client.connect(parts.hostname or "127.0.0.1", port, KEEPALIVE, clean_start=True)

    def connected(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            log.error("the broker refuses the connection: %s; trying again", reason)
            return
        client.subscribe(self.topic, qos=1)

    def subscribed(self, _client: Client, _data: Any, _mid: int, reasons: list[Any], _properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            log.error("the broker refuses %s: %s", self.topic, reasons[0])
            return
        log.info("listening on %s", self.topic)
        self.ready.set()

    def disconnected(self, _client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        log.warning("the connection to the broker is gone: %s", reason)
        for robot in list(self.robots.values()):
            robot.cut_off()

    def robot(self, target: str) -> Robot:
        return self.robots.setdefault(target, Robot(self.time_scale))

    def receive(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        target = message.topic.split("/")[-2]
        correlation = getattr(message.properties, "CorrelationData", b"")
        reply = getattr(message.properties, "ResponseTopic", "")

        def answer(status: str, **facts: Any) -> None:
            log.info("%s %s %s", target, status, facts or "")
            body = {"status": status, "timestamp": datetime.now(UTC).isoformat(), **facts}
            marks = Properties(PacketTypes.PUBLISH)
            marks.CorrelationData = correlation
            if reply:
                self.client.publish(reply, json.dumps(body), qos=1, properties=marks)

        try:
            order = json.loads(message.payload)
            log.info("%s %s %s", target, order["command"], order.get("params"))
            self.robot(target).take(order, correlation, answer)
        except (ValueError, TypeError, KeyError) as error:
            answer("refused", reason=f"not understood: {error!r}")


def scan() -> dict[str, Any]:
    """What the robot sees, as imu.v1 and ultrasonic.v1 say it."""
    now = {"timestamp": datetime.now(UTC).isoformat()}
    imu, ultrasonic = READINGS
    return {"scan_points": 4, "obstacles_detected": 2, "sensors": {"imu": now | imu, "ultrasonic": now | ultrasonic}}


def main() -> None:
    parser = argparse.ArgumentParser(description="A small robot on MQTT 5. MQTT_PASSWORD holds the password.")
    parser.add_argument("name", nargs="?", default="default", help="the robot's name, or + for every robot")
    parser.add_argument("url", nargs="?", default="mqtt://127.0.0.1:1883", help="mqtt:// or mqtts://, user@ if needed")
    parser.add_argument("ca_file", nargs="?", default="", help="CA certificates for mqtts")
    parser.add_argument("--prefix", default="orchestrator", help="first level of the topics")
    parser.add_argument("--time-scale", type=float, default=1.0, help="simulated seconds in a real one")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    radio = Radio(chosen.name, chosen.prefix, chosen.time_scale)
    try:
        radio.connect(chosen.url, chosen.ca_file, os.environ.get("MQTT_PASSWORD", ""))
    except (OSError, ValueError) as error:
        raise SystemExit(f"mqtt_robot: {urlsplit(chosen.url).hostname} cannot be reached: {error}") from None
    try:
        radio.client.loop_forever()
    except KeyboardInterrupt:
        log.info("robot stopped")


if __name__ == "__main__":
    main()
