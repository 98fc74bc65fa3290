"""Run a command that dies with whoever started it.

    python leash.py SIGNAL MEMBERS command [argument ...]

A supervisor that is killed with SIGKILL cannot stop its children, so the kernel
is asked to: when the parent dies, the command gets SIGNAL. MEMBERS is a file
that the command and its forks keep open ("-" for none), by which a later start finds
whatever is still alive. Standard library only and no imports of the project:
this runs before every process and must cost milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT = "LEASH_PARENT"
MEMBERS = "LEASH_MEMBERS"
PR_SET_PDEATHSIG = 1


def prefix(ending: signal.Signals, members: str = "-") -> list[str]:
    """What to write in front of a command to put it on a leash."""
    return [sys.executable, "-I", "-S", __file__, ending.name, members]


def die_with_parent(ending: signal.Signals) -> None:
    """Ask for the signal, then look whether the parent died before the request was made."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(ending), 0, 0, 0)
    expected = os.environ.get(PARENT)
    if expected and os.getppid() != int(expected):
        raise SystemExit(0)


def join(members: str) -> None:
    """Hold the members file open across exec and fork."""
    descriptor = os.open(members, os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(descriptor, True)
    os.environ[MEMBERS] = members


def main(arguments: list[str]) -> None:
    ending, members, *command = arguments
    die_with_parent(signal.Signals[ending])
    if members != "-":
        join(members)
    os.environ[PARENT] = str(os.getpid())
    try:
        os.execvp(command[0], command)  # noqa: S606 - replacing this process is the whole purpose
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
