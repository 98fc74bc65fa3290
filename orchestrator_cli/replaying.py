"""Exports and replays: files in and out, the engine in this process, and how far it is, on stderr."""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import click

from models.engine.divergence import Digest, find_divergence
from models.engine.lines import BrokenExport, lines_of
from models.engine.replay import Engine, replay
from models.kernel.errors import Gone
from models.kernel.settings import load
from orchestrator_cli.addresses import database_url
from orchestrator_cli.errors import CommandFailed, WrongUsage
from orchestrator_cli.output import as_json
from orchestrator_cli.verdicts import EngineEnded, verdict, work_in_a_child

STANDARD = "-"
GZIP = b"\x1f\x8b"
TOLD_EVERY_SECONDS = 1.0
TOLD_PLAINLY_EVERY_SECONDS = 10.0
LOOK_EVERY = 64
MS = 1000
DEFAULT_LIMITS = {"timeout_ms": 10_000, "memory_mb": 512}


class Progress:
    """How far it is: one line that is drawn anew on a terminal, elsewhere a line every ten seconds."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self.began = self.told = time.monotonic()
        self.is_drawn = sys.stderr.isatty() and not as_json()
        self.every = TOLD_EVERY_SECONDS if self.is_drawn else TOLD_PLAINLY_EVERY_SECONDS

    def step(self) -> None:
        self.done += 1
        if self.done % LOOK_EVERY == 0 and not as_json() and time.monotonic() - self.told > self.every:
            self.tell()

    def tell(self) -> None:
        self.told = time.monotonic()
        rate = self.done / (self.told - self.began)
        of = f" of {self.total:,}" if self.total else ""
        line = f"{self.what} {self.done:,}{of} runs, {rate:,.0f} a second"
        click.echo(f"\r\033[K{line}" if self.is_drawn else line, err=True, nl=not self.is_drawn)

    def end(self) -> None:
        if self.is_drawn and self.told > self.began:
            click.echo("\r\033[K", err=True, nl=False)


# where lines come from and go to


@contextlib.contextmanager
def opened(name: str) -> Iterator[Iterator[bytes]]:
    """The lines of a file, or of standard input; compressed ones are known by their first two bytes."""
    with contextlib.ExitStack() as stack:
        file: Any = sys.stdin.buffer if name == STANDARD else stack.enter_context(open(name, "rb"))
        if file.peek(len(GZIP))[: len(GZIP)] == GZIP:
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        yield lines_of(file)


@contextlib.contextmanager
def database() -> Iterator[Any]:
    """A connection to the database that the settings name, else to the running embedded one."""
    os.environ["DATABASE_URL"] = database_url()
    from models.kernel.session import statement

    with statement() as connection:
        yield connection


@contextlib.contextmanager
def written(name: str) -> Iterator[Callable[[bytes], object]]:
    """Write a file, whole or not at all; compressed when its name ends in .gz. `-` is standard output."""
    if name == STANDARD:
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    path = Path(name)
    is_device = path.exists() and not path.is_file()  # or a pipe: nothing may take its place
    fresh = path if is_device else part_of(path)
    try:
        with fresh.open("wb") as plain, compressed(plain, path.suffix == ".gz") as file:
            yield file.write
        if not is_device:
            fresh.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(fresh)):
            error.filename = name
        with contextlib.suppress(OSError):
            if not is_device:
                fresh.unlink()
        raise


@contextlib.contextmanager
def unfinished(name: str | None) -> Iterator[None]:
    """Take away what a child that the engine has ended began to write."""
    try:
        yield
    except EngineEnded:
        if name and name != STANDARD:
            part_of(Path(name)).unlink(missing_ok=True)
        raise


def refuse_own_input(file: str, out: str) -> None:
    """Raises WrongUsage when what is read is what would be written over."""
    read = os.fstat(sys.stdin.fileno()) if file == STANDARD else Path(file).stat()
    for path in (Path(out), part_of(Path(out))):
        if path.is_file() and os.path.samestat(read, path.stat()):
            raise WrongUsage("--out names the export itself, which its events would take the place of")


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def compressed(file: BinaryIO, wanted: bool) -> contextlib.AbstractContextManager[IO[bytes]]:
    """Without a time or a name in it, so that equal lines make equal files."""
    if wanted:
        return gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0)  # type: ignore[return-value]
    return contextlib.nullcontext(file)


# exports


def export(name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Write an export; answers what it holds. Raises CommandFailed."""
    from models.engine.exports import export_lines

    with helpful(), database() as connection, written(name) as write:
        plan = planned(connection, wanted)
        progress = Progress("exported", plan.runs)
        size, last = 0, b"{}"
        for last in export_lines(connection, plan):
            write(last)
            size += len(last)
            if b'"kind":"run"' in last[:20]:
                progress.step()
        progress.end()
    end = json.loads(last)
    return {"file": name, **end["counts"], "bytes": size, "sha256": end["sha256"]}


def planned(connection: Any, wanted: Mapping[str, Any]) -> Any:
    """The plan of an export. Raises CommandFailed when runs were chosen and there is none of them."""
    from models.engine.exports import Range, plan_export

    plan = plan_export(connection, Range(**wanted))
    if not plan.runs and any(bound is not None for bound in wanted.values()):
        others = f" ({plan.unfinished} have not ended, of {plan.dropped} retention has dropped records)"
        why = others if plan.unfinished or plan.dropped else ""
        raise CommandFailed(f"no run matches{why}", next_step=SEE_RUNS, problem={"code": "no_run"})
    return plan


ANEW = "take the export anew, or another copy of it"
AGAIN = f"{ANEW}; --as-it-is replays one that was changed on purpose"


@contextlib.contextmanager
def helpful(again: str = AGAIN) -> Iterator[None]:
    """Say what to do next about what an export can be refused for."""
    try:
        yield
    except BrokenExport as error:
        raise CommandFailed(error.message, next_step=again, problem={"code": error.code}) from error
    except Gone as error:
        raise CommandFailed(error.message, next_step=LATER, problem={"code": error.code}) from error


SEE_RUNS = "`orchestrator engine runs` lists those that there are"
LATER = "leave the beginning away to begin with what is kept; `orchestrator engine marks set` keeps records from now on"


# replays


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


@contextlib.contextmanager
def exported_now(wanted: Mapping[str, Any]) -> Iterator[Iterator[bytes]]:
    """The lines that an export of the database would have."""
    from models.engine.exports import export_lines

    with database() as connection:
        yield export_lines(connection, planned(connection, wanted))


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
