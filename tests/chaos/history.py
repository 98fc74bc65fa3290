"""Everything that callers, readers and the nemesis did, with its time: kept in memory and, line by line, in a file."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson


@dataclass
class Call:
    """One request of a caller. Times are seconds since the epoch; without a status there was no answer."""

    who: str
    kind: str
    correlation_id: str
    request: dict[str, Any]
    began: float
    key: str | None = None
    ended: float = 0.0
    status: int | None = None
    answer: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def is_acknowledged(self) -> bool:
        return self.status is not None and self.status < 300


class History:
    """What happened, in the order in which it ended; any thread may write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("ab")
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.calls: list[Call] = []
        self.strokes: list[dict[str, Any]] = []

    def begin(self, who: str, kind: str, request: dict[str, Any], key: str | None = None) -> Call:
        return Call(who, kind, f"{who}.{next(self.numbers)}", request, time.time(), key)

    def end(self, call: Call, status: int | None, answer: Any = None, headers: Any = None) -> Call:
        call.ended, call.status, call.answer, call.headers = time.time(), status, answer, dict(headers or {})
        with self.lock:
            self.calls.append(call)
            self.write({"what": "call", **asdict(call)})
        return call

    def struck(self, act: str, victim: str, at: float, said: str = "") -> None:
        stroke = {"act": act, "victim": victim, "at": at, "time": time.time(), "said": said}
        with self.lock:
            self.strokes.append(stroke)
            self.write({"what": "stroke", **stroke})

    def write(self, line: dict[str, Any]) -> None:
        if not self.file.closed:
            self.file.write(orjson.dumps(line) + b"\n")

    def close(self) -> None:
        with self.lock:
            self.file.close()
