"""A small receiver of webhooks that verifies signatures: python examples/webhook_receiver.py whsec_... [port]

It answers 204 to what is signed with the secret and no older than five minutes, 400 to
everything else, and shows each event once on stderr: the same webhook-id may come again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import sys
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DEFAULT_PORT = 8003
LONGEST_BODY = 4 * 2**20
OLDEST_SECONDS = 300

log = logging.getLogger("webhook_receiver")


def is_signed(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    """Whether one of the signatures is ours, and the message not an old one played again."""
    message_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isdigit() or abs(time.time() - int(timestamp)) > OLDEST_SECONDS:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    ours = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    offered = headers.get("webhook-signature", "").encode().split()
    return any(hmac.compare_digest(ours.encode(), one) for one in offered)


class Receiver(ThreadingHTTPServer):
    """The listening receiver; `seen` holds the ids that came, in order."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], secret: str) -> None:
        super().__init__(address, Receive)
        self.secret = secret
        self.seen: dict[str, dict[str, object]] = {}


class Receive(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(min(length, LONGEST_BODY))
        if not is_signed(self.server.secret, self.headers, body):
            self.send_error(400, "not signed by us")
            return
        message_id = self.headers["webhook-id"]
        if message_id not in self.server.seen:
            self.server.seen[message_id] = event = json.loads(body)
            log.info("%s %s %s", message_id, event["type"], json.dumps(event["data"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """The events are enough to read."""


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    secret, *port = sys.argv[1:] or sys.exit(__doc__)
    with Receiver(("127.0.0.1", int(port[0]) if port else DEFAULT_PORT), secret) as server:
        log.info("receiving at http://127.0.0.1:%d", server.server_port)
        server.serve_forever()


if __name__ == "__main__":
    main()
