"""Lists: nothing lost or shown twice, as fast at any depth, totals that include every answered request."""

from __future__ import annotations

import json
import string
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import event

from models.kernel.clients import Caller
from models.kernel.session import single_statements, statement
from models.kernel.tallies import roll_tallies
from models.tickets import operations, queries
from tests.web.service import Api, assert_problem, finished, rows

DRAFT: dict[str, Any] = {
    "command": "scan", "params": {}, "priority": "normal", "timeout_seconds": 300, "metadata": {}, "target": "default",
}  # fmt: skip


def make(writer: Caller, count: int, **members: Any) -> list[str]:
    """So many tickets, by one statement a thousand."""
    made: list[str] = []
    with statement() as connection:
        while len(made) < count:
            drafts = [{**DRAFT, **members}] * min(1000, count - len(made))
            made += [str(row["id"]) for row in operations.create_tickets(connection, drafts, writer)]
    return made


def roll() -> None:
    with statement() as connection:
        assert roll_tallies(connection)


def walk(api: Api, query: str, at_each_page: Any = lambda: None) -> list[str]:
    """Every id that the pages of a question show, in their order."""
    seen: list[str] = []
    cursor = ""
    while True:
        page = api.get(f"/tickets?{query}{cursor}").get_json()
        seen += [ticket["id"] for ticket in page["tickets"]]
        if page["next_cursor"] is None:
            return seen
        cursor = f"&cursor={page['next_cursor']}"
        at_each_page()


def test_a_cursor_walks_through_three_thousand_tickets_while_others_are_born(api: Api, writer: Caller) -> None:
    made = make(writer, 3000)
    seen = walk(api, "limit=250", at_each_page=lambda: make(writer, 7))
    assert len(seen) == len(set(seen)) == 3000
    assert set(seen) == set(made)


def test_a_cursor_keeps_its_place_among_tickets_of_the_very_same_moment(api: Api, writer: Caller) -> None:
    made = make(writer, 100)
    rows("UPDATE tickets SET created_at = '2026-01-01T00:00:00Z' RETURNING 1")
    seen = walk(api, "limit=7")
    assert len(seen) == 100
    assert seen == sorted(made, reverse=True)


def test_a_cursor_walks_what_its_filter_leaves(api: Api, writer: Caller) -> None:
    wanted = make(writer, 40, priority="high", target="robot-1")
    make(writer, 40)
    for query in ("priority=high", "target=robot-1", "status=pending&priority=high&target=robot-1"):
        assert set(walk(api, f"limit=9&{query}")) == set(wanted)


def test_the_last_page_has_no_cursor_and_a_full_last_page_neither(api: Api, writer: Caller) -> None:
    make(writer, 4)
    assert api.get("/tickets?limit=4").get_json()["next_cursor"] is None
    assert api.get("/tickets?limit=3").get_json()["next_cursor"] is not None


def test_the_page_size_may_change_along_the_way(api: Api, writer: Caller) -> None:
    made = make(writer, 30)
    first = api.get("/tickets?limit=10").get_json()
    rest = api.get(f"/tickets?limit=1000&cursor={first['next_cursor']}").get_json()
    assert {ticket["id"] for ticket in first["tickets"] + rest["tickets"]} == set(made)


def test_a_cursor_altered_in_any_one_character_is_refused(api: Api, writer: Caller) -> None:
    make(writer, 2)
    cursor = api.get("/tickets?limit=1").get_json()["next_cursor"]
    letters = string.ascii_letters + string.digits + "-_"
    for at, letter in enumerate(cursor):
        for other in (letters[letters.index(letter) ^ 1], letters[(letters.index(letter) + 31) % 64], "=", "."):
            altered = cursor[:at] + other + cursor[at + 1 :]
            problem = assert_problem(api.get(f"/tickets?limit=1&cursor={altered}"), 422)
            assert problem["code"] == "cursor_invalid"
    for altered in (cursor[:-1], cursor + "A", cursor + "=", cursor + "==", cursor[1:], cursor * 2):
        assert_problem(api.get(f"/tickets?limit=1&cursor={altered}"), 422)


@pytest.mark.parametrize("other", ["/engine/runs", "/operations", "/clients", "/webhooks"])
def test_a_cursor_belongs_to_its_list(api: Api, writer: Caller, other: str) -> None:
    make(writer, 3)
    cursor = api.get("/tickets?limit=1").get_json()["next_cursor"]
    problem = assert_problem(api.get(f"{other}?limit=1&cursor={cursor}"), 422)
    assert problem["code"] == "cursor_invalid"


