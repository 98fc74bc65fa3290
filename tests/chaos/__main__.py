"""`python -m tests.chaos --minutes 3 --seed 7`: one run under fire, its figures and its verdict.

Ends with 0 when every promise was kept, else with 1, the seed and where the history lies.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from tests.chaos import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="how long faults are made (3)")
    parser.add_argument("--seed", type=int, default=None, help="which plan of faults; without it, any")
    parser.add_argument("--keep", type=Path, default=None, help="where the history is kept (/tmp/orchestrator-chaos)")
    parser.add_argument("--check", type=Path, default=None, help="only judge the evidence of an earlier run")
    chosen = parser.parse_args()
    if chosen.check is not None:
        return run.judge(run.load(chosen.check))
    seed = random.SystemRandom().randrange(10**6) if chosen.seed is None else chosen.seed
    keep = (chosen.keep or Path("/tmp/orchestrator-chaos")) / f"{seed}-{int(time.time())}"
    return run.carry_out(seed, chosen.minutes * 60, keep)


if __name__ == "__main__":
    sys.exit(main())
