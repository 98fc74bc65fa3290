"""JSON in and out, strictly: no NaN, no NUL, no bottomless nesting (RFC 8259)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from flask.json.provider import JSONProvider

from models.kernel.errors import Invalid

DEEPEST = 32


def dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)


class StrictJson(JSONProvider):
    """Flask's way to JSON."""

    def dumps(self, obj: Any, **_: Any) -> str:
        return dumps(obj).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        """Raises ValueError when it is not JSON, Invalid when it cannot be stored or goes too deep."""
        value = orjson.loads(s)
        for pointer, part, depth in walk(value):
            if depth > DEEPEST:
                raise refused(pointer, f"nested deeper than {DEEPEST} levels")
            if isinstance(part, str) and "\x00" in part:
                raise refused(pointer, "must not contain the NUL character")
        return value


def refused(pointer: str, why: str) -> Invalid:
    return Invalid(f"{pointer or '/'}: {why}", errors=[{"pointer": pointer, "detail": why}])


def walk(value: Any) -> Iterator[tuple[str, Any, int]]:
    """Every part of a document with its JSON Pointer (RFC 6901) and depth; keys count as parts."""
    stack: list[tuple[str, Any, int]] = [("", value, 0)]
    while stack:
        pointer, part, depth = stack.pop()
        yield pointer, part, depth
        if depth > DEEPEST:
            return
        if isinstance(part, dict):
            for key, inner in part.items():
                below = f"{pointer}/{escape(key)}"
                yield below, key, depth
                stack.append((below, inner, depth + 1))
        elif isinstance(part, list):
            stack.extend((f"{pointer}/{index}", inner, depth + 1) for index, inner in enumerate(part))


def escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
