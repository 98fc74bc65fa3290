"""A TCP proxy before a server's unix socket, which can cut, delay and half-open what passes through it.

A half-open connection swallows what either side sends and tells neither when the other has gone: so it looks after a
router has lost its memory. When the fault is cleared it is reset, as the first packet of the other side would do.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

CHUNK = 65_536
PATIENCE = 10.0
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Link:
    """One connection through the proxy."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.near, self.far = near, far
        self.deaf = False
        self.cleared = asyncio.Event()

    def reset(self) -> None:
        """End both sides at once, without a farewell."""
        with contextlib.suppress(OSError):  # it is closed already
            self.near.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        for writer in (self.near, self.far):
            writer.transport.abort()


class Proxy:
    """Listens on a port of its own on loopback; its faults may be asked for from any thread."""

    def __init__(self, upstream: Path) -> None:
        self.upstream = upstream
        self.links: set[Link] = set()
        self.delay = 0.0
        self.port = 0
        self.server: asyncio.Server | None = None

    def start(self) -> Proxy:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="proxy", daemon=True)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.listen(), self.loop).result(PATIENCE)
        return self

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.close(), self.loop).result(PATIENCE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)
        self.loop.close()

    async def listen(self) -> None:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self.server is not None
        self.server.close()
        self.clear_now()
        self.cut_now()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=PATIENCE / 2)

    async def serve(self, near_in: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        try:
            far_in, far = await asyncio.open_unix_connection(str(self.upstream))
        except OSError:
            near.transport.abort()
            return
        link = Link(near, far)
        self.links.add(link)
        try:
            await asyncio.gather(self.pump(link, near_in, far), self.pump(link, far_in, near))
        except asyncio.CancelledError:
            link.reset()
        finally:
            self.links.discard(link)
            for writer in (near, far):
                writer.close()
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await writer.wait_closed()

    async def pump(self, link: Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if link.deaf:
                    continue
                sink.write(data)
                await sink.drain()
        if link.deaf:
            await link.cleared.wait()
        with contextlib.suppress(OSError):
            sink.close()

    # faults

    def cut(self) -> None:
        """Reset every connection; new ones are let through."""
        self.do(self.cut_now)

    def half_open(self) -> None:
        """Nothing passes any more through the connections that are open; new ones are let through."""
        self.do(self.deafen_now)

    def slow(self, seconds: float) -> None:
        """Whatever is sent arrives so much later."""
        self.delay = seconds

    def clear(self) -> None:
        self.delay = 0.0
        self.do(self.clear_now)

    def do(self, act: Callable[[], None]) -> None:
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (act(), done.set()))
        if not done.wait(PATIENCE):
            raise TimeoutError("the proxy's loop does not answer")

    def cut_now(self) -> None:
        for link in list(self.links):
            link.reset()

    def deafen_now(self) -> None:
        for link in self.links:
            link.deaf = True

    def clear_now(self) -> None:
        for link in [link for link in self.links if link.deaf]:
            link.cleared.set()
            link.reset()
