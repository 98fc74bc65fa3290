"""Views that create something: their connection, what happens after their commit, and what repeating them does.

Without an Idempotency-Key each statement of the view commits by itself. With one, the
key, the work and the answer commit together, and whoever sends the same key and body
again gets that answer. A view that fails keeps nothing, so that it can be tried again.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, after_this_request, g, request

from models.kernel.errors import Invalid
from models.kernel.idempotency import KeptAnswer, Repeatable, claim_key, keep_answer
from models.kernel.session import statement, transaction

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
LONGEST_KEY = 255
KEY = re.compile(rf"[!-~]{{1,{LONGEST_KEY}}}")
FIRST_ERROR = 400

View = Callable[..., Response]

PARAMETER = {
    "in": "header",
    "name": HEADER,
    "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY, "pattern": r"^[!-~]+(?![\s\S])"},
    "description": "Repeating a request with the same key and body creates nothing more and answers as the first did",
}


class Refused(Exception):
    """The view answered with an error instead of raising one: nothing of it is kept either."""

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self.answer = answer


def creating(view: View | None = None, *, together: bool = False, shared: bool = False) -> Any:
    """Give a view that creates something its connection, as its first argument.

    `together`: its statements commit together also when the request carries no key.
    `shared`: without a key it gets none, since its work shares a commit with that of others.
    """
    if view is None:
        return functools.partial(creating, together=together, shared=shared)

    @functools.wraps(view)
    def create(*args: Any, **kwargs: Any) -> Response:
        wanted = repeatable()
        g.commits_at_end = together or wanted is not None
        if wanted is not None:
            return answer_once(wanted, lambda connection: view(connection, *args, **kwargs))
        if shared:
            return view(None, *args, **kwargs)
        with transaction() if together else statement() as connection:
            return view(connection, *args, **kwargs)

    create.is_creating = True  # type: ignore[attr-defined]
    return create


def is_creating(app: Flask, endpoint: str) -> bool:
    """Whether a route takes an Idempotency-Key."""
    return getattr(app.view_functions[endpoint], "is_creating", False)


def repeatable() -> Repeatable | None:
    """What makes this request the same as another; None without a key. Raises Invalid."""
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not KEY.fullmatch(key):
        why = f"must be 1 to {LONGEST_KEY} visible ASCII characters"
        raise Invalid(f"{HEADER}: {why}", errors=[{"pointer": f"/{HEADER}", "detail": why}])
    said = request.query_string + b"\n" + request.get_data(cache=True)
    return Repeatable.of(g.caller.name, request.method, request.path, key, said)


def answer_once(wanted: Repeatable, act: Callable[[Any], Response]) -> Response:
    """Do the work and keep its answer, or give the answer that was kept."""
    try:
        with transaction() as connection:
            kept = claim_key(connection, wanted)
            if kept is not None:
                return replayed(kept)
            answer = act(connection)
            if answer.status_code >= FIRST_ERROR:
                raise Refused(answer)
            keep_answer(connection, wanted, of_response(answer))
    except Refused as refused:
        return refused.answer
    return answer


def of_response(answer: Response) -> KeptAnswer:
    body = g.pop("kept_body", None)
    headers = {name: value for name, value in answer.headers if name != "Content-Length"}
    return KeptAnswer(answer.status_code, headers, answer.get_data() if body is None else body)


def replayed(kept: KeptAnswer) -> Response:
    return Response(kept.body, status=kept.status, headers={**kept.headers, REPLAYED: "true"})


def keep_instead(body: bytes) -> None:
    """What to keep of an answer whose secret is shown once: a repetition tells of it without the secret."""
    g.kept_body = body


def after_commit(act: Callable[[], None]) -> None:
    """Do this once the view's work is committed, which may be now: a hint sent earlier would find nothing."""
    if not g.commits_at_end:
        act()
        return

    @after_this_request
    def do(response: Response) -> Response:
        if response.status_code < FIRST_ERROR:
            act()
        return response
