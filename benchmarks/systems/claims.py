"""Claims as the dispatcher and a worker make them: `python -m benchmarks.systems.claims PICKS`, on DATABASE_URL.

Each pick marks up to 24 ready jobs as sent; each of them is then taken. Prints the milliseconds of each pick and of
each take as JSON. Nothing carries the tickets out, and nothing gives them back.
"""

from __future__ import annotations

import json
import sys
import time

import orchestrator_tasks.tickets.tasks  # noqa: F401 - a take needs what the domain registers
from models.kernel.backlog import pick_jobs
from models.kernel.session import statement
from models.kernel.settings import settings
from models.tickets.operations import take_ticket
from models.tickets.transitions import QUEUE

WARM = 2


def main() -> None:
    chosen = settings()
    picks, takes = [], []
    for number in range(WARM + int(sys.argv[1])):
        with statement() as connection:
            began = time.perf_counter()
            jobs = pick_jobs(connection, QUEUE, chosen.dispatch_window, chosen.aging_seconds)
            picked = time.perf_counter()
            for job in jobs:
                before = time.perf_counter()
                if take_ticket(connection, job.id, "bench") is None:
                    raise SystemExit("a job that was just picked could not be taken")
                if number >= WARM:
                    takes.append((time.perf_counter() - before) * 1000)
        if number >= WARM:
            picks.append((picked - began) * 1000)
            if len(jobs) != chosen.dispatch_window:
                raise SystemExit(f"only {len(jobs)} jobs were ready")
    print(json.dumps({"picks": picks, "takes": takes}))


if __name__ == "__main__":
    main()
