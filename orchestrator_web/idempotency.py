"""Views that create something: how they get their connection, and what happens after their commit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flask import Response, after_this_request

from models.kernel.session import statement


def creating(view: Callable[..., Response]) -> Callable[..., Response]:
    """Give a view that creates something its connection, as its first argument."""

    @functools.wraps(view)
    def create(*args: Any, **kwargs: Any) -> Response:
        with statement() as connection:
            return view(connection, *args, **kwargs)

    return create


def after_commit(act: Callable[[], None]) -> None:
    """Do this once the view's work is committed: a hint sent earlier would find nothing."""

    @after_this_request
    def do(response: Response) -> Response:
        act()
        return response
