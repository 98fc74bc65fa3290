"""Where a replay and what was published part: the first run, event and field that differ."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from models.engine.canonical import canonical
from models.engine.events import OPERATIONAL, RUN_FAILED
from models.engine.replay import Engine, Replayed, replay, was_not_the_engine

ABSENT = object()
ERROR = ("error_kind", "error_detail")
RUN_RECORD = "EngineRunRecord"
"""What a divergence names as event type when the events agree and the run's record does not."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first difference: in which event of which run, at which JSON pointer, and what the engine was given.

    A value is ABSENT where there is none: the whole event is missing (`published`) or is one too many (`replayed`).
    When the run failed on one side alone, `error_kind` and `error_detail` say why. An output of another run than the
    one that it stands behind is named by what it says itself: it has no `number`.
    """

    run_id: str
    number: Any
    symbol: str
    engine_timestamp_ms: int
    line: int
    event_type: str
    field: str
    published: Any
    replayed: Any
    ingest_seq: int | None
    snapshot_inputs: str | None
    error_kind: Any = ABSENT
    error_detail: Any = ABSENT

    def body(self) -> dict[str, Any]:
        """As JSON: an absent value has no member."""
        told = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in told.items() if value is not ABSENT}


def verify(
    lines: Iterable[str | bytes], engine: Engine, *, guarded: Engine | None = None, checked: bool = True
) -> Divergence | None:
    """The first divergence of an export from its replay; None when every event is the same. Raises BrokenExport."""
    runs = replay(lines, engine, guarded=guarded, checked=checked)
    return next((found for run in runs if (found := find_divergence(run))), None)


def find_divergence(run: Replayed) -> Divergence | None:
    """The first divergence within one run: of its events, then of what its record says."""
    all_published = [*map(without_operational, run.published)]
    if [*map(text_of, all_published)] != run.texts:
        for published, replayed in itertools.zip_longest(all_published, run.events, fillvalue=ABSENT):
            if found := first_difference(published, replayed):
                told = published if replayed is ABSENT else replayed
                return replace(
                    divergence(run, event_type_of(told), *found),
                    **one_sided_failure(run),
                    **(stranger(run, published) if replayed is ABSENT else {}),
                )
    unasked = {"snapshot_ingest_seq"} if was_not_the_engine(run.run) else set()
    names = run.derived.keys() - unasked
    found = first_difference({n: run.run.get(n) for n in names}, {n: run.derived[n] for n in names})
    return divergence(run, RUN_RECORD, *found) if found else None


def one_sided_failure(run: Replayed) -> dict[str, Any]:
    """Why the run failed, where it did so in the replay alone, or only when it was published."""
    sides = [[event for event in side if event_type_of(event) == RUN_FAILED] for side in (run.published, run.events)]
    if bool(sides[0]) == bool(sides[1]):
        return {}
    payload = (sides[0] or sides[1])[0].get("payload")
    return {name: payload[name] for name in ERROR if name in payload} if isinstance(payload, Mapping) else {}


def stranger(run: Replayed, event: Any) -> dict[str, Any]:
    """Whose an output is that stands behind a run and is none of it."""
    names = ("run_id", "symbol", "engine_timestamp_ms")
    if event.get("run_id") in (None, run.run["run_id"]):
        return {}
    return {"number": ABSENT, "ingest_seq": None, "snapshot_inputs": None, **{n: event.get(n) for n in names}}


def text_of(event: Mapping[str, Any]) -> str:
    return orjson.dumps(event, option=orjson.OPT_SORT_KEYS).decode()


def without_operational(event: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != OPERATIONAL}


def event_type_of(event: Any) -> str:
    return str(event.get("event_type")) if isinstance(event, Mapping) else ""


def divergence(run: Replayed, event_type: str, pointer: str, published: Any, replayed: Any) -> Divergence:
    seq, text = run.snapshot or (run.run.get("snapshot_ingest_seq"), None)
    return Divergence(
        run_id=run.run["run_id"],
        number=run.run["number"],
        symbol=run.run["symbol"],
        engine_timestamp_ms=run.run["engine_timestamp_ms"],
        line=run.line,
        event_type=event_type,
        field=pointer,
        published=published,
        replayed=replayed,
        ingest_seq=seq,
        snapshot_inputs=text,
    )


def first_difference(one: Any, other: Any, pointer: str = "") -> tuple[str, Any, Any] | None:
    """The JSON pointer of the first difference, and both values there; what an event is comes before what it says."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        names = sorted({*one, *other}, key=lambda name: (name != "event_type", name))
        pairs: Iterator[tuple[str, Any, Any]] = (
            (escaped(name), one.get(name, ABSENT), other.get(name, ABSENT)) for name in names
        )
    elif isinstance(one, list) and isinstance(other, list):
        pairs = (
            (str(at), one[at] if at < len(one) else ABSENT, other[at] if at < len(other) else ABSENT)
            for at in range(max(len(one), len(other)))
        )
    else:
        return None if is_same(one, other) else (pointer, one, other)
    found = (first_difference(here, there, f"{pointer}/{name}") for name, here, there in pairs)
    return next(filter(None, found), None)


def is_same(one: Any, other: Any) -> bool:
    """Whether both have the same text: 1 and 1.0 have not."""
    if one is ABSENT or other is ABSENT:
        return one is other
    return canonical(one) == canonical(other)


def escaped(name: str) -> str:
    """A member's name within a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


class Digest:
    """One text for a whole replay: the SHA-256 of its events' canonical JSON, in order, a line each."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.events = 0

    def add(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.sha256.update(text.encode() + b"\n")
            self.events += 1

    def text(self) -> str:
        return self.sha256.hexdigest()
