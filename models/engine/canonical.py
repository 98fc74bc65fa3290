"""One text for one value: JSON that a round trip through Postgres does not change by a byte.

Keys are sorted and nothing is padded. Numbers are what `jsonb` gives back of them: it has no
negative zero and writes 1e16 as digits, which are read as an integer. So the canonical text of
an event that was read from the ledger is the text that was published, and replay can compare
bytes.
"""

from __future__ import annotations

import math
from typing import Any

import orjson

from models.kernel.errors import OrchestratorError

DEEPEST = 100
WRITTEN_AS_DIGITS = 1e16  # from here on the shortest text of a float has an exponent, which jsonb resolves
LOWEST, BEYOND = -(2**63), 2**64  # whole numbers that JSON readers keep whole


class NotSerialisable(OrchestratorError):
    """The value has no canonical JSON."""

    code = "not_serialisable"


def canonical(value: Any) -> str:
    """The canonical JSON text; raises NotSerialisable, saying what is wrong and where."""
    return orjson.dumps(normalise(value), option=orjson.OPT_SORT_KEYS).decode()


def normalise(value: Any) -> Any:
    """The value as it would come back from the database; raises NotSerialisable."""
    return normalise_at(value, "", 0)


def normalise_at(value: Any, path: str, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return checked_text(value, path)
    if isinstance(value, float):
        return normal_float(float(value), path)
    if isinstance(value, int):
        return checked_whole(int(value), path)
    if depth >= DEEPEST:
        raise refused(path, f"nests deeper than {DEEPEST} levels")
    if isinstance(value, list | tuple):
        return [normalise_at(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {checked_key(key, path): normalise_at(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
    raise refused(path, f"is of type {type(value).__name__}, which JSON does not have")


def normal_float(value: float, path: str) -> int | float:
    if not math.isfinite(value):
        raise refused(path, f"is {value}, which JSON does not have")
    if value == 0:
        return 0.0
    if abs(value) >= WRITTEN_AS_DIGITS and LOWEST <= value < BEYOND:
        return int(value)
    return value


def checked_whole(value: int, path: str) -> int:
    if not LOWEST <= value < BEYOND:
        raise refused(path, "is a whole number beyond 64 bits")
    return value


def checked_text(value: str, path: str) -> str:
    if "\0" in value:
        raise refused(path, "contains NUL")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise refused(path, "contains half of a surrogate pair") from None
    return str.__str__(value)


def checked_key(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise refused(path, f"has a key of type {type(key).__name__}; keys are texts")
    return checked_text(key, path)


def refused(path: str, why: str) -> NotSerialisable:
    """The refusal; a path of texts from outside is shown only as far as it is short and printable."""
    where = path.lstrip(".").encode("ascii", "replace").decode().replace("\0", "?")[:100]
    return NotSerialisable(f"{where} {why}" if where else f"it {why}")
