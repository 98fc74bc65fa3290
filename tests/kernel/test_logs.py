"""Logs: JSON lines that say what the work is about, and no secret."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.kernel import clients, clock, ids, logs
from models.kernel.session import statement

log = logging.getLogger("tests.logs")


@pytest.fixture
def written(environment: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the process writes to its log."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    environment.setattr("sys.stderr", stream)
    logs.configure("test")
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_a_line_carries_its_fields_and_what_the_work_is_about(written: io.StringIO) -> None:
    with logs.about(correlation_id="c-1", action="carry"), logs.about(parcel="p"):
        log.warning("it %s", "moves", extra={"van": 7})
    (line,) = lines(written)
    assert line.pop("at").endswith("+00:00")
    assert line == {
        "level": "WARNING",
        "role": "test",
        "logger": "tests.logs",
        "message": "it moves",
        "correlation_id": "c-1",
        "action": "carry",
        "parcel": "p",
        "van": 7,
    }


def test_fields_end_with_their_block(written: io.StringIO) -> None:
    with logs.about(parcel="p"):
        pass
    log.info("after")
    assert "parcel" not in lines(written)[0]


def test_an_exception_stays_in_its_line(written: io.StringIO) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it failed")
    (line,) = lines(written)
    assert "ValueError: two\nlines" in line["exception"]


def test_what_json_cannot_say_is_said_as_text(written: io.StringIO) -> None:
    log.info("odd", extra={"thing": {1, 2}, "when": clock.utcnow(), "number": float("nan"), "half": "\ud800"})
    written.getvalue().encode()
    strict = json.loads(written.getvalue(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict["thing"] == "{1, 2}"


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=3)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@given(st.dictionaries(st.text(), VALUES | st.datetimes() | st.uuids(), max_size=5))
def test_a_line_says_what_the_standard_library_would_say(line: dict[str, Any]) -> None:
    said = logs.to_line(line)
    assert said.isascii()
    try:
        expected = json.dumps(line, default=str, allow_nan=False)
    except ValueError:
        json.loads(said)
    else:
        assert json.loads(said) == json.loads(expected)


@pytest.mark.parametrize("odd", [None, "null", "\u00e9", {1}, float("nan")])
def test_all_lines_have_one_form(odd: object) -> None:
    assert logs.to_line({"error": odd, "level": "INFO"}).endswith(',"level":"INFO"}')


def test_a_line_that_says_nothing_of_something_takes_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "dumps", lambda *_, **__: pytest.fail("the slow way"))
    assert logs.to_line({"outcome": "completed", "error": None}) == '{"outcome":"completed","error":null}'


def test_lines_below_the_level_are_not_written(written: io.StringIO) -> None:
    log.debug("quiet")
    assert written.getvalue() == ""


def test_no_secret_is_logged_while_keys_are_issued_and_checked(database: str, written: io.StringIO) -> None:
    logging.getLogger().setLevel("DEBUG")
    with statement() as connection:
        clients.create_client(connection, "ada", ["read"])
        key = clients.issue_key(connection, "ada")
        assert clients.find_client_by_key(connection, key)
        log.info("a key was issued")
    assert lines(written)
    secret = key.split("_", 2)[2]
    assert secret not in written.getvalue()
    assert clients.digest(secret) not in written.getvalue()


def test_a_usable_correlation_id_is_kept_and_another_replaced() -> None:
    assert ids.correlation_id("abc-1:2.3_4") == "abc-1:2.3_4"
    for offered in (None, "", "x" * 65, "a b", "a\n", "é"):
        made = ids.correlation_id(offered)
        assert made != offered
        assert ids.CORRELATION_ID.fullmatch(made)


def test_secrets_fit_the_form_of_a_key_and_never_repeat() -> None:
    keys = {f"orc_{ids.new_key_id()}_{ids.new_secret()}" for _ in range(200)}
    assert len(keys) == 200
    assert all(clients.KEY.fullmatch(key) for key in keys)


def test_a_uuid_is_a_random_one_and_never_repeats() -> None:
    texts = {make() for _ in range(100) for make in (ids.new_uuid, lambda: ids.correlation_id(None))}
    made = [uuid.UUID(text) for text in texts]
    assert {str(each) for each in made} == texts
    assert len(texts) == 200
    assert {(each.version, each.variant) for each in made} == {(4, uuid.RFC_4122)}


def test_a_process_and_its_child_draw_different_correlation_ids() -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as child:
        theirs = child.apply(ids.correlation_id, (None,))
    assert theirs != ids.correlation_id(None)


def test_the_present_moment_is_aware_and_in_utc() -> None:
    now = clock.utcnow()
    assert now.utcoffset() is not None
    assert now.utcoffset().total_seconds() == 0  # type: ignore[union-attr]
