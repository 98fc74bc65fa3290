"""Whether this container's process works: `python ops/healthy.py ROLE`, exit code 0 or 1.

The web is asked over HTTP. The others say once a second in the database that they are alive
(`models/kernel/processes.py`); this looks for a fresh word of this role from this host.
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.error
import urllib.request

SECONDS = 4
OK = 200
PORT = int(os.environ.get("PORT") or 8000)


def web_answers() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=SECONDS) as answer:
            return bool(answer.status == OK)
    except (urllib.error.URLError, OSError):
        return False


def speaks(role: str) -> bool:
    from models.kernel.errors import OrchestratorError
    from models.kernel.processes import has_fresh
    from models.kernel.session import statement

    try:
        with statement() as connection:
            return has_fresh(connection, role, socket.gethostname())
    except OrchestratorError:
        return False


def main(role: str) -> int:
    return 0 if (web_answers() if role == "web" else speaks(role)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
