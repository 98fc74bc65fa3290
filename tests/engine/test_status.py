"""GET /engine/status and the acts on the engine: what they say, and what they refuse."""

from __future__ import annotations

import pytest

from models.engine.control import pause_ingestion, resume_ingestion
from models.kernel.processes import beat
from models.kernel.session import transaction
from tests.engine import desk
from tests.engine.test_metrics import value
from tests.web.service import Api, assert_problem
from tests.web.test_telemetry import samples


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


@pytest.mark.parametrize(
    ("change", "least_ms"),
    [
        ("next_tick_ms = extract(epoch FROM clock_timestamp()) * 1000 - 30000", 30_000),
        ("next_tick_ms = extract(epoch FROM clock_timestamp()) * 1000 + 30000", 0),
        ("next_tick_ms = NULL", 0),
        ("state = 'drained'", 0),
        ("state = 'degraded', scheduling_paused = true", 0),
    ],
)
def test_a_tick_is_overdue_only_for_an_engine_that_would_plan_it(api: Api, change: str, least_ms: int) -> None:
    desk.running()
    desk.change(f"UPDATE engine_control SET {change}")
    overdue = api.get("/engine/status").get_json()["scheduler"]["overdue_ms"]
    assert least_ms <= overdue < (least_ms + 10_000 if least_ms else 1)
    assert value(samples(api), "orchestrator_scheduler_overdue_ms") == pytest.approx(overdue, abs=10_000)


def test_a_paused_subscription_says_why_wherever_the_engine_is_told_to_be_unready(api: Api) -> None:
    desk.running(subscription={"stream": "market", "group": "desk"})
    subscription = {"stream": "market", "group": "desk", "alive": False, "paused": False, "paused_why": None}
    assert api.get("/engine/status").get_json()["subscription"] == subscription
    for why in ("it was away before", "The stream cannot be read: it is away"):
        with transaction() as connection:
            resume_ingestion(connection)
            pause_ingestion(connection, why)
    status = api.get("/engine/status").get_json()
    assert status["subscription"] == {**subscription, "paused": True, "paused_why": why}
    assert status["paused_why"] == why
    assert api.get("/readyz").get_json()["engine"]["paused_why"] == why
    assert value(samples(api), "orchestrator_subscription_paused") == 1
    with transaction() as connection:
        resume_ingestion(connection)
    assert api.get("/engine/status").get_json()["subscription"] == subscription
    assert value(samples(api), "orchestrator_subscription_paused") == 0


def test_a_subscription_lives_while_a_relay_does(api: Api) -> None:
    desk.running(subscription={"stream": "market"})
    with transaction() as connection:
        beat(connection, "relay")
    assert api.get("/engine/status").get_json()["subscription"]["alive"] is True
    desk.change("UPDATE processes SET beat_at = beat_at - interval '1 minute'")
    assert api.get("/engine/status").get_json()["subscription"]["alive"] is False


def test_an_engine_that_reads_no_stream_has_no_subscription(api: Api) -> None:
    desk.running()
    assert api.get("/engine/status").get_json()["subscription"]["stream"] is None
    assert "orchestrator_subscription_paused" not in samples(api)


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
