"""The lines of an export: JSON objects, each with a check over itself and all before it.

    header   format, first_ingest_seq, symbols: {symbol: [start of its first cut, end of its last]}
    config   version, digest, body                      every accepted version, so that runs can name theirs
    state    symbol, state_epoch, state                 of hysteresis: the newest of each epoch, before its first run
    record   ingest_seq, ingest_ts_ms, event (the text as it was received)
    run      every field of the run's record, after all records of its cut
    output   event, right after its run
    end      counts of what stood before, unfinished, dropped; sha256 over all lines before;
             gaps: {symbol: [first run, last run]} where runs are missing behind the first that is there

`check` is a running CRC-32, so that a line that was changed, lost, doubled or moved is named when it
is reached and not only at the end. It is a guard against damage; against malice there is the SHA-256,
which can be kept elsewhere.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import orjson

from models.kernel.errors import OrchestratorError

FORMAT = "orchestrator-engine-export/1"
LONGEST_LINE = 64 * 2**20
CHECK = b',"check":"%08x"}'
CHECK_LENGTH = len(CHECK % 0)

MEMBERS: dict[str, dict[str, type]] = {
    "header": {"format": str, "first_ingest_seq": int, "symbols": dict},
    "config": {"version": int, "digest": str, "body": dict},
    "state": {"symbol": str, "state": object},
    "record": {"ingest_seq": int, "ingest_ts_ms": int, "event": str},
    "run": {
        "run_id": str,
        "number": int,
        "symbol": str,
        "engine_timestamp_ms": int,
        "engine_mode": str,
        "cut_kind": str,
        "cut_start_ingest_seq": int,
        "cut_end_ingest_seq": int,
        "status": str,
        "attempts": int,
        "config_version": int,
    },
    "output": {"event": dict},
    "end": {"counts": dict, "sha256": str},
}
"""What each kind of line must have, and of which type."""

FOLLOWS = {
    "": {"header"},
    "header": {"config", "state", "record", "end"},
    "config": {"config", "state", "record", "end"},
    "state": {"state", "record", "end"},
    "record": {"record", "run", "end"},
    "run": {"record", "run", "output", "end"},
    "output": {"record", "run", "output", "end"},
}
"""Which kinds may follow which."""


class BrokenExport(OrchestratorError):
    """An export is not what was written: cut short, changed, or not an export at all. The message names the line."""

    code = "export_broken"

    def __init__(self, line: int, why: str) -> None:
        super().__init__(f"line {line}: {why}", line=line)
        self.line = line


class Line(NamedTuple):
    """One line that was read and checked."""

    number: int
    kind: str
    body: dict[str, Any]


class Writer:
    """Writes the lines of one export, one after another."""

    def __init__(self) -> None:
        self.check = 0
        self.digest = hashlib.sha256()
        self.counts: Counter[str] = Counter()

    def line(self, kind: str, body: Mapping[str, Any], **texts: str) -> bytes:
        """One line of these members; `texts` are members that are canonical JSON already."""
        members = orjson.dumps({"kind": kind, **body})[:-1]
        head = members + "".join(f',"{name}":{text}' for name, text in texts.items()).encode()
        self.check = zlib.crc32(head, self.check)
        whole = head + CHECK % self.check + b"\n"
        self.digest.update(whole)
        self.counts[kind] += 1
        return whole

    def end(self, gaps: Mapping[str, list[int]] | None = None, **more: int) -> bytes:
        """The last line."""
        counts = {kind: self.counts[kind] for kind in ("config", "state", "record", "run", "output")}
        found = {"gaps": gaps} if gaps else {}
        return self.line("end", {"counts": {**counts, **more}, **found, "sha256": self.digest.hexdigest()})


def read_lines(lines: Iterable[str | bytes], *, checked: bool = True) -> Iterator[Line]:
    """The lines of an export, each once it was checked; raises BrokenExport at the first that is not as written.

    Without `checked` the checks over the text are left out, for exports that were changed on purpose.
    """
    number, before, check, digest, counts = 0, "", 0, hashlib.sha256(), Counter[str]()
    for number, line in enumerate(lines, start=1):
        raw = (line.encode() if isinstance(line, str) else line).rstrip(b"\r\n")
        if before == "end":
            raise BrokenExport(number, "it comes after the end of the export")
        if checked:
            check = checked_line(number, raw, check)
        read = parsed(number, raw)
        if read.kind not in FOLLOWS[before]:
            raise BrokenExport(number, f"a line of kind {read.kind} cannot follow {before or 'nothing'}")
        if read.kind == "end":
            check_end(read, counts, digest.hexdigest() if checked else None)
        digest.update(raw + b"\n")
        counts[read.kind] += 1
        before = read.kind
        yield read
    if before != "end":
        raise BrokenExport(number, "the export is cut short: its end is missing" if number else "there is nothing")


def checked_line(number: int, raw: bytes, before: int) -> int:
    """The check up to this line; raises BrokenExport when the line does not bear it."""
    if len(raw) > LONGEST_LINE:
        raise BrokenExport(number, f"it is longer than {LONGEST_LINE} bytes")
    check = zlib.crc32(raw[:-CHECK_LENGTH], before)
    if raw[-CHECK_LENGTH:] != CHECK % check:
        if number == 1 and b'"kind":"header"' not in raw:
            raise BrokenExport(number, f"this is no {FORMAT}")
        raise BrokenExport(number, "its check is wrong: it was changed or cut, or a line before it is missing")
    return check


def parsed(number: int, raw: bytes) -> Line:
    """A line's kind and members, each of its type; raises BrokenExport."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BrokenExport(number, f"it is not JSON: {error}") from None
    kind = body.get("kind") if isinstance(body, dict) else None
    if not isinstance(kind, str) or kind not in MEMBERS:
        raise BrokenExport(number, "it is no object of a known kind")
    for name, wanted in MEMBERS[kind].items():
        if type(body.get(name)) is not wanted and (wanted is not object or name not in body):
            raise BrokenExport(number, f"{name} is missing or of the wrong type")
    if kind == "header" and body["format"] != FORMAT:
        raise BrokenExport(number, f"the format is {body['format']!r}; this version reads {FORMAT}")
    return Line(number, kind, body)


def check_end(end: Line, counts: Mapping[str, int], digest: str | None) -> None:
    """The end agrees with what stood before it; raises BrokenExport."""
    told = end.body["counts"]
    for kind in ("config", "state", "record", "run", "output"):
        if told.get(kind) != counts.get(kind, 0):
            raise BrokenExport(
                end.number, f"the end counts {told.get(kind)} lines of kind {kind}; there were {counts.get(kind, 0)}"
            )
    if digest is not None and end.body["sha256"] != digest:
        raise BrokenExport(end.number, "the SHA-256 is not that of the lines before it")


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, none longer in memory than a line may be; damage to compressed data names the line."""
    number = 0
    try:
        while line := file.readline(LONGEST_LINE + 2):
            number += 1
            yield line
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BrokenExport(number + 1, f"the compressed data is damaged or cut short: {error}") from None
