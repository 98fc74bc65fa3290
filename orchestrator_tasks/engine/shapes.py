"""Between JSON and the classes of an engine that we do not know: dataclasses, enums, containers, by annotations.

`plain` turns what an engine answers into JSON values, `build` makes the engine's own objects
from them again. Both are pure. What has no place in the other raises Misfit.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import enum
import functools
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from models.engine.canonical import canonical
from models.engine.snapshots import MISSING
from models.kernel.errors import OrchestratorError

DEEPEST = 60
SEQUENCES = {list, collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable}
UNIONS = (typing.Union, types.UnionType)


class Misfit(OrchestratorError):
    """A value does not fit the class that it is for."""

    code = "misfit"


def plain(value: Any, missing: Any = None, depth: int = 0) -> Any:
    """JSON values of an object: enums as their values, tuples as lists, sets in order; raises Misfit.

    `missing` is the engine's own object for what is missing.
    """
    if value is None or (isinstance(value, bool | str) and not isinstance(value, enum.Enum)):
        return value
    if missing is not None and value is missing:
        return dict(MISSING)
    if depth > DEEPEST:
        raise Misfit(f"nests deeper than {DEEPEST} levels, or holds itself")
    if isinstance(value, enum.Enum):
        return plain(value.value, missing, depth + 1)
    if isinstance(value, numbers.Number):
        return plain_number(value)
    return plain_parts(value, functools.partial(plain, missing=missing, depth=depth + 1))


def plain_number(value: numbers.Number) -> int | float:
    """Also the numbers of libraries, which register as what they are."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise Misfit(f"a {type(value).__name__} is no number of JSON")


