"""A configuration file as dataclasses: tables with checked keys, every wrong one named by its path.

A `Section` is a table; its fields say how each key is checked (`key`), or which table it is (`section`, `sections`).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, field, fields
from typing import Any

from models.engine.contract import is_name

Check = Callable[[Any], Any]
Problems = Iterator[tuple[str, str]]

LARGEST = 2**53
LONGEST_TEXT = 500
OWN_KEYS = re.compile(
    r"(io|cpu|system|hooks|celery)(:\d+)?|unacked(_index|_mutex)?|(_kombu|celeryev|orchestrator:).*|.*\.pidbox"
)
"""What the service has on its broker: queues with their priorities, what Celery and kombu keep, and its own keys."""
MOST_TABLES = 1000
MOST_NAMES = 10_000


def whole(low: int, high: int = LARGEST) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or value < low:
            raise ValueError(f"must be a whole number of at least {low}, not {shown(repr(value))}")
        if value > high:
            raise ValueError(f"must be at most {high}, not {value}")
        return value

    return check


def one_of(*choices: str) -> Check:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"must be {' or '.join(choices)}, not {shown(repr(value))}")
        return str(value)

    return check


def flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"must be true or false, not {shown(repr(value))}")
    return value


def name(value: Any) -> str:
    if not is_name(value):
        raise ValueError("must be a text of 1 to 64 printable characters without |")
    return value


def short_text(value: Any) -> str:
    if type(value) is not str or len(value) > LONGEST_TEXT or not value.isprintable():
        raise ValueError(f"must be a text of at most {LONGEST_TEXT} printable characters")
    return value


def stream(value: Any) -> str:
    """The name of a Redis stream that is nothing of the service's own; empty for none."""
    found = short_text(value)
    if OWN_KEYS.fullmatch(found):
        raise ValueError("is a key that the service keeps for itself on its broker: choose another name")
    return found


def names(value: Any) -> tuple[str, ...]:
    if type(value) is not list or not value:
        raise ValueError("must be a list of at least one symbol")
    if len(value) > MOST_NAMES:
        raise ValueError(f"must be a list of at most {MOST_NAMES} symbols, not {len(value)}")
    before: set[str] = set()
    for place, each in enumerate(value):
        if not is_name(each):
            raise ValueError(f"[{place}] must be a text of 1 to 64 printable characters without |")
        if each in before:
            raise ValueError(f"[{place}] names {each!r} again")
        before.add(each)
    return tuple(sorted(value))


def scalars(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError("must be a table")
    for each, scalar in value.items():
        if not is_name(each):
            raise ValueError(f"{shown(each)} is no name of 1 to 64 printable characters")
        if not is_scalar(scalar):
            raise ValueError(f"{each} must be a text, a finite number, true or false")
    return dict(sorted(value.items()))


def is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_TEXT and value.isprintable()
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool) or (isinstance(value, int) and abs(value) <= LARGEST)


def shown(name: Any) -> str:
    """The beginning of a name from outside, on one line."""
    return "".join(mark if mark.isprintable() else "?" for mark in str(name)[:64])


def key(check: Check, **default: Any) -> Any:
    """One key of the file; without a default it is required."""
    return field(metadata={"check": check}, **default)


class Section:
    """A table of the file: its keys are the fields of the dataclass."""

    def problems(self) -> Problems:
        """What is wrong with how the keys fit each other."""
        yield from ()

    def body(self) -> dict[str, Any]:
        return {item.name: plain(getattr(self, item.name)) for item in fields(self)}  # type: ignore[arg-type]


def plain(value: Any) -> Any:
    """A value as JSON and TOML have it."""
    if isinstance(value, Section):
        return value.body()
    return [plain(each) for each in value] if isinstance(value, tuple) else value


def section(kind: type[Section], *, required: bool = False) -> Any:
    """One table below this one; without any of its keys it is as its defaults say."""
    metadata = {"section": kind}
    return field(metadata=metadata) if required else field(metadata=metadata, default_factory=kind)


def sections(kind: type[Section]) -> Any:
    """A list of at least one table."""
    return field(metadata={"sections": kind})


def read_section(kind: type[Section], body: Any, path: str, wrong: list[str]) -> Section | None:
    """One table; None when it is wrong, with the reasons added to `wrong`."""
    if not isinstance(body, Mapping):
        wrong.append(f"{path.rstrip('.')}: must be a table")
        return None
    before = len(wrong)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    wrong += [refuse_unknown(str(each), known, path) for each in body if each not in known]
    values = {}
    for each, item in known.items():
        if body.get(each) is not None:
            values[each] = read_value(item.metadata, body[each], path + each, wrong)
        elif item.default is MISSING and item.default_factory is MISSING:
            wrong.append(f"{path}{each}: is required")
    if len(wrong) > before:
        return None
    made = kind(**values)
    wrong += [f"{path}{where}: {why}" for where, why in made.problems()]
    return made


def read_value(metadata: Mapping[str, Any], value: Any, path: str, wrong: list[str]) -> Any:
    if "section" in metadata:
        return read_section(metadata["section"], value, f"{path}.", wrong)
    if "sections" in metadata:
        return read_sections(metadata["sections"], value, path, wrong)
    try:
        return metadata["check"](value)
    except ValueError as error:
        wrong.append(f"{path}: {error}")
        return None


def read_sections(kind: type[Section], value: Any, path: str, wrong: list[str]) -> tuple[Any, ...]:
    if not isinstance(value, list) or not value:
        wrong.append(f"{path}: must be a list of at least one table")
        return ()
    if len(value) > MOST_TABLES:
        wrong.append(f"{path}: must be a list of at most {MOST_TABLES} tables, not {len(value)}")
        return ()
    return tuple(read_section(kind, each, f"{path}[{place}].", wrong) for place, each in enumerate(value))


def refuse_unknown(given: str, known: Mapping[str, Any], path: str) -> str:
    return f"{path}{shown(given)}: is no key{near(given, known)}"


def near(given: str, known: Iterable[str]) -> str:
    """A hint at the known name that was perhaps meant."""
    found = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""
