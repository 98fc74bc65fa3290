"""An engine that does what an engine should not: which of it, the symbol says."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.regime_engine.contracts import (
    HysteresisConfig,
    HysteresisDecision,
    HysteresisStore,
    HysteresisTransition,
    Regime,
    RegimeInputSnapshot,
    RegimeOutput,
)

CALLS = 0
FOREVER = threading.Event()
ALL_SIGNALS = signal.valid_signals()


def run(snapshot: RegimeInputSnapshot) -> RegimeOutput:
    global CALLS  # noqa: PLW0603 - what it leaves behind is what is looked at
    CALLS += 1
    drivers = ACTS[snapshot.symbol](snapshot.market.structure_levels)
    return RegimeOutput(
        snapshot.symbol, snapshot.timestamp, Regime.CHOP_BALANCED, float(CALLS), drivers or ["calm"], [], []
    )


def run_with_hysteresis(
    snapshot: RegimeInputSnapshot, state: HysteresisStore, config: HysteresisConfig | None = None
) -> HysteresisDecision:
    transition = HysteresisTransition(None, None, 0, False, False, False)
    return HysteresisDecision(run(snapshot), float(len(state.states)), transition)


def says(name: str) -> None:
    raise ValueError(f"{name} is wrong in {object()!r}\nand \0 more \ud800")


def loops(_: Any) -> None:
    while True:
        pass


def loops_unsignalled(_: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    loops(_)


def recurses(levels: Any) -> None:
    recurses(levels)


def grows(_: Any) -> None:
    held = []
    while True:
        held.append("x" * 2**20)


def forks(levels: Any) -> None:
    """Leave a process behind, in a session of its own, once it has said who it is."""
    if os.fork() == 0:
        os.setsid()
        notes(levels)
        FOREVER.wait()
    while not Path(levels["path"]).exists():
        os.sched_yield()


def notes(levels: Any) -> None:
    """Say who runs, where the test looks for it; whole or not at all."""
    text = f"{os.getpid()} {os.getppid()}"
    part = Path(levels["path"] + ".part")
    part.write_text(text)
    part.rename(levels["path"])


def ends_before_its_process(levels: Any) -> None:
    forks(levels)
    os._exit(0)


def leaves_a_thread(_: Any) -> list[str]:
    threading.Thread(target=FOREVER.wait).start()
    return [f"{threading.active_count()} threads"]


def prints(_: Any) -> None:
    print("printed by the engine")  # noqa: T201 - as engines do
    os.write(1, b"written by the engine\n")
    os.write(2, b"complained by the engine\n")


def waits(levels: Any) -> None:
    notes(levels)
    FOREVER.wait()


def writes_everywhere(_: Any) -> None:
    for number in range(3, 32):
        try:
            os.write(number, b"\0\0\0\0\0\0\0\2{]")
        except OSError:
            continue


def descriptors(_: Any) -> list[str]:
    return [os.readlink("/proc/self/fd/0"), str(len(os.listdir("/proc/self/fd")))]


ACTS: dict[str, Callable[[Any], list[str] | None]] = {
    "calm": lambda _: None,
    "raises": lambda _: says("it"),
    "exits": lambda _: sys.exit(3),
    "is interrupted": lambda _: signal.raise_signal(signal.SIGINT),
    "ends": lambda _: os._exit(0),
    "ends badly": lambda _: os._exit(7),
    "aborts": lambda _: os.abort(),
    "breaks memory": lambda _: ctypes.string_at(1),  # type: ignore[dict-item]
    "kills itself": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "kills its host": lambda _: (os.kill(os.getppid(), signal.SIGKILL), FOREVER.wait()),  # type: ignore[dict-item]
    "stops its host": lambda levels: (notes(levels), os.kill(os.getppid(), signal.SIGSTOP), FOREVER.wait()),  # type: ignore[dict-item]
    "recurses": recurses,
    "grows": grows,
    "asks for all memory": lambda _: [str(len(bytearray(2**40)))],
    "says too much": lambda _: ["x" * 5 * 2**20],
    "loops": loops,
    "loops unsignalled": loops_unsignalled,
    "counts for ever": lambda _: [str(9**9**9)],
    "matches for ever": lambda _: [str(re.match("(a+)+$", "a" * 64 + "b"))],
    "waits": waits,
    "leaves a thread": leaves_a_thread,
    "leaves a process": forks,
    "ends before its process": ends_before_its_process,
    "prints": prints,
    "closes everything": lambda _: os.closerange(3, 64),
    "writes everywhere": writes_everywhere,
    "environment": lambda _: sorted(os.environ),
    "descriptors": descriptors,
    "a set": lambda _: list({f"item {number}" for number in range(50)}),
    "core": lambda _: [str(resource.getrlimit(resource.RLIMIT_CORE))],
    "marks": notes,
}
