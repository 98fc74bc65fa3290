"""What is left out of Flask's work changes nothing that anybody sees."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, Response
from hypothesis import given
from hypothesis import strategies as st

from models.kernel.errors import Invalid
from orchestrator_web.exchanges import BODY, ReadyResponse, Service
from orchestrator_web.json import DEEPEST, StrictJson, walk

HEADERS = st.dictionaries(
    st.sampled_from(["Location", "Content-Location", "Content-Length", "X-Other", "Content-Type", "ETag"]),
    st.text(st.characters(exclude_categories=["C"]), max_size=12) | st.just("/ticket/tick-20261121-00000000"),
)
DOCUMENTS = st.recursive(
    st.none() | st.text(max_size=3) | st.just("a\x00b"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=60,
)


@given(HEADERS, st.sampled_from([200, 201, 202, 204, 304, 404, 422, 500]), st.binary(max_size=3))
def test_headers_leave_as_werkzeug_would_send_them(headers: dict[str, str], status: int, body: bytes) -> None:
    environ: dict[str, Any] = {"REQUEST_METHOD": "GET"}
    ours, theirs = (kind(body, status, headers).get_wsgi_headers(environ) for kind in (ReadyResponse, Response))
    assert ours.to_wsgi_list() == theirs.to_wsgi_list()


def test_a_body_that_the_bridge_has_read_is_taken_from_it_and_any_other_is_read() -> None:
    app = Service("test")

    @app.post("/")
    def echo() -> bytes:
        from flask import request

        return request.get_data()

    client = app.test_client()
    assert client.post("/", data=b"read").data == b"read"
    assert client.post("/", data=b"read", environ_overrides={BODY: b"whole"}).data == b"whole"


@given(DOCUMENTS)
def test_what_is_not_walked_through_needs_no_walk(document: Any) -> None:
    strict = StrictJson(Flask("test"))
    parts = list(walk(document))
    is_wrong = any(depth > DEEPEST or "\x00" in str(part if isinstance(part, str) else "") for _, part, depth in parts)
    text = strict.dumps(document)
    for said in (text, text.encode()):
        if is_wrong:
            with pytest.raises(Invalid):
                strict.loads(said)
        else:
            assert strict.loads(said) == document


@pytest.mark.parametrize("levels", [DEEPEST - 1, DEEPEST, DEEPEST + 1, DEEPEST + 5])
@pytest.mark.parametrize("shape", ["[", '{"a":'])
def test_the_deepest_document_is_found_by_its_brackets_too(levels: int, shape: str) -> None:
    closing = "]" if shape == "[" else "}"
    text = shape * levels + "1" + closing * levels
    if levels > DEEPEST:
        with pytest.raises(Invalid):
            StrictJson(Flask("test")).loads(text)
    else:
        assert StrictJson(Flask("test")).loads(text.encode())
