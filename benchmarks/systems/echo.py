"""The echo: validates a ticket and answers with it, on the service's own server (granian and its bridge).

`python -m benchmarks.systems.echo PORT PROCESSES`. What it costs is what the server, Flask and the validation cost;
what the service adds to it is identity, limits, the row and the ledger.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any

from flask import jsonify

from benchmarks.systems.drafts import draft, make_app
from orchestrator_web.bridge import Bridge, Disconnected, Receive, Send

THREADS = 8
LARGEST_BODY = 2**20

flask = make_app("echo")


@flask.post("/ticket")
def echo() -> Any:
    return jsonify(draft()), 201


bridge = Bridge(flask, THREADS, LARGEST_BODY)


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    try:
        answer = await bridge(scope, receive)
    except Disconnected:
        return
    await answer.send(send)


def main() -> None:
    from granian.constants import Interfaces
    from granian.server import Server

    target = "benchmarks.systems.echo:app"
    Server(
        target,
        address="127.0.0.1",
        port=int(sys.argv[1]),
        interface=Interfaces.ASGI,
        workers=int(sys.argv[2]),
        backlog=4096,
        backpressure=2048,
        workers_kill_timeout=2,
    ).serve()


if __name__ == "__main__":
    main()
