"""More urgent work than the workers can do, and one ticket that is not urgent among it.

How long that one may wait is stated here: the aging bound, and after it the time in which the messages that were sent
before it and the drives that were going on are carried out.
"""

from __future__ import annotations

import time

from tests.chaos.callers import Caller, World
from tests.chaos.cluster import AGING_SECONDS, IO_THREADS
from tests.service.running import WINDOW

ROBOTS = 3 * IO_THREADS
DRIVE_SECONDS = 1.0  # real ones: ten simulated
SHARE_OF_A_SECOND = 1.6  # how much more is asked for than can be done
LONGEST = 20.0
MARGIN_SECONDS = 3.0  # the passes of the dispatcher, and a busy machine

LOW_WITHIN = AGING_SECONDS + DRIVE_SECONDS * (1 + WINDOW / IO_THREADS) + MARGIN_SECONDS


def saturate(world: World) -> None:
    """Keep the workers busy with high tickets until the low one has started, at most LONGEST seconds."""
    caller = Caller(world, "saturator")
    began = time.monotonic()
    made: list[str] = []
    low: str | None = None
    while time.monotonic() - began < LONGEST:
        made += ask_for_drives(caller, int(2 * IO_THREADS * SHARE_OF_A_SECOND))
        if low is None and time.monotonic() - began > 2 * DRIVE_SECONDS:
            low = ask_for_the_low_one(caller)
        elif low is not None and has_started(caller, low):
            break
        world.over.wait(2.0)
    for place in range(0, len(made), 500):
        caller.ask("bulk_cancel", "POST", "/tickets/cancel", {"ids": made[place : place + 500]})
    caller.hang_up()


def ask_for_drives(caller: Caller, count: int) -> list[str]:
    params = {"speed": 1.0, "direction": 0, "duration_seconds": 10 * DRIVE_SECONDS}
    targets = [f"s{caller.chance.randrange(ROBOTS)}" for _ in range(count)]
    drives = [{"command": "drive", "params": params, "priority": "high", "target": target} for target in targets]
    made = caller.ask_until_told("batch", "/tickets/batch", {"tickets": drives}, size=count)
    if not made.is_acknowledged:
        return []
    ids = [ticket["id"] for ticket in made.answer["tickets"]]
    caller.ask("bulk_execute", "POST", "/tickets/execute", {"ids": ids})
    return ids


def ask_for_the_low_one(caller: Caller) -> str | None:
    made = caller.ask(
        "create",
        "POST",
        "/ticket",
        {"command": "scan", "priority": "low", "metadata": {"role": "low"}, "target": "low"},
    )
    if not made.is_acknowledged:
        return None
    ticket_id = str(made.answer["id"])
    caller.ask("execute", "POST", "/execute", {"ticket_id": ticket_id}, headers={"Prefer": "respond-async"})
    return ticket_id


def has_started(caller: Caller, ticket_id: str) -> bool:
    seen = caller.ask("read", "GET", f"/ticket/{ticket_id}")
    return seen.status == 200 and seen.answer["started_at"] is not None
