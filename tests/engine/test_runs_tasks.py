"""Carrying one run out in this process: on a real database, by a real host, with engines good and bad."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest

from models.engine import operations
from models.kernel.errors import Conflict, LeaseLost, Unavailable
from models.kernel.jobs import REGISTRY, Held
from models.kernel.session import statement
from models.kernel.settings import settings
from orchestrator_tasks import hints
from orchestrator_tasks.engine import tasks
from orchestrator_tasks.engine.hosts import close_host
from orchestrator_tasks.keeper import Keeper
from tests.engine import desk
from tests.engine.desk import DELAY_MS, INTERVAL_MS, START_MS, inputs, job_of, outputs, plan, running, trade
from tests.service.waiting import eventually
from tests.tasks.conftest import Clock, time

__all__ = ["time"]

FULL = {
    "market": {"price": 101.5, "vwap": 100.0, "atr": 2.0, "atr_z": 0.5, "range_expansion": 1.2, "structure_levels": {}},
    "flow": {"cvd": 3.0, "cvd_slope": 0.2, "cvd_efficiency": 0.5, "aggressive_volume_ratio": 0.6},
}


@pytest.fixture
def with_engine(database: str, environment: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Names the engine of this process's host, and lets leases run out soon."""
    monkeypatch.setattr(tasks, "keeper", Keeper())
    monkeypatch.setattr(hints, "send", lambda *_: None)

    def name(module: str) -> None:
        environment.setenv("ENGINE_MODULE", module)
        environment.setenv("ORCHESTRATOR_LEASE_SECONDS", "1")
        settings.cache_clear()

    name("examples.regime_engine.engine")
    yield name
    close_host()


def configured(symbol: str = "BTC-USD", **sections: Any) -> None:
    sources = [{"source_id": "binance", "symbols": [symbol]}]
    running(sources=sources, **{"engine": {"timeout_ms": 500, "memory_mb": 256}, **sections})


def planned(symbol: str = "BTC-USD", *events: Any, n: int = 0) -> dict[str, Any]:
    """The run of the n-th tick, over these events."""
    at = START_MS + n * INTERVAL_MS
    desk.append_of([symbol], *(events or [inputs(at, symbol, **FULL)]), now_ms=at)
    plan(at + DELAY_MS + 1)
    return desk.runs()[-1]


def carry_out(run: dict[str, Any]) -> str:
    return str(tasks.run(job_id=job_of(run["id"])["id"], subject_id=run["id"]))


def now(run: dict[str, Any]) -> dict[str, Any]:
    (row,) = desk.rows("SELECT * FROM engine_runs WHERE id = :id", id=run["id"])
    return row


def due(run: dict[str, Any]) -> None:
    desk.change("UPDATE jobs SET run_at = clock_timestamp() WHERE subject_id = :id", id=run["id"])


def events_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [orjson.loads(row["event"]) for row in outputs() if row["run_id"] == run["id"]]


def types_of(run: dict[str, Any]) -> list[str]:
    return [event["event_type"] for event in events_of(run)]