def test_a_cursor_belongs_to_its_filters(api: Api, writer: Caller) -> None:
    make(writer, 2, priority="high")
    cursor = api.get("/tickets?limit=1&priority=high").get_json()["next_cursor"]
    for query in ("", "priority=low&", "priority=high&status=pending&", "status=pending&"):
        problem = assert_problem(api.get(f"/tickets?{query}limit=1&cursor={cursor}"), 422)
        assert problem["errors"] == [
            {"pointer": "/cursor", "detail": "belongs to another list or to other filters; start again without it"}
        ]


def test_a_cursor_of_another_installation_is_refused(api: Api, writer: Caller) -> None:
    from models.kernel import installation

    make(writer, 2)
    cursor = api.get("/tickets?limit=1").get_json()["next_cursor"]
    rows("UPDATE installation SET cursor_key = 'another' RETURNING 1")
    installation.cursor_key.cache_clear()
    assert assert_problem(api.get(f"/tickets?cursor={cursor}"), 422)["code"] == "cursor_invalid"


def test_a_cursor_is_taken_back_however_long_its_filter_is(api: Api, writer: Caller) -> None:
    command = "\N{GRINNING FACE}" * 256
    made = make(writer, 3, command=command)
    assert set(walk(api, f"limit=1&command={quote(command)}")) == set(made)


def test_a_cursor_and_an_offset_exclude_each_other(api: Api, writer: Caller) -> None:
    make(writer, 2)
    cursor = api.get("/tickets?limit=1").get_json()["next_cursor"]
    problem = assert_problem(api.get(f"/tickets?cursor={cursor}&offset=1"), 422)
    assert [error["pointer"] for error in problem["errors"]] == ["/offset"]


def plan(statement_text: str, parameters: dict[str, Any]) -> dict[str, Any]:
    with statement() as connection:
        found = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement_text}", parameters)
        read = found.scalar_one()
    return dict((json.loads(read) if isinstance(read, str) else read)[0]["Plan"])


def touched(part: dict[str, Any]) -> int:
    """Rows that a plan's leaves read, the filtered ones included."""
    mine = int(part["Actual Rows"] + part.get("Rows Removed by Filter", 0)) if "Plans" not in part else 0
    return mine + sum(touched(inner) for inner in part.get("Plans", ()))


@pytest.fixture
def statements(database: str) -> list[tuple[str, Any]]:
    """Every SELECT on tickets that is sent, with its parameters."""
    sent: list[tuple[str, Any]] = []

    def keep(_c: Any, _cursor: Any, text: str, parameters: Any, _context: Any, _many: Any) -> None:
        if text.startswith("SELECT tickets.id, "):
            sent.append((text, parameters))

    event.listen(single_statements(), "before_cursor_execute", keep)
    return sent


@pytest.mark.parametrize("query", ["", "&status=pending", "&command=scan", "&priority=high", "&target=robot-1"])
def test_a_page_touches_as_few_rows_at_depth_as_at_the_start(
    api: Api, writer: Caller, statements: list[tuple[str, Any]], query: str
) -> None:
    make(writer, 4000, priority="high", target="robot-1")
    with statement() as connection:
        connection.exec_driver_sql("VACUUM ANALYZE tickets")
    walk(api, f"limit=500{query}")
    plans = [plan(*sent) for sent in statements]
    assert len(plans) == 8
    assert max(touched(found) for found in plans) <= 2 * 501
    blocks = [found["Shared Hit Blocks"] + found["Shared Read Blocks"] for found in plans]
    assert max(blocks) <= 2 * min(blocks) + 20


def test_the_total_includes_every_answered_request_before_and_after_rolling(api: Api, writer: Caller) -> None:
    def totals() -> tuple[int, ...]:
        asked = ("", "?status=pending", "?status=completed", "?status=failed")
        return tuple(api.get(f"/tickets{query}").get_json()["total"] for query in asked)

    make(writer, 5)
    finished(api)
    assert totals() == (6, 5, 1, 0)
    roll()
    assert totals() == (6, 5, 1, 0)
    make(writer, 2)
    finished(api)
    assert totals() == (9, 7, 2, 0)
    roll()
    roll()
    assert totals() == (9, 7, 2, 0)


def test_a_count_beyond_the_cap_says_that_it_is_an_estimate(
    api: Api, writer: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "COUNT_CAP", 20)
    make(writer, 20, priority="low")
    page = api.get("/tickets?priority=low&limit=1").get_json()
    assert (page["total"], page["total_is_estimate"]) == (20, False)
    make(writer, 1, priority="low")
    page = api.get("/tickets?priority=low&limit=1").get_json()
    assert (page["total"], page["total_is_estimate"]) == (20, True)
    page = api.get("/tickets?status=pending&limit=1").get_json()
    assert (page["total"], page["total_is_estimate"]) == (21, False)
