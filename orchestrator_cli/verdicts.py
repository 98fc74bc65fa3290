"""A replay calls an engine in its own process, which the engine can end: another process waits for its verdict.

The process that does the work says how it went over a pipe before it ends. One that ends without having said so was
ended by the engine, whatever its exit code: `os._exit(0)` in an engine is no success.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from orchestrator_cli import leash
from orchestrator_cli.errors import CANNOT, UNSUCCESSFUL, CommandFailed

PIPE = "REPLAY_VERDICT_PIPE"
GOOD, BAD = b"+", b"-"
BY_A_SIGNAL = 128
NOT_HERE = "--isolated calls the engine in processes of its own, which it may end"


class EngineEnded(CommandFailed):
    """The engine ended the process that called it."""

    code = "engine_ended_the_replay"

    def __init__(self, how: str, exit_code: int) -> None:
        super().__init__(f"the engine ended the replay ({how}): there is no result", next_step=NOT_HERE)
        self.exit_code = exit_code


def is_our_command() -> bool:
    """Whether this process is the `orchestrator` command, and no other program that calls it."""
    return Path(sys.argv[0]).name == "orchestrator" or Path(sys.argv[0]).parent.name == "orchestrator_cli"


@contextlib.contextmanager
def verdict() -> Iterator[Callable[[], None]]:
    """In the process that does the work: call what is given when it went well; all other endings count as bad."""
    pipe = int(os.environ.pop(PIPE, "-1"))
    if pipe >= 0:
        os.set_inheritable(pipe, False)
    said = [BAD]
    try:
        yield lambda: said.__setitem__(0, GOOD)
    finally:
        if pipe >= 0:
            os.write(pipe, said[0])
            os.close(pipe)


def work_in_a_child(environment: Mapping[str, str], *, compare: bool) -> None:
    """Run this command anew with this environment and end as it does; returns in the child only.

    Raises EngineEnded when the child ended without a verdict, or as if all were well with a bad one.
    """
    if PIPE in os.environ or not is_our_command():
        return
    sys.stdout.flush()
    listening, telling = os.pipe()
    told = {**os.environ, **environment, PIPE: str(telling), leash.PARENT: str(os.getpid())}
    words = [*leash.prefix(signal.SIGTERM), sys.executable, *sys.orig_argv[1:]]
    with passing_signals_on() as (begin, received):
        child = subprocess.Popen(words, env=told, pass_fds=[telling])
        begin(child)
        code = child.wait()
    os.close(telling)
    os.set_blocking(listening, False)  # what the engine forked may still hold the other end
    said = heard(listening)
    if received and code < 0:
        sys.exit(BY_A_SIGNAL + received[0])
    if not said or (code == 0 and said == BAD):
        raise EngineEnded(f"signal {-code}" if code < 0 else f"exit code {code}", UNSUCCESSFUL if compare else CANNOT)
    sys.exit(code if code >= 0 else BY_A_SIGNAL - code)


def heard(pipe: int) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return os.read(pipe, 1)
    return b""


@contextlib.contextmanager
def passing_signals_on() -> Iterator[tuple[Callable[[subprocess.Popen[bytes]], None], list[int]]]:
    """The child decides what a Ctrl-C means, which a terminal sends to both; SIGTERM and SIGHUP go on to it."""
    received: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield children.append, received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