def test_a_run_goes_from_its_job_to_its_outputs(with_engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    configured()
    run = planned("BTC-USD", trade(), inputs(START_MS, **FULL), trade())
    with caplog.at_level(logging.INFO):
        assert carry_out(run) == "completed"
    ended = now(run)
    assert (ended["state"], ended["attempts"], ended["snapshot_ingest_seq"]) == ("completed", 1, 2)
    output = events_of(run)[1]["payload"]["regime_output"]
    assert (output["symbol"], output["timestamp"]) == ("BTC-USD", START_MS)
    (line,) = [record for record in caplog.records if record.message == "orchestrator.engine_run"]
    assert line.status == "completed"  # type: ignore[attr-defined]
    assert line.duration_ms > 0  # type: ignore[attr-defined]
    (told,) = desk.rows("SELECT elapsed_ms, label FROM ledger WHERE topic = 'engine_run_completed'")
    assert (told["elapsed_ms"], told["label"]) == (line.duration_ms, "truth")  # type: ignore[attr-defined]


def test_the_work_is_registered_with_its_policies() -> None:
    work = REGISTRY["engine.run"]
    assert (work.queue, work.lost, work.expired) == ("cpu", operations.lose_runs, operations.expire_runs)


def test_hysteresis_goes_on_from_run_to_run_and_is_restored_before_each_attempt(with_engine: Any) -> None:
    configured(
        engine={"engine_mode": "hysteresis", "timeout_ms": 2000, "hysteresis": {"update_interval_ms": INTERVAL_MS}}
    )
    for n in range(3):
        run = planned(n=n)
        assert carry_out(run) == "completed"
        assert types_of(run) == ["EngineRunStarted", "HysteresisDecisionPublished", "EngineRunCompleted"]
    decisions = [row["event"] for row in outputs() if row["event_type"] == "HysteresisDecisionPublished"]
    resets = [orjson.loads(each)["payload"]["hysteresis_decision"]["transition"] for each in decisions]
    assert [each["reset_due_to_gap"] for each in resets] == [False, False, False]
    states = [orjson.loads(row["state"]) for row in desk.rows("SELECT * FROM engine_states ORDER BY number")]
    assert [state["last_timestamp"] for state in states] == [START_MS + n * INTERVAL_MS for n in range(3)]
    last = planned(n=5)
    assert carry_out(last) == "completed"
    assert events_of(last)[1]["payload"]["hysteresis_decision"]["transition"]["reset_due_to_gap"]


def test_without_snapshot_inputs_the_run_fails_and_no_engine_is_called(with_engine: Any) -> None:
    with_engine("nobody.here")
    configured()
    run = planned("BTC-USD", trade())
    assert carry_out(run) == "failed"
    ended = now(run)
    assert (ended["error_kind"], ended["error_detail"]) == ("missing_snapshot_inputs", "missing SnapshotInputs")
    assert (ended["attempts"], ended["snapshot_ingest_seq"]) == (1, None)
    assert types_of(run) == ["EngineRunStarted", "EngineRunFailed"]


def test_snapshot_inputs_that_come_late_match_no_run(with_engine: Any) -> None:
    """They fall into the next cut, whose timestamp is another one: the delay is the only tool."""
    configured()
    first = planned("BTC-USD", trade())
    late = inputs(START_MS, **FULL)
    second = planned("BTC-USD", late, inputs(START_MS + INTERVAL_MS, **FULL), n=1)
    assert carry_out(first) == "failed"
    assert carry_out(second) == "completed"
    assert now(first)["error_kind"] == "missing_snapshot_inputs"
    assert (now(second)["cut_start_ingest_seq"], now(second)["snapshot_ingest_seq"]) == (2, 3)


def test_of_duplicates_the_one_with_the_highest_number_is_given_to_the_engine(with_engine: Any) -> None:
    with_engine("tests.engine.wild")
    configured("marks")
    path = [str(Path("/nowhere") / name) for name in ("first", "second")]
    events = [inputs(START_MS, "marks", market={"structure_levels": {"path": each}}) for each in path]
    run = planned("marks", *events, events[0], events[1])
    assert carry_out(run) == "waiting"  # it cannot write there, and says so
    assert (
        "/nowhere/second"
        in desk.rows("SELECT body FROM ledger WHERE topic = 'engine_run_waiting'")[0]["body"]["error_detail"]
    )


def test_an_engine_that_raises_is_tried_again_after_the_delays_and_then_the_run_has_failed(
    with_engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with_engine("tests.engine.wild")
    configured("raises", engine_retry={"min_delay_ms": 60_000, "max_delay_ms": 90_000, "max_attempts": 3})
    run = planned("raises")
    for delay in (60, 90):
        assert carry_out(run) == "waiting"
        rests = "SELECT extract(epoch FROM run_at - clock_timestamp())::float AS left FROM jobs"
        assert delay - 10 < desk.rows(rests)[0]["left"] <= delay
        assert carry_out(run) == "not taken"
        due(run)
    with caplog.at_level(logging.WARNING):
        assert carry_out(run) == "failed"
    ended = now(run)
    assert (ended["state"], ended["attempts"], ended["error_kind"]) == ("failed", 3, "engine_failure")
    assert ended["error_detail"].startswith("ValueError: it is wrong in <object object at 0x...>")
    assert [(event["event_type"], event["attempt"]) for event in events_of(run)] == [
        ("EngineRunStarted", 1),
        ("EngineRunFailed", 3),
    ]
    *_, line = [record for record in caplog.records if record.message == "orchestrator.failure"]
    assert (line.failure_domain, line.error_kind) == ("engine", "engine_failure")  # type: ignore[attr-defined]


def test_an_engine_that_loops_is_ended_in_time_and_the_next_run_goes_on(with_engine: Any) -> None:
    with_engine("tests.engine.wild")
    configured("loops", engine_retry={"max_attempts": 1})
    run = planned("loops")
    assert carry_out(run) == "failed"
    assert now(run)["error_kind"] == "engine_timeout"
    following = planned("loops", trade("loops"), n=1)
    assert carry_out(following) == "failed"
    assert now(following)["error_kind"] == "missing_snapshot_inputs"


def test_an_engine_that_eats_all_memory_fails_its_run_and_not_the_worker(with_engine: Any) -> None:
    with_engine("tests.engine.wild")
    configured("grows", engine={"timeout_ms": 20_000, "memory_mb": 256}, engine_retry={"max_attempts": 1})
    run = planned("grows")
    assert carry_out(run) == "failed"
    assert now(run)["error_kind"] == "engine_failure"


def test_inputs_that_no_snapshot_can_be_made_of_fail_at_once(with_engine: Any) -> None:
    configured()
    run = planned("BTC-USD", inputs(START_MS, market="none"))
    assert carry_out(run) == "failed"
    ended = now(run)
    assert (ended["error_kind"], ended["attempts"]) == ("snapshot_build_failure", 1)
    assert (ended["error_detail"], ended["snapshot_ingest_seq"]) == ("normalized.market is no object", 1)


def test_a_job_that_is_gone_or_whose_lane_is_busy_is_not_taken(with_engine: Any) -> None:
    configured()
    first, second = planned(), planned(n=1)
    desk.take(first)
    desk.change("UPDATE jobs SET waits = false WHERE fence IS NULL")
    assert carry_out(second) == "not taken"
    assert job_of(second["id"])["waits"]
    assert tasks.run(job_id=10**9, subject_id="nobody") == "not taken"


def test_whoever_waits_for_a_run_is_told_that_it_has_ended(with_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(hints, "ended", lambda *run_ids, queue: told.append((*run_ids, queue)))
    configured()
    run = planned()
    assert carry_out(run) == "completed"
    assert told == [(run["id"], "cpu")]


# interrupted


@pytest.fixture
def in_background(with_engine: Any, gate: Path) -> Iterator[Callable[[dict[str, Any]], Future[str]]]:
    """Carries a run out up to the gate, in a thread."""
    with_engine("tests.engine.gated")
    with ThreadPoolExecutor(1) as pool:

        def begin(run: dict[str, Any]) -> Future[str]:
            became = pool.submit(carry_out, run)
            eventually(gate.with_suffix(".began").exists, what="the engine has begun")
            return became

        yield begin
        gate.unlink(missing_ok=True)


def gated(gate: Path) -> dict[str, Any]:
    configured(engine={"timeout_ms": 60_000})
    market = {**FULL["market"], "structure_levels": {"gate": str(gate)}}
    return planned("BTC-USD", inputs(START_MS, market=market))


def test_a_shutdown_gives_the_attempt_back_and_it_is_made_again(in_background: Any, gate: Path) -> None:
    run = gated(gate)
    became = in_background(run)
    tasks.keeper.begin_shutdown()
    assert became.result(20) == "given back"
    assert (now(run)["state"], now(run)["attempts"]) == ("waiting", 0)
    assert carry_out(run) == "given back"
    tasks.keeper.shutdown_at = None
    gate.unlink()
    assert carry_out(run) == "completed"
    assert types_of(run) == ["EngineRunStarted", "EngineRunCompleted"]
    assert now(run)["attempts"] == 1


def test_an_attempt_whose_lease_is_lost_is_ended_and_records_nothing(in_background: Any, gate: Path) -> None:
    run = gated(gate)
    became = in_background(run)
    job = job_of(run["id"])
    with statement() as connection:
        held = Held(job["id"], run["id"], job["fence"], job["attempt"], job["max_attempts"])
        assert operations.lose_runs(connection, [held]) == 1
    assert became.result(20) == "lease lost"
    assert now(run)["state"] == "waiting"
    assert types_of(run) == ["EngineRunStarted"]


def test_a_host_that_does_not_keep_the_engine_s_time_is_ended_by_the_keeper(in_background: Any, gate: Path) -> None:
    run = gated(gate)
    desk.change("UPDATE jobs SET timeout_seconds = 1.5")
    became = in_background(run)
    assert became.result(20) == "waiting"
    (told,) = desk.rows("SELECT body FROM ledger WHERE topic = 'engine_run_waiting'")
    assert told["body"]["error_kind"] == "engine_timeout"


def test_an_attempt_whose_time_was_over_before_the_engine_was_called_is_given_back(
    with_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured()
    run = planned()
    look = tasks.look

    def slowly(attempt: Any) -> Any:
        (hold,) = tasks.keeper.holds.values()
        hold.end("timeout")
        return look(attempt)

    monkeypatch.setattr(tasks, "look", slowly)
    assert carry_out(run) == "given back"
    assert (now(run)["state"], now(run)["attempts"]) == ("waiting", 0)


def test_an_outcome_that_comes_too_late_is_kept_as_evidence(with_engine: Any) -> None:
    configured()
    run = planned()
    ghost = desk.take(run)
    desk.change("UPDATE jobs SET fence = nextval('fence_seq')")
    given = tasks.look(ghost)
    with pytest.raises(LeaseLost):
        tasks.end(ghost, given.config, tasks.Outcome(error_kind="engine_timeout", error_detail="too slow"))
    (kept,) = desk.rows("SELECT body FROM ledger WHERE topic = 'engine_run_late_outcome'")
    assert (kept["body"]["error_kind"], kept["body"]["fence"]) == ("engine_timeout", ghost.fence)


def test_an_answer_that_cannot_be_stored_fails_the_attempt(with_engine: Any) -> None:
    configured(engine_retry={"max_attempts": 1})
    run = planned()
    attempt = desk.take(run)
    outcome = tasks.Outcome(result={"regime_output": {"confidence": float("inf")}})
    assert tasks.end(attempt, tasks.look(attempt).config, outcome) == "failed"
    assert now(run)["error_kind"] == "engine_failure"


class Away:
    """A database that cannot answer the first so many times."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error = times, error

    def __call__(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return "recorded"


@pytest.mark.parametrize("error", [Unavailable("away"), Conflict("locked")])
def test_a_database_that_is_away_is_waited_for(time: Clock, error: Exception) -> None:
    assert tasks.patiently(Away(60, error)) == "recorded"


def test_one_that_stays_away_is_not_waited_for_without_end(time: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.now
    with pytest.raises(Unavailable):
        tasks.patiently(Away(10**6, Conflict("locked")))
    assert tasks.PATIENCE_SECONDS <= time.now - began < tasks.PATIENCE_SECONDS + 5
    monkeypatch.setattr(tasks, "keeper", Keeper())
    tasks.keeper.begin_shutdown()
    began = time.now
    with pytest.raises(Unavailable):
        tasks.patiently(Away(10**6, Unavailable("away")))
    assert time.now - began < tasks.PATIENCE_AT_SHUTDOWN + 2


def test_a_lost_lease_is_not_waited_for() -> None:
    with pytest.raises(LeaseLost):
        tasks.patiently(Away(1, LeaseLost("gone")))


def test_a_run_that_nobody_can_record_is_left_to_the_reaper(with_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    configured()
    run = planned()
    monkeypatch.setattr(tasks, "PATIENCE_SECONDS", 0.0)
    gone = threading.Event()

    def away(*_: Any) -> None:
        gone.set()
        raise Unavailable("away")

    monkeypatch.setattr(tasks, "record", away)
    assert carry_out(run) == "not recorded"
    assert gone.is_set()
    assert now(run)["state"] == "started"
