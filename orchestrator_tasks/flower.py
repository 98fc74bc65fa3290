"""Flower, with its own beat so that /readyz knows it runs."""

from __future__ import annotations

import os

from models.kernel import logs
from models.kernel.parsers import is_loopback
from models.kernel.processes import Presence, refuse_without_servers
from models.kernel.settings import settings
from orchestrator_tasks.app import app

INSPECTIONS = 8
"""How many things Flower asks a worker at once; each holds one broker connection while it takes another."""


def arguments() -> list[str]:
    chosen = settings()
    words = ["flower", f"--address={chosen.host}", f"--port={chosen.flower_port}", "--purge_offline_workers=60"]
    if chosen.flower_auth:
        words.append(f"--basic-auth={chosen.flower_auth}")
    elif not is_loopback(chosen.host):
        raise SystemExit("Flower needs ORCHESTRATOR_FLOWER_AUTH=user:password when it listens beyond loopback")
    return words


def main() -> None:
    refuse_without_servers()
    logs.configure("flower")
    words = arguments()
    app.conf.broker_pool_limit = 2 * INSPECTIONS  # with fewer they wait for each other for ever
    presence = Presence("flower").start()
    try:
        app.start(words)
    finally:
        # Flower's own threads may still wait for workers to answer; it keeps nothing that a hard exit could lose.
        presence.stop()
        os._exit(0)


if __name__ == "__main__":
    main()
