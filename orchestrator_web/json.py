"""JSON in and out, strictly: no NaN, no NUL, no bottomless nesting (RFC 8259)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from flask.json.provider import JSONProvider

from models.kernel.errors import Invalid

DEEPEST = 32
MOST_ERRORS, QUOTED = 100, 3


def dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)


class StrictJson(JSONProvider):
    """Flask's way to JSON."""

    def dumps(self, obj: Any, **_: Any) -> str:
        return dumps(obj).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        """Raises ValueError when it is not JSON, Invalid when it cannot be stored or goes too deep."""
        value = orjson.loads(s)
        if is_plain(s):
            return value
        unstorable: list[str] = []
        for pointer, part, depth in walk(value):
            if depth > DEEPEST:
                raise refused(pointer, f"nested deeper than {DEEPEST} levels")
            if isinstance(part, str) and "\x00" in part and len(unstorable) < MOST_ERRORS:
                unstorable.append(pointer)
        if unstorable:
            raise invalid([{"pointer": each, "detail": "must not contain the NUL character"} for each in unstorable])
        return value


def is_plain(text: str | bytes) -> bool:
    """Whether a document can be seen to go nowhere too deep and to spell no NUL, without walking through it."""
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogateescape")
    return text.count(b"{") + text.count(b"[") <= DEEPEST and b"\\u0000" not in text


def refused(pointer: str, why: str) -> Invalid:
    return invalid([{"pointer": pointer, "detail": why}])


def invalid(found: list[dict[str, Any]]) -> Invalid:
    """What is wrong where; the sentence quotes the first few and says how many more there are."""
    quoted = [f"{each['pointer']}: {each['detail']}" if each["pointer"] else each["detail"] for each in found[:QUOTED]]
    more = [f"and {len(found) - QUOTED} more"] if len(found) > QUOTED else []
    return Invalid("; ".join(quoted + more), errors=found)


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
            stack.extend((f"{pointer}/{index}", inner, depth + 1) for index, inner in reversed([*enumerate(part)]))


def escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
