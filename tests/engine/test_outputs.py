"""GET /engine/outputs: in order, byte for byte, and a late commit is never passed by."""

from __future__ import annotations

from typing import Any

import orjson
from sqlalchemy import Connection

from models.engine import operations, publications
from models.kernel.session import statement, transaction
from tests.engine import desk
from tests.web.service import Api, assert_problem, each

LARGE = 10**15


def two_runs() -> list[dict[str, Any]]:
    """A run of each symbol, both planned."""
    desk.running()
    at = desk.START_MS + desk.INTERVAL_MS
    desk.append(desk.inputs(at), desk.inputs(at, "ETH-USD"), now_ms=at)
    assert desk.plan(at + desk.DELAY_MS + 1).runs == 2
    return desk.runs()


def carried_out() -> list[dict[str, Any]]:
    """Four outputs."""
    found = two_runs()
    desk.finish_all()
    return found


def seqs(page: dict[str, Any]) -> list[tuple[str, str]]:
    return [(event["symbol"], event["event_type"]) for event in page["events"]]


def test_outputs_are_answered_in_order_and_byte_for_byte(api: Api) -> None:
    carried_out()
    answer = api.get("/engine/outputs")
    texts = [row["event"] for row in desk.outputs()]
    assert len(texts) == 4
    assert answer.data.endswith(b'"events":[' + ",".join(texts).encode() + b"]}")
    assert answer.get_json()["has_more"] is False
    assert answer.get_json()["events"] == [orjson.loads(text) for text in texts]


def test_following_the_cursor_answers_each_output_once(api: Api) -> None:
    carried_out()
    whole = api.get("/engine/outputs").get_json()["events"]
    read: list[Any] = []
    after = "earliest"
    for _ in range(4):
        page = api.get(f"/engine/outputs?limit=1&after={after}").get_json()
        assert len(page["events"]) == 1
        read, after = read + page["events"], page["next"]
    assert read == whole
    page = api.get(f"/engine/outputs?limit=1&after={after}").get_json()
    assert (page["events"], page["has_more"]) == ([], False)


def test_filters_choose_by_symbol_type_and_run(api: Api) -> None:
    runs = carried_out()

    def found(query: str) -> list[tuple[str, str]]:
        return seqs(api.get(f"/engine/outputs?{query}").get_json())

    of_btc = [("BTC-USD", "EngineRunStarted"), ("BTC-USD", "EngineRunCompleted")]
    assert found("symbol=BTC-USD") == of_btc
    assert found("event_type=EngineRunStarted") == [("BTC-USD", "EngineRunStarted"), ("ETH-USD", "EngineRunStarted")]
    assert found(f"run_id={runs[0]['id']}") == of_btc
    assert found(f"run_id={runs[0]['id']}&symbol=ETH-USD") == []
    assert found("symbol=ETH-USD&event_type=EngineRunCompleted") == [("ETH-USD", "EngineRunCompleted")]


def test_a_late_commit_is_not_passed_by(api: Api) -> None:
    """What drew a lower number and commits later holds the page back, and is answered in its place."""
    first, second = two_runs()
    early = desk.take(first)
    later = desk.take(second)
    seen = api.get("/engine/outputs").get_json()
    assert len(seen["events"]) == 2
    with transaction() as slow:
        settle(slow, early)  # draws its number now, and commits last
        desk.complete(later)
        page = api.get(f"/engine/outputs?after={seen['next']}").get_json()
        assert page["events"] == []
    page = api.get(f"/engine/outputs?after={page['next']}").get_json()
    assert seqs(page) == [("BTC-USD", "EngineRunCompleted"), ("ETH-USD", "EngineRunCompleted")]


def settle(connection: Connection, attempt: operations.Attempt) -> None:
    operations.settle_completed(connection, attempt, {"regime_output": desk.OUTPUT}, desk.WORKER)


def test_what_matches_little_is_looked_for_window_by_window(api: Api, monkeypatch: Any) -> None:
    monkeypatch.setattr(publications, "WINDOW", 3)
    carried_out()
    read, after, pages = [], "earliest", 0
    while True:
        page = api.get(f"/engine/outputs?event_type=EngineRunCompleted&after={after}").get_json()
        read, after, pages = read + seqs(page), page["next"], pages + 1
        if not page["has_more"]:
            break
    assert read == [("BTC-USD", "EngineRunCompleted"), ("ETH-USD", "EngineRunCompleted")]
    assert pages > 2


def test_the_horizon_that_a_writer_holds_back_is_replaced_by_one_that_was_decided_before(database: str) -> None:
    (run, _) = two_runs()
    attempt = desk.take(run)
    with statement() as connection:
        before = publications.find_decided(connection)
    with transaction() as slow:
        settle(slow, attempt)
        with statement() as connection:
            assert publications.find_decided(connection) <= before


@each(
    "query",
    [
        "after=nonsense",
        "after=12.AAAAAAAAAAAAAAAA",
        "after=",
        "limit=0",
        "limit=many",
        "event_type=Other",
        "run_id=x",
        "symbol=",
        "offset=1",
    ],
)
def test_a_wrong_question_is_refused_by_the_name_of_its_field(api: Api, query: str) -> None:
    problem = assert_problem(api.get(f"/engine/outputs?{query}"), 422)
    assert problem["errors"][0]["pointer"] == "/" + query.partition("=")[0]


def test_a_cursor_of_a_ledger_that_was_set_back_is_refused(api: Api) -> None:
    from orchestrator_web.cursors import write_event_cursor

    cursor = write_event_cursor("engine", LARGE)
    assert_problem(api.get(f"/engine/outputs?after={cursor}"), 422)
