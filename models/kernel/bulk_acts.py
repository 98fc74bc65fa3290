"""What may be done to many subjects at once: the acts that domains register, as `jobs.register` takes their work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from models.kernel.clients import Caller


@dataclass(frozen=True)
class Order:
    """What an act is told beside the ids: who asked and when, with which options, and the seconds that are left.

    `named` says whether the ids are the caller's own, or a filter's; `asked_at` is None for what is asked just now.
    """

    options: Mapping[str, Any]
    named: bool
    seconds_left: float
    asked_at: datetime | None
    caller: Caller


@dataclass(frozen=True)
class Outcome:
    """What became of a chunk: how many were done, why each of the others was not, and whose end somebody waits for."""

    done: int
    refused: Mapping[str, str]
    ended: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """The next ids that a filter matches, and the position after them, as JSON."""

    ids: Sequence[str]
    position: Any


@dataclass(frozen=True)
class Act:
    """What may be done to many subjects of a domain.

    `carry_out` does it to distinct ids, inside a transaction. `list_next` answers at most so many ids that
    match a filter, existed at a moment and lie behind a position (None: the first), in a fixed order.
    """

    name: str
    carry_out: Callable[[Connection, Sequence[str], Order], Outcome]
    list_next: Callable[[Connection, Mapping[str, Any], datetime, Any, int], Page]


REGISTRY: dict[str, Act] = {}


def register(*acts: Act) -> None:
    REGISTRY.update({act.name: act for act in acts})
