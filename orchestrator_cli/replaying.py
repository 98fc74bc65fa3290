"""Replays: an engine in this process, or called as the service does, given again what it was given."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from models.engine.divergence import Digest, find_divergence
from models.engine.replay import replay
from models.kernel.settings import load
from orchestrator_cli.errors import CommandFailed
from orchestrator_cli.exporting import AGAIN, ANEW, exported_now, helpful
from orchestrator_cli.files import opened, refuse_own_input, unfinished, written
from orchestrator_cli.progress import Progress
from orchestrator_cli.verdicts import verdict, work_in_a_child

MS = 1000
Named = tuple[str | None, str | None]
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
    guarded = HostedEngine(module)
    engine = guarded if isolated else LocalEngine(module)
    digest, progress, made, found = Digest(), Progress("replayed"), Counter[Named](), None
    end: list[bytes] = []
    for run in replay(remembering(lines, end), engine, guarded=guarded, checked=not as_it_is):
        made[named(run.run)] += 1
        found = find_divergence(run) if compare else None
        if found:
            break
        digest.add(run.texts)
        keep("".join(f"{text}\n" for text in run.texts).encode())
        progress.step()
    progress.end()
    if compare and not progress.done and not found:
        raise CommandFailed("there is nothing to verify: no run was exported", problem={"code": "nothing_to_verify"})
    told = {"runs": progress.done, "events": digest.events, **other_engines((module, engine.version), made)}
    if found:  # the digest is one of whole replays
        return {**told, "verified": False, "divergence": found.body()}
    return {**told, **({"verified": True} if compare else {}), "digest": digest.text(), **left_out(end)}


def remembering(lines: Iterable[bytes], last: list[bytes]) -> Iterator[bytes]:
    """The lines, of which the latest stays in `last`."""
    for line in lines:
        last[:] = [line]
        yield line


def left_out(end: list[bytes]) -> dict[str, Any]:
    """What a whole export says that it does not hold, where there is something."""
    said = json.loads(end[0])
    counts = {name: said["counts"].get(name) for name in ("unfinished", "dropped")}
    return {name: value for name, value in {**counts, "gaps": said.get("gaps")}.items() if value}


def named(run: Mapping[str, Any]) -> Named:
    """The engine that made a run: none where none was called, nor in exports from before it was recorded."""
    return run.get("engine_module"), run.get("engine_version")


def other_engines(present: Named, made: Counter[Named]) -> dict[str, Any]:
    """Which engine replays, and which made the runs; nothing while it is the same."""
    known = [(name, runs) for name, runs in made.items() if name[0] is not None]
    if all(name == present for name, _ in known):
        return {}
    recorded = [{**engine_facts(name), "runs": runs} for name, runs in known]
    return {"engine": engine_facts(present), "recorded_engines": recorded}


def engine_facts(name: Named) -> dict[str, Any]:
    return {"engine_module": name[0], "engine_version": name[1]}


class LocalEngine:
    """The engine of a module, in this process; what it prints goes to stderr."""

    def __init__(self, module: str) -> None:
        from orchestrator_tasks.engine.adapter import Engine, answer

        with contextlib.redirect_stdout(sys.stderr):
            engine = Engine.load(module)
        self.call, self.version = functools.partial(answer, engine), engine.version

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


class HostedEngine:
    """The engine as a worker calls it: each call in a process of its own, bounded in time and memory."""

    def __init__(self, module: str) -> None:
        os.environ["ENGINE_MODULE"] = module
        from orchestrator_tasks.engine.hosts import call_engine

        self.call = call_engine
        self.version: str | None = None  # as it says with its answers

    def __call__(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        limits = {**DEFAULT_LIMITS, **request["limits"]}
        found = self.call(request, limits["timeout_ms"] / MS, limits["memory_mb"])
        self.version = found.get("engine_version", self.version)
        return found
