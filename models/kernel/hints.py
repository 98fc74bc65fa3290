"""The names under which processes remind each other. Hints may be lost, doubled or late; rows decide.

No Redis in this room: the web and the tasks each speak it for themselves.
"""

from __future__ import annotations

WORK = "orchestrator:work"  # "<queue>" owes work or has room: dispatchers, look; "" is all queues
OUTCOMES = "orchestrator:outcomes"  # "<subject id> <subject id> ..." ended: whoever waits, look
CANARY_SECONDS = 60  # how long the answer to a canary can be heard


def canary_key(canary: str) -> str:
    """Where the workers that read this canary leave the names of their queues."""
    return f"orchestrator:canary:{canary}"


def redis_url(broker_url: str) -> str:
    """The broker's address as redis-py spells it: kombu writes unix sockets as redis+socket://."""
    scheme, socket, rest = broker_url.partition("+socket://")
    return f"unix://{rest.replace('virtual_host', 'db')}" if socket and scheme == "redis" else broker_url
