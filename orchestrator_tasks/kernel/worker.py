"""Who acts, when a worker does: the name that the ledger keeps."""

from __future__ import annotations

import socket


def worker() -> str:
    return f"worker:{socket.gethostname()}"
