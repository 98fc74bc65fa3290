"""Small SQL expressions that many statements are made of."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select


def seconds(value: Any) -> Any:
    """A number of seconds as an interval."""
    return func.make_interval(0, 0, 0, 0, 0, 0, value)


def among(key: Any, wanted: Any) -> Any:
    """Whether a key is one of a few wanted ones, said so that its own index is what the planner takes.

    The acts are planned once a connection, often while their tables are nearly empty, and any index looks good then.
    So every other condition beside this one is written in a way that fits no index.
    """
    return key == func.any(func.array(select(wanted).scalar_subquery()))
