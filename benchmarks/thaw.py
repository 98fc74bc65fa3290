"""Lets frozen processes go when the run that froze them is gone: `python -m benchmarks.thaw`.

What is stopped by SIGSTOP hears no other signal but SIGKILL, not even the one that it asked for at its parent's death.
So this reads from its input which processes are frozen (`+1 2 3`) and which are no longer (`-1 2 3`), and at the end of
its input, which is the end of the run however that came, lets go those that are left: their own signals then end them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # its input says when it is over
    frozen: set[int] = set()
    for line in sys.stdin:
        pids = {int(word) for word in line[1:].split()}
        frozen = frozen | pids if line[0] == "+" else frozen - pids
    for pid in frozen:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    main()
