"""Readers of the event stream, in a process of their own: `python -m benchmarks.systems.readers PORT COUNT`.

Takes the credential as the first line of its input, opens the streams, says `ready`, and after the next line writes
what each heard as JSON: the sequence numbers in order, and the delays from an event's
`at` in the ledger to its receipt.
While it listens it only notes what came when.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from datetime import datetime

EVENT = re.compile(rb'"seq":(\d+),.*?"at":"([^"]+)".*?\n\n', re.DOTALL)
TOGETHER = 20


class Reader:
    def __init__(self) -> None:
        self.came: list[tuple[float, bytes]] = []
        self.opened = asyncio.Event()

    async def read(self, port: int, token: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"GET /tickets/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        writer.write(head.encode())
        while data := await reader.read(1 << 16):
            self.came.append((time.time(), data))
            self.opened.set()

    def heard(self) -> tuple[list[int], list[float]]:
        """An event that came in pieces counts from its last."""
        numbers, delays, rest = [], [], b""
        for now, data in self.came:
            rest += data
            end = 0
            for event in EVENT.finditer(rest):
                numbers.append(int(event[1]))
                delays.append((now - datetime.fromisoformat(event[2].decode()).timestamp()) * 1000)
                end = event.end()
            rest = rest[end:]
        return numbers, delays


async def listen(port: int, count: int, token: str) -> list[Reader]:
    readers, tasks = [], []
    for number in range(count):
        readers.append(reader := Reader())
        tasks.append(asyncio.create_task(reader.read(port, token)))
        if number % TOGETHER == TOGETHER - 1:
            await asyncio.wait_for(reader.opened.wait(), 30)
    await asyncio.gather(*(asyncio.wait_for(each.opened.wait(), 30) for each in readers))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for task in tasks:
        task.cancel()
    return readers


def main() -> None:
    port, count = int(sys.argv[1]), int(sys.argv[2])
    readers = asyncio.run(listen(port, count, sys.stdin.readline().strip()))
    heard = [reader.heard() for reader in readers]
    delays = [delay for _, each in heard for delay in each]
    json.dump({"numbers": [numbers for numbers, _ in heard], "delays": delays}, sys.stdout)


if __name__ == "__main__":
    main()
