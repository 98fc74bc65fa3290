"""The engine's endpoints: configuration and runs, who may ask for them, and what is refused."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest
from flask import Flask

from models.engine.queries import get_run
from models.kernel.session import statement
from tests.engine import desk
from tests.kernel.plans import rows_touched
from tests.web.service import Api, assert_problem, each, key_with
from tests.web.test_openapi import check, resolved

UNKNOWN_RUN = "a" * 64


def finished_run(api: Api) -> dict[str, Any]:
    """A run that was planned, taken and completed."""
    desk.running()
    run = desk.planned_run()
    desk.complete(desk.take(run))
    return run


def test_an_accepted_configuration_is_answered_whole_and_kept_for_ever(api: Api) -> None:
    answer = api.post("/engine/config", json=desk.body())
    assert answer.status_code == 200, answer.get_json()
    first = answer.get_json()
    assert first["config"]["scheduler"]["max_catch_up_ticks"] == 480
    second = api.post("/engine/config", json=desk.body(engine={"timeout_ms": 999})).get_json()
    assert second["version"] > first["version"]
    assert second["accepted_by"] == "admin"
    assert api.get("/engine/config").get_json() == second
    assert api.get(f"/engine/config/{first['version']}").get_json() == first


def test_one_that_means_the_same_keeps_its_version(api: Api) -> None:
    first = api.post("/engine/config", json=desk.body()).get_json()
    again = api.post("/engine/config", json=first["config"]).get_json()
    assert (again["version"], again["digest"]) == (first["version"], first["digest"])


def test_every_wrong_key_is_named_and_nothing_is_changed(api: Api) -> None:
    wrong = desk.body(scheduler={"mode": "sometimes"}, engine={"timeout_ms": "soon", "colour": 1})
    problem = assert_problem(api.post("/engine/config", json=wrong), 422)
    assert problem["code"] == "config_invalid"
    assert {error["pointer"] for error in problem["errors"]} == {
        "/scheduler/mode",
        "/engine/timeout_ms",
        "/engine/colour",
    }
    assert_problem(api.get("/engine/config"), 404)
    assert desk.rows("SELECT * FROM engine_configs") == []


def test_a_wrong_key_of_a_list_is_named_by_its_place(api: Api) -> None:
    sources = [{"source_id": "binance", "symbols": ["A"]}, {"source_id": "kraken", "symbols": []}]
    problem = assert_problem(api.post("/engine/config", json=desk.body(sources=sources)), 422)
    assert [error["pointer"] for error in problem["errors"]] == ["/sources/1/symbols"]


@each("body", [[], "text", 7, None, {}, {"sources": 1}, {"": 1}, {"scheduler": [[]]}, {"a\ud800": 1}])
def test_whatever_is_no_configuration_is_refused(api: Api, body: Any) -> None:
    assert_problem(api.post("/engine/config", json=body), 400, 422)


@each("version", ["0", "99999999999999999999", "-1", "x", "1.5"])
def test_an_unknown_version_is_not_found(api: Api, version: str) -> None:
    assert_problem(api.get(f"/engine/config/{version}"), 404)


def test_a_run_is_answered_with_its_cut_its_history_and_its_outputs(api: Api) -> None:
    run = finished_run(api)
    answer = api.get(f"/engine/runs/{run['id']}")
    assert answer.status_code == 200
    told = answer.get_json()
    assert told["status"] == "completed"
    assert (told["cut_start_ingest_seq"], told["cut_end_ingest_seq"]) == (1, 1)
    assert told["counts_by_event_type"] == {"SnapshotInputs": 1}
    assert told["attempts"] == 1
    assert told["started_ts_ms"] <= told["completed_ts_ms"]
    assert [step["topic"] for step in told["history"]] == [
        "engine_run_planned",
        "engine_run_started",
        "engine_run_completed",
    ]
    assert [event["event_type"] for event in told["outputs"]] == ["EngineRunStarted", "EngineRunCompleted"]
    for row in desk.outputs():
        assert row["event"].encode() in answer.data


@each("run_id", [UNKNOWN_RUN, "x", "A" * 64, "%00", "a" * 5000])
def test_an_unknown_run_is_not_found(api: Api, run_id: str) -> None:
    assert_problem(api.get(f"/engine/runs/{run_id}"), 404)


def multiply(run: dict[str, Any]) -> None:
    """Two thousand runs more like this one, of the ids that the numbers from 1 on hash to."""
    others = ", ".join(name for name in run if name not in {"id", "number"})
    hashed = "encode(sha256(convert_to(n::text, 'UTF8')), 'hex')"
    desk.change(
        f"INSERT INTO engine_runs (id, {others}) SELECT {hashed}, {others} FROM engine_runs, generate_series(1, 2000) n"
    )


def test_the_first_digits_of_an_id_name_a_run_while_no_other_begins_with_them(api: Api) -> None:
    multiply(finished_run(api))
    first = hashlib.sha256(b"1").hexdigest()
    with statement() as connection, rows_touched(connection) as touched:
        assert get_run(connection, first[:12])["id"] == first
        assert sum(touched) <= 2
    assert api.get(f"/engine/runs/{first[:12]}").get_json() == api.get(f"/engine/runs/{first}").get_json()
    problem = assert_problem(api.get(f"/engine/runs/{first[:1]}"), 422)
    assert problem["code"] == "run_id_ambiguous"
    assert problem["errors"][0]["pointer"] == "/run_id"
    assert f"Several runs begin with '{first[:1]}'" in problem["detail"]
    assert_problem(api.get("/engine/runs/0123456789ab"), 404)


def test_runs_are_listed_newest_first_and_paged_without_gap_or_double(api: Api) -> None:
    desk.running()
    for tick in range(1, 4):
        at = desk.START_MS + tick * desk.INTERVAL_MS
        desk.append(desk.inputs(at), desk.trade("ETH-USD"), now_ms=at)
        desk.plan(at + desk.DELAY_MS + 1)
    numbers: list[int] = []
    cursor = ""
    while True:
        page = api.get(f"/engine/runs?limit=2{cursor}").get_json()
        numbers += [run["number"] for run in page["runs"]]
        assert (page["total"], page["total_is_estimate"]) == (6, False)
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert numbers == sorted((run["number"] for run in desk.runs()), reverse=True)


def test_filters_choose_by_symbol_status_mode_and_time(api: Api) -> None:
    run = finished_run(api)
    at = run["engine_timestamp_ms"]

    def found(query: str) -> tuple[int, int]:
        page = api.get(f"/engine/runs?{query}").get_json()
        return page["total"], len(page["runs"])

    assert found("symbol=BTC-USD") == (1, 1)
    assert found("symbol=ETH-USD") == (0, 0)
    assert found("status=completed") == (1, 1)
    assert found("status=planned") == (0, 0)
    assert found("mode=truth&status=completed") == (1, 1)
    assert found("mode=hysteresis") == (0, 0)
    assert found(f"from={at}&to={at}") == (1, 1)
    assert found(f"from={at + 1}") == (0, 0)
    assert found(f"to={at - 1}") == (0, 0)


@each(
    "query",
    [
        "status=lost",
        "mode=false",
        "from=x",
        "from=1.5",
        "to=999999999999999999999",
        "limit=0",
        "limit=1001",
        "cursor=nonsense",
        "symbol=",
        "symbol=A&symbol=B",
        "symbol=%00",
        "colour=red",
    ],
)
def test_a_wrong_question_is_refused_by_the_name_of_its_field(api: Api, query: str) -> None:
    problem = assert_problem(api.get(f"/engine/runs?{query}"), 422)
    assert problem["errors"][0]["pointer"] == "/" + query.partition("=")[0]


def test_a_cursor_belongs_to_its_question(api: Api) -> None:
    desk.running()
    at = desk.START_MS + desk.INTERVAL_MS
    desk.append(desk.trade(), desk.trade("ETH-USD"), now_ms=at)
    desk.plan(at + desk.DELAY_MS + 1)
    cursor = api.get("/engine/runs?limit=1").get_json()["next_cursor"]
    assert_problem(api.get(f"/engine/runs?limit=1&symbol=BTC-USD&cursor={cursor}"), 422)


READS = ["/engine/status", "/engine/config", "/engine/runs", "/engine/outputs", f"/engine/runs/{UNKNOWN_RUN}"]
ACTS = ["/engine/start", "/engine/drain", "/engine/stop", "/engine/reset", "/engine/config"]


@pytest.mark.parametrize("path", [*READS, "/engine/outputs/events"])
def test_reading_needs_a_credential_that_may_read(anonymous: Api, api: Api, path: str) -> None:
    assert_problem(anonymous.get(path), 401)
    assert_problem(Api(api.app, key_with("write")).get(path), 403)


@pytest.mark.parametrize("path", ACTS)
def test_only_an_admin_acts_on_the_engine(anonymous: Api, writing: Api, path: str) -> None:
    assert_problem(anonymous.post(path), 401)
    assert_problem(writing.post(path), 403)
    assert desk.engine_row()["state"] == "init"


def test_what_is_answered_is_what_the_document_says(api: Api) -> None:
    run = finished_run(api)
    document = api.get("/openapi.json").get_json()
    calls = [
        ("get", "/engine/status", "/engine/status", {}),
        ("get", "/engine/config", "/engine/config", {}),
        ("get", "/engine/config/{version}", "/engine/config/1", {}),
        ("get", "/engine/config/{version}", "/engine/config/7", {}),
        ("get", "/engine/runs", "/engine/runs", {}),
        ("get", "/engine/runs", "/engine/runs?limit=0", {}),
        ("get", "/engine/runs/{run_id}", f"/engine/runs/{run['id']}", {}),
        ("get", "/engine/runs/{run_id}", f"/engine/runs/{UNKNOWN_RUN}", {}),
        ("get", "/engine/outputs", "/engine/outputs", {}),
        ("post", "/engine/config", "/engine/config", {"json": desk.body(engine={"timeout_ms": 5000})}),
        ("post", "/engine/config", "/engine/config", {"json": {}}),
        *(("post", f"/engine/{name}", f"/engine/{name}", {}) for name in ("drain", "start", "stop", "stop", "reset")),
    ]
    for method, path, url, options in calls:
        answer = api.call(method.upper(), url, **options)
        said = document["paths"][path][method]["responses"].get(str(answer.status_code))
        assert said is not None, (method, url, answer.status_code)
        content = resolved(document, said)["content"]
        check(document, content[answer.content_type]["schema"], answer.get_json())


def test_a_query_name_that_a_path_does_not_know_is_refused_and_nothing_is_done(api: Api, app: Flask) -> None:
    desk.configure()
    before = desk.engine_row()
    rules = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith(("/engine/", "/ws/engine"))]
    asked = {(rule.rule, method) for rule in rules for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}}
    assert len(asked) >= 17
    for path, method in sorted(asked):
        problem = assert_problem(api.call(method, re.sub("<.*>", "1", path) + "?unknown=1"), 422)
        assert problem["errors"] == [{"pointer": "/unknown", "detail": "Unknown field."}], (method, path)
    assert desk.engine_row() == before


def test_who_asks_comes_before_what_is_asked_for(anonymous: Api) -> None:
    assert_problem(anonymous.get("/engine/status?unknown=1"), 401)
