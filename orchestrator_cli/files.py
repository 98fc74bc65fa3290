"""Files that are read line by line and written whole or not at all; `-` is standard input and output."""

from __future__ import annotations

import contextlib
import gzip
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from models.engine.lines import lines_of
from orchestrator_cli.errors import WrongUsage
from orchestrator_cli.verdicts import EngineEnded

STANDARD = "-"
GZIP = b"\x1f\x8b"


@contextlib.contextmanager
def opened(name: str) -> Iterator[Iterator[bytes]]:
    """The lines of a file, or of standard input; compressed ones are known by their first two bytes."""
    with contextlib.ExitStack() as stack:
        file: Any = sys.stdin.buffer if name == STANDARD else stack.enter_context(open(name, "rb"))
        if file.peek(len(GZIP))[: len(GZIP)] == GZIP:
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        yield lines_of(file)


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
