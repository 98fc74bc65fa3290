"""GET /engine/status and the acts on the engine: what they say, and what they refuse."""

from __future__ import annotations

import pytest

from tests.engine import desk
from tests.web.service import Api, assert_problem


def act(api: Api, *acts: str) -> str:
    """Do these one after the other; answers the state after the last."""
    for name in acts:
        answer = api.post(f"/engine/{name}")
        assert answer.status_code == 200, answer.get_json()
    return str(answer.get_json()["state"])


def test_an_engine_without_a_configuration_is_described(api: Api) -> None:
    status = api.get("/engine/status").get_json()
    assert (status["state"], status["ready"], status["config_version"]) == ("init", False, None)
    assert status["buffer"] == {
        "depth": 0,
        "capacity": None,
        "age_ms": None,
        "first_ingest_seq": None,
        "last_ingest_seq": 0,
    }
    assert (status["scheduler"]["mode"], status["publish"]["stream"]) == (None, None)
    assert status["runs"] == {"planned": 0, "started": 0, "waiting": 0, "completed": 0, "failed": 0}


def test_an_engine_that_was_not_configured_does_not_start(api: Api) -> None:
    problem = assert_problem(api.post("/engine/start"), 409)
    assert problem["code"] == "engine_not_configured"


def test_the_life_of_an_engine_goes_through_its_states(api: Api) -> None:
    desk.configure()
    assert act(api, "start") == "running"
    assert api.get("/engine/status").get_json()["ready"] is True
    assert act(api, "drain") == "drained"
    assert act(api, "start", "stop") == "stopped"
    assert act(api, "reset") == "init"
    told = [row["topic"] for row in desk.rows("SELECT topic FROM ledger WHERE subject_kind = 'engine' ORDER BY seq")]
    assert told[1:] == [
        "engine_started",
        "engine_drained",
        "engine_started",
        "engine_stopped",
        "engine_reset",
    ]


@pytest.mark.parametrize(
    ("before", "name", "state"),
    [
        ((), "drain", "init"),
        ((), "reset", "init"),
        (("start",), "start", "running"),
        (("start",), "reset", "running"),
        (("start", "drain"), "drain", "drained"),
        (("stop",), "stop", "stopped"),
        (("stop",), "start", "stopped"),
        (("stop",), "drain", "stopped"),
    ],
)
def test_an_act_that_the_state_does_not_allow_is_refused_with_it(
    api: Api, before: tuple[str, ...], name: str, state: str
) -> None:
    desk.configure()
    if before:
        act(api, *before)
    problem = assert_problem(api.post(f"/engine/{name}"), 409)
    assert problem["state"] == state
    assert desk.engine_row()["state"] == state


def test_the_status_counts_records_ticks_and_runs(api: Api) -> None:
    version = desk.configure(buffer_retention={"max_records": 4}, output_publish={"stream": "outputs"})
    desk.start()
    desk.plan(desk.START_MS)
    desk.planned_run(desk.trade(), desk.inputs(desk.START_MS + desk.INTERVAL_MS))
    status = api.get("/engine/status").get_json()
    assert status["config_version"] == version
    buffer = status["buffer"]
    assert (buffer["depth"], buffer["capacity"], buffer["first_ingest_seq"], buffer["last_ingest_seq"]) == (2, 4, 1, 2)
    assert buffer["age_ms"] > 0
    scheduler = status["scheduler"]
    assert (scheduler["mode"], scheduler["ticks"], scheduler["skipped"], scheduler["missed"]) == ("boundary", 2, 3, 0)
    assert scheduler["next_tick_ms"] - scheduler["last_tick_ms"] == desk.INTERVAL_MS
    assert scheduler["lag_ms"] == 1
    assert status["runs"]["planned"] == 1
    assert status["publish"]["stream"] == "outputs"


def test_outputs_that_the_stream_was_not_given_are_counted(api: Api) -> None:
    desk.configure(output_publish={"stream": "outputs"})
    desk.start()
    desk.plan(desk.START_MS)
    desk.complete(desk.take(desk.planned_run()))
    assert api.get("/engine/status").get_json()["publish"]["pending"] == 2


def test_a_full_buffer_makes_the_engine_unready_and_says_so(api: Api) -> None:
    desk.configure(buffer_retention={"max_records": 2})
    desk.start()
    assert api.get("/engine/status").get_json()["ready"] is True
    desk.append(desk.trade(), desk.trade(), now_ms=desk.START_MS)
    status = api.get("/engine/status").get_json()
    assert (status["state"], status["ready"], status["ingestion_paused"]) == ("running", False, True)
    assert "holds 2 of 2 records" in status["paused_why"]


def test_readiness_tells_of_the_engine_and_does_not_depend_on_it(api: Api) -> None:
    """A degraded engine takes no ticket away from a robot: the service as a whole is as ready as it was."""
    desk.configure(buffer_retention={"max_records": 1})
    act(api, "start")
    before = api.get("/readyz")
    assert before.get_json()["engine"] == {
        "ready": True,
        "state": "running",
        "ingestion_paused": False,
        "scheduling_paused": False,
        "paused_why": None,
    }
    desk.append(desk.trade(), now_ms=desk.START_MS)
    after = api.get("/readyz")
    assert after.status_code == before.status_code
    assert after.get_json()["missing"] == before.get_json()["missing"]
    assert after.get_json()["engine"]["ready"] is False
    assert "holds 1 of 1 records" in after.get_json()["engine"]["paused_why"]
