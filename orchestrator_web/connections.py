"""The TCP connections of this process, known by their client's end: how much a client has sent, and how to drop it.

The server bounds no WebSocket message below 64 MiB, shows none before it is whole, and can only end a body
as if it were complete. The sockets are this process's own, so the kernel is asked. Linux only (tcp(7),
TCP_INFO); elsewhere nothing is found, and nothing is bounded or dropped.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

DESCRIPTORS = Path("/proc/self/fd")
BYTES_RECEIVED = 128  # the offset of tcpi_bytes_received in struct tcp_info
INFO_SIZE = BYTES_RECEIVED + 8
DROP_UNSENT = struct.pack("ii", 1, 0)
PEER = "orchestrator.peer"

Peer = tuple[str, int]


def remembering_peer(application: Any) -> Any:
    """An application that finds in its scope who is at the connection's other end, be it a proxy."""

    async def remembering(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("client"):
            host, port = scope["client"]
            scope[PEER] = (host, int(port))  # the server writes it as a text
        await application(scope, receive, send)

    return remembering


def count_received(peers: Collection[Peer]) -> dict[Peer, int]:
    """How many bytes each of these has sent on its connection so far. Blocks for some microseconds a descriptor."""
    received = {}
    for peer, connection in connections(peers):
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_SIZE)
        if len(info) == INFO_SIZE:
            received[peer] = int(struct.unpack_from("=Q", info, BYTES_RECEIVED)[0])
    return received


def drop_connection(peer: Peer) -> bool:
    """Reset a client's connection, with what waits to be sent; False when it is not there (any more)."""
    dropped = False
    for _, connection in connections({peer}):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DROP_UNSENT)
        connection.shutdown(socket.SHUT_RDWR)
        dropped = True
    return dropped


def connections(peers: Collection[Peer]) -> Iterator[tuple[Peer, socket.socket]]:
    names = os.listdir(DESCRIPTORS) if DESCRIPTORS.is_dir() else []
    for name in names:
        try:
            copy = os.dup(int(name))  # what the number means cannot change any more
        except OSError:
            continue
        if not stat.S_ISSOCK(os.fstat(copy).st_mode):
            os.close(copy)
            continue
        with socket.socket(fileno=copy) as connection:
            try:
                peer = connection.getpeername()[:2]
                if peer in peers:
                    yield peer, connection
            except OSError:  # it listens, or has just ended
                continue