def plain_parts(value: Any, each: Callable[[Any], Any]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: each(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {plain_key(key): each(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((each(item) for item in value), key=canonical)
    if isinstance(value, list | tuple | collections.abc.Sequence) and not isinstance(value, bytes | bytearray):
        return [each(item) for item in value]
    raise Misfit(f"a {type(value).__name__} is neither a dataclass nor a value of JSON")


def plain_key(key: Any) -> str:
    key = key.value if isinstance(key, enum.Enum) else key
    if not isinstance(key, str):
        raise Misfit(f"a key is of type {type(key).__name__}; keys are texts")
    return key


def build(kind: Any, value: Any, missing: Any = None) -> Any:
    """The object of class or annotation `kind` that a JSON value stands for; raises Misfit."""
    if value == MISSING:
        return missing
    kind = bare(kind)
    if typing.get_origin(kind) in UNIONS:
        return build_union(typing.get_args(kind), value, missing)
    origin = typing.get_origin(kind) or kind
    if value is None or not isinstance(origin, type):
        return value
    if dataclasses.is_dataclass(origin):
        return build_dataclass(origin, value, missing)
    if issubclass(origin, enum.Enum):
        return member_of(origin, value)
    return build_container(origin, typing.get_args(kind), value, functools.partial(build, missing=missing))


def bare(kind: Any) -> Any:
    """An annotation without what only type checkers read."""
    while True:
        if typing.get_origin(kind) in (typing.Annotated, typing.Final, typing.Required, typing.NotRequired):
            kind = typing.get_args(kind)[0]
        elif hasattr(kind, "__supertype__"):  # a NewType
            kind = kind.__supertype__
        elif type(kind).__name__ == "TypeAliasType":  # `type X = ...`, from Python 3.12 on
            kind = kind.__value__
        else:
            return kind


def build_dataclass(kind: type, value: Any, missing: Any) -> Any:
    """Every field by its own annotation; what is absent takes its default, what is unknown is refused."""
    if not isinstance(value, dict):
        raise Misfit(f"{kind.__name__} is made from an object, not from {type(value).__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(value.keys() - fields.keys()):
        raise Misfit(f"{kind.__name__} has no field {unknown[0]}")
    hints = hints_of(kind)
    made = {name: build(hints[name], item, missing) for name, item in value.items()}
    try:
        built = kind(**{name: item for name, item in made.items() if fields[name].init})
    except Exception as error:
        raise Misfit(f"{kind.__name__} refuses it: {error}") from error
    for name, item in made.items():
        if not fields[name].init:
            object.__setattr__(built, name, item)
    return built


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The annotations of a class, resolved; raises Misfit."""
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError, SyntaxError) as error:
        raise Misfit(f"the annotations of {kind.__name__} cannot be resolved: {error}") from None


def resolve(kind: Any) -> None:
    """Read the annotations of all dataclasses that an annotation leads to, once and for all; raises Misfit."""
    seen: set[Any] = set()
    left = [kind]
    while left:
        kind = bare(left.pop())
        if kind in seen:
            continue
        seen.add(kind)
        left += typing.get_args(kind)
        origin = typing.get_origin(kind) or kind
        if isinstance(origin, type) and dataclasses.is_dataclass(origin):
            left += hints_of(origin).values()


def member_of(kind: type[enum.Enum], value: Any) -> enum.Enum:
    for member in kind:
        if plain(member.value) == value:
            return member
    try:
        return kind(value)  # a combination of flags
    except ValueError:
        raise Misfit(f"{value!r} is no {kind.__name__}"[:200]) from None


def exact_float(value: int) -> int | float:
    """JSON may say 3 for 3.0; what a float cannot hold stays whole."""
    return float(value) if float(value) == value else value


def build_container(origin: type, args: tuple[Any, ...], value: Any, each: Callable[..., Any]) -> Any:
    if issubclass(origin, tuple) and isinstance(value, list):
        return build_tuple(origin, args, value, each)
    if issubclass(origin, set | frozenset) and isinstance(value, list):
        return origin(each(args[0] if args else Any, item) for item in value)
    if isinstance(value, list):
        return [each(args[0] if len(args) == 1 else Any, item) for item in value]
    if isinstance(value, dict):
        key, item = args if len(args) == 2 else (Any, Any)  # noqa: PLR2004 - a mapping's keys and values
        made = {each(key, name): each(item, held) for name, held in value.items()}
        return types.MappingProxyType(made) if origin is types.MappingProxyType else made
    return exact_float(value) if origin is float and type(value) is int else value


def build_tuple(origin: type, args: tuple[Any, ...], value: list[Any], each: Callable[..., Any]) -> Any:
    if hasattr(origin, "_fields"):  # a NamedTuple
        hints = hints_of(origin)
        names = origin._fields
        return origin(*(each(hints.get(name, Any), item) for name, item in zip(names, value, strict=True)))
    if args[1:] == (...,) or not args:
        return tuple(each(args[0] if args else Any, item) for item in value)
    if len(args) != len(value):
        raise Misfit(f"a tuple of {len(args)} is made from {len(value)}")
    return tuple(each(kind, item) for kind, item in zip(args, value, strict=True))


def build_union(members: tuple[Any, ...], value: Any, missing: Any) -> Any:
    """The first member that gives the value back unchanged: classes of the engine first, then the value's own type."""
    members = tuple(member for member in members if member is not type(None))
    if value is None or len(members) == 1:
        return build(members[0], value, missing)

    def rank(member: Any) -> int:
        origin = typing.get_origin(bare(member)) or bare(member)
        own = isinstance(origin, type) and (dataclasses.is_dataclass(origin) or issubclass(origin, enum.Enum))
        return 0 if own else 1 if origin is type(value) else 2

    for member in sorted(members, key=rank):
        with contextlib.suppress(Misfit):
            built = build(member, value, missing)
            if plain(built, missing) == value:
                return built
    raise Misfit(f"{value!r:.100} fits none of {len(members)} alternatives")


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same to the byte."""
    return canonical(one) == canonical(other)


def alike(one: Any, other: Any) -> bool:
    """Whether what was made again serves an engine as what it was made from.

    Values are equal, and nothing is a plain container now that was another one: a list that was a tuple or a set
    breaks the call after. Where the annotation asks for it, a plain one may have become another.
    """
    if type(one) is not type(other):
        plainer = type(one) in (dict, list) or not is_container(one)
        return plainer and (is_container(one) or bool(one == other))
    if dataclasses.is_dataclass(one):
        return all(alike(*both) for both in fields_of(one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(alike(item, other[key]) for key, item in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


def is_container(value: Any) -> bool:
    if isinstance(value, str):
        return False
    held = Mapping | collections.abc.Set | collections.abc.Sequence
    return isinstance(value, held) or dataclasses.is_dataclass(value)


def fields_of(one: Any, other: Any) -> list[tuple[Any, Any]]:
    """The fields of both; a tuple that is annotated as any sequence counts as the list that is made of it."""
    found = []
    for name, kind in ((field.name, hints_of(type(one))[field.name]) for field in dataclasses.fields(one)):
        mine, theirs = getattr(one, name), getattr(other, name)
        kinds = typing.get_args(kind) if typing.get_origin(kind) in UNIONS else (kind,)
        asked = {typing.get_origin(bare(each)) or bare(each) for each in kinds}
        if isinstance(mine, tuple) and isinstance(theirs, list) and not asked.isdisjoint(SEQUENCES):
            mine = list(mine)
        found.append((mine, theirs))
    return found
