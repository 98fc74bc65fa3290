"""Replays: an engine in this process, or called as the service does, given again what it was given."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from models.engine.divergence import Digest, find_divergence
from models.engine.replay import Engine, replay
from models.kernel.settings import load
from orchestrator_cli.errors import CommandFailed
from orchestrator_cli.exporting import AGAIN, ANEW, exported_now, helpful
from orchestrator_cli.files import opened, refuse_own_input, unfinished, written
from orchestrator_cli.progress import Progress
from orchestrator_cli.verdicts import verdict, work_in_a_child

MS = 1000
DEFAULT_LIMITS = {"timeout_ms": 10_000, "memory_mb": 512}


def replay_file(file: str | None, out: str | None, wanted: Mapping[str, Any], **how: Any) -> dict[str, Any]:
    """Replay an export, or the database where there is none; writes the events where asked for."""
    module = how.pop("module") or load(os.environ).engine_module
    if file and out:
        refuse_own_input(file, out)
    if not how["isolated"]:
        from orchestrator_tasks.engine.hosts import SAME_EVERYWHERE

        # above all their hash seed: the order of a set of texts may be in what an engine answers
        with unfinished(out):
            work_in_a_child(SAME_EVERYWHERE, compare=how["compare"])
    source = exported_now(wanted) if file is None else opened(file)
    target = written(out) if out else contextlib.nullcontext(lambda _text: None)
    with verdict() as went_well, helpful(ANEW if how["as_it_is"] else AGAIN):
        with source as lines, target as keep:
            told = replay_lines(lines, module, keep, **how)
        if told.get("verified", True):
            went_well()
        return told


def replay_lines(
    lines: Iterable[bytes],
    module: str,
    keep: Callable[[bytes], object],
    *,
    compare: bool,
    isolated: bool,
    as_it_is: bool,
) -> dict[str, Any]:
    """Answers how many runs and events there were, their digest, and where they part from what was published."""
    guarded = hosted(module)
    engine = guarded if isolated else LocalEngine(module)
    digest, progress, found = Digest(), Progress("replayed"), None
    for run in replay(lines, engine, guarded=guarded, checked=not as_it_is):
        found = find_divergence(run) if compare else None
        if found:
            break
        digest.add(run.texts)
        keep("".join(f"{text}\n" for text in run.texts).encode())
        progress.step()
    progress.end()
    if compare and not progress.done and not found:
        raise CommandFailed("there is nothing to verify: no run was exported", problem={"code": "nothing_to_verify"})
    told: dict[str, Any] = {"runs": progress.done, "events": digest.events}
    if found:  # the digest is one of whole replays
        return {**told, "verified": False, "divergence": found.body()}
    return {**told, **({"verified": True} if compare else {}), "digest": digest.text()}


class LocalEngine:
    """The engine of a module, in this process; what it prints goes to stderr."""

    def __init__(self, module: str) -> None:
        from orchestrator_tasks.engine.adapter import Engine, answer

        with contextlib.redirect_stdout(sys.stderr):
            self.call = functools.partial(answer, Engine.load(module))

    def __call__(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        with contextlib.redirect_stdout(sys.stderr), interruptible():
            return self.call(request)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is ours, whatever the engine makes of it; a KeyboardInterrupt of its own is a failure of the engine."""
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def press(number: int, _frame: object) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def hosted(module: str) -> Engine:
    """The engine as a worker calls it: each call in a process of its own, bounded in time and memory."""
    os.environ["ENGINE_MODULE"] = module
    from orchestrator_tasks.engine.hosts import call_engine

    def call(request: Mapping[str, Any]) -> Mapping[str, Any]:
        limits = {**DEFAULT_LIMITS, **request["limits"]}
        return call_engine(request, limits["timeout_ms"] / MS, limits["memory_mb"])

    return call
