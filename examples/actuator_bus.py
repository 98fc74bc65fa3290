"""A small actuator bus, to try the `http` driver against: python examples/actuator_bus.py [port]

It acknowledges what actuator.v1 allows, says on stderr what it would have moved, and
shows what a bus can do with the headers that the driver sends: a drive whose X-Fence
is not above the last one obeyed, or that comes after X-Not-After, is refused with 409.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMANDS = ("drive", "stop", "brake")
LONGEST_BODY = 64 * 1024
DEFAULT_PORT = 8001

log = logging.getLogger("actuator_bus")


class Bus(ThreadingHTTPServer):
    """The listening bus; `obeyed` keeps the highest fence of each target, `received` what came."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler] | None = None) -> None:
        super().__init__(address, handler or Actuate)
        self.lock = threading.Lock()
        self.obeyed: dict[str, int] = {}
        self.received: list[dict[str, Any]] = []

    def stale(self, command: str, target: str, fence: int) -> bool:
        """Whether a drive comes after something newer. A stop is never refused, and raises the fence."""
        with self.lock:
            last = self.obeyed.get(target, 0)
            if command == "drive" and fence <= last:
                return True
            self.obeyed[target] = max(last, fence)
            return False


class Actuate(BaseHTTPRequestHandler):
    """GET / says how the bus is, POST /actuate takes one command."""

    server: Bus

    def do_GET(self) -> None:
        if self.path == "/":
            self.answer(200, {"service": "actuator-bus", "version": "0.1.0", "status": "operational"})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        if self.path != "/actuate":
            self.answer(404, {"detail": "Not Found"})
            return
        body = self.read_json()
        problem = problem_with(body)
        if problem:
            self.answer(422, {"detail": [{"type": "value_error", "loc": ["body"], "msg": problem}]})
            return
        late = moment(self.headers.get("X-Not-After"))
        if body["command"] == "drive" and late is not None and datetime.now(UTC) > late:
            self.answer(409, {"detail": "too late to begin"})
            return
        fence = self.headers.get("X-Fence", "")
        if fence.isdecimal() and self.server.stale(body["command"], self.headers.get("X-Target", ""), int(fence)):
            self.answer(409, {"detail": "a newer command was already obeyed"})
            return
        self.accept(body)

    def accept(self, body: dict[str, Any]) -> None:
        log.info("%s %s", body["command"], json.dumps(body.get("params") or {}))
        self.server.received.append(body)
        self.answer(200, {"ack": True, "received_at": datetime.now(UTC).isoformat()})

    def read_json(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LONGEST_BODY:
            return None
        try:
            return json.loads(self.rfile.read(int(length)))
        except ValueError:
            return None

    def answer(self, status: int, document: Any) -> None:
        payload = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def problem_with(body: Any) -> str | None:
    """Why a body is no actuator.v1 command, or None."""
    if not isinstance(body, dict):
        return "the body must be a JSON object"
    if moment(body.get("timestamp")) is None:
        return "timestamp must be a date-time"
    if body.get("command") not in COMMANDS:
        return f"command must be one of {', '.join(COMMANDS)}"
    if not isinstance(body.get("params") or {}, dict):
        return "params must be an object"
    return None


def moment(text: Any) -> datetime | None:
    """A text as an aware moment; without an offset it is taken for UTC."""
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except (AttributeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    port = int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_PORT
    with Bus(("127.0.0.1", port)) as bus:
        log.info("actuator bus on http://127.0.0.1:%d", bus.server_port)
        try:
            bus.serve_forever()
        except KeyboardInterrupt:
            log.info("actuator bus stopped")


if __name__ == "__main__":
    main()
