"""What may be done to a run: taken, settled, retried, released, lost; each told once, under a fence."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from sqlalchemy import Connection

from models.engine import events, operations, transitions
from models.engine.canonical import NotSerialisable, canonical
from models.engine.operations import WORKERS_LOST, Attempt
from models.engine.queries import find_state, get_run, list_runs, live_runs
from models.kernel.backlog import wake_lanes
from models.kernel.errors import LeaseLost, NotFound
from models.kernel.jobs import Held
from models.kernel.session import statement, transaction
from models.kernel.transition import LaneBusy
from tests.engine import desk
from tests.engine.desk import (
    DELAY_MS,
    INTERVAL_MS,
    OUTPUT,
    START_MS,
    inputs,
    job_of,
    outputs,
    plan,
    running,
    take,
    trade,
)
from tests.kernel.races import meanwhile

DECISION = {
    "selected_output": OUTPUT,
    "effective_confidence": 0.5,
    "transition": {"stable_regime": None, "candidate_count": 0, "flipped": False},
}
STATE = {"stable_output": OUTPUT, "candidate_count": 2}
HYSTERESIS = {"hysteresis_decision": DECISION, "state": STATE}
ODD: dict[str, Any] = {
    **OUTPUT,
    "confidence": -0.0,
    "drivers": ['é€🐈 " \\ \n \u2028', "/", ""],
    "numbers": [1e16, 1e22, 1.5e-7, 0.1, 2**63 - 1, -(2**63), 1.0, 123456789.123456789, 5e-324],
    "b": {"zz": None, "a": True, "é": []},
}


def run_now(run: dict[str, Any]) -> dict[str, Any]:
    with statement() as connection:
        return dict(get_run(connection, run["id"]))


@pytest.fixture
def run(database: str) -> dict[str, Any]:
    running()
    return desk.planned_run()


@pytest.fixture
def hysteresis_run(database: str) -> dict[str, Any]:
    running(engine={"engine_mode": "hysteresis"})
    return desk.planned_run()


def told(topic: str) -> list[dict[str, Any]]:
    return desk.rows("SELECT * FROM ledger WHERE topic = :topic ORDER BY seq", topic=topic)


def events_of() -> list[dict[str, Any]]:
    return [orjson.loads(row["event"]) for row in outputs()]


def without_time(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != events.OPERATIONAL}


def test_a_run_is_taken_and_completed_and_both_are_told(run: dict[str, Any]) -> None:
    attempt = take(run)
    assert (attempt.number, attempt.timeout_seconds) == (1, 2 + 45)
    started = run_now(run)
    assert (started["state"], started["attempts"], started["completed_ts_ms"]) == ("started", 0, None)
    desk.complete(attempt)
    ended = run_now(run)
    assert (ended["state"], ended["attempts"], ended["error_kind"]) == ("completed", 1, None)
    assert ended["completed_ts_ms"] >= ended["started_ts_ms"] == started["started_ts_ms"]
    assert desk.jobs() == []
    assert [row["event_type"] for row in outputs()] == ["EngineRunStarted", "EngineRunCompleted"]
    assert without_time(events_of()[0]) == events.started_event(ended)
    assert without_time(events_of()[1]) == events.completed_event(ended, OUTPUT)


def check_that_outputs_are_the_ledger_s() -> None:
    """Byte for byte, under the same numbers, in the ledger's topics."""
    rows = desk.rows(
        """
        SELECT o.*, l.body, l.topic FROM engine_outputs o
          FULL JOIN (SELECT * FROM ledger WHERE topic = ANY(:topics)) l USING (seq) ORDER BY seq
        """,
        topics=list(events.PUBLIC_TOPICS),
    )
    assert rows
    for row in rows:
        assert canonical(row["body"]) == row["event"]
        assert canonical(orjson.loads(row["event"])) == row["event"]
        assert row["body"]["event_type"] == row["event_type"]
        assert (row["body"]["run_id"], row["body"]["symbol"]) == (row["run_id"], row["symbol"])
        assert row["body"]["engine_timestamp_ms"] == row["engine_timestamp_ms"]


def test_what_is_told_is_what_is_put_out_byte_for_byte(database: str) -> None:
    odd = ["é", "€🐈", 'a"b\\c', "Z", "a", "aa", "z z", "ß", "ﾡ", "😀"]
    running(engine={"engine_mode": "hysteresis"})
    run = desk.planned_run(*(trade(event_type=name) for name in odd), inputs(START_MS))
    attempt = take(run)
    desk.complete(attempt, regime_output=ODD, hysteresis_decision={**DECISION, "selected_output": ODD}, state=STATE)
    ended = run_now(run)
    assert ended["counts_by_event_type"] == {**dict.fromkeys(odd, 1), "SnapshotInputs": 1}
    started, decided, completed = events_of()
    assert without_time(started) == events.started_event(ended)
    assert without_time(decided) == orjson.loads(
        canonical(events.decision_event(ended, {**DECISION, "selected_output": ODD}))
    )
    assert without_time(completed) == orjson.loads(canonical(events.completed_event(ended, ODD)))
    check_that_outputs_are_the_ledger_s()


def test_a_failure_is_told_with_its_kind_and_detail(run: dict[str, Any]) -> None:
    desk.fail(take(run), "engine_timeout", 'too "slow"\n€')
    ended = run_now(run)
    assert (ended["state"], ended["error_kind"], ended["error_detail"]) == ("failed", "engine_timeout", 'too "slow"\n€')
    assert without_time(events_of()[1]) == events.failed_event(ended)
    assert told("engine_run_failed")[0]["reason"] == "engine_timeout"
    check_that_outputs_are_the_ledger_s()


@pytest.mark.parametrize("detail", ["x" * 900, "nul \x00 here", "half \ud800 pair", "\ud800" * 600])
def test_a_detail_is_kept_as_far_as_it_is_short_and_storable(run: dict[str, Any], detail: str) -> None:
    desk.fail(take(run), detail=detail)
    kept = run_now(run)["error_detail"]
    assert 0 < len(kept) <= 500
    assert "\x00" not in kept
    check_that_outputs_are_the_ledger_s()


def test_in_hysteresis_mode_the_decision_comes_before_the_completion_and_the_state_is_kept(
    hysteresis_run: dict[str, Any],
) -> None:
    desk.complete(take(hysteresis_run), **HYSTERESIS)
    assert [row["event_type"] for row in outputs()] == [
        "EngineRunStarted",
        "HysteresisDecisionPublished",
        "EngineRunCompleted",
    ]
    ended = run_now(hysteresis_run)
    assert without_time(events_of()[1]) == events.decision_event(ended, DECISION)
    (state,) = desk.rows("SELECT * FROM engine_states")
    assert state["state"] == canonical(STATE)
    assert (state["run_id"], state["number"], state["symbol"]) == (ended["id"], ended["number"], "BTC-USD")
    with statement() as connection:
        assert find_state(connection, "BTC-USD", ended["number"]) is None
        assert find_state(connection, "BTC-USD", ended["number"] + 1) == canonical(STATE)
        assert find_state(connection, "ETH-USD", ended["number"] + 1) is None
    check_that_outputs_are_the_ledger_s()


def test_an_answer_that_is_not_serialisable_changes_nothing(run: dict[str, Any]) -> None:
    attempt = take(run)
    with pytest.raises(NotSerialisable):
        desk.complete(attempt, regime_output={**OUTPUT, "confidence": float("nan")})
    assert run_now(run)["state"] == "started"
    desk.complete(attempt)


def test_a_retry_waits_counts_the_attempt_and_starts_without_being_told_again(run: dict[str, Any]) -> None:
    attempt = take(run)
    first_started = run_now(run)["started_ts_ms"]
    desk.retry(attempt)
    waiting = run_now(run)
    assert (waiting["state"], waiting["attempts"], waiting["error_kind"]) == ("waiting", 1, None)
    again = take(run)
    assert again.number == 2
    desk.complete(again)
    ended = run_now(run)
    assert (ended["attempts"], ended["started_ts_ms"]) == (2, first_started)
    assert [(e["event_type"], e["attempt"]) for e in events_of()] == [
        ("EngineRunStarted", 1),
        ("EngineRunCompleted", 2),
    ]
    assert desk.topics() == [
        "engine_run_planned",
        "engine_run_started",
        "engine_run_waiting",
        "engine_run_resumed",
        "engine_run_completed",
    ]
    (retried,) = told("engine_run_waiting")
    assert (retried["reason"], retried["body"]["error_detail"]) == ("engine_failure", "it broke")
    check_that_outputs_are_the_ledger_s()


def test_a_run_that_rests_is_not_taken_before_its_time_and_its_lane_waits(run: dict[str, Any]) -> None:
    desk.append(trade(), now_ms=START_MS + INTERVAL_MS + 2 * DELAY_MS)
    plan(START_MS + 2 * INTERVAL_MS + DELAY_MS + 1)
    desk.retry(take(run), delay_ms=3_600_000)
    with statement() as connection:
        assert operations.take_run(connection, job_of(run["id"])["id"], desk.WORKER) is None
        assert wake_lanes(connection) == 0
    assert [(job["subject_id"] == run["id"], job["waits"]) for job in desk.jobs()] == [(True, False), (False, True)]


def test_a_released_run_repeats_the_same_attempt(run: dict[str, Any]) -> None:
    attempt = take(run)
    with statement() as connection:
        assert operations.release_run(connection, attempt, desk.WORKER)
        assert not operations.release_run(connection, attempt, desk.WORKER)
    assert run_now(run)["state"] == "waiting"
    again = take(run)
    assert (again.number, again.fence > attempt.fence) == (1, True)
    assert job_of(run["id"])["attempt"] == 1
    desk.complete(again)
    assert run_now(run)["attempts"] == 1
    assert [e["event_type"] for e in events_of()] == ["EngineRunStarted", "EngineRunCompleted"]


def held(attempt: Attempt) -> list[Held]:
    job = job_of(attempt.run_id)
    return [Held(job["id"], job["subject_id"], job["fence"], job["attempt"], job["max_attempts"])]


def lose(attempt: Attempt) -> int:
    with statement() as connection:
        return operations.lose_runs(connection, held(attempt))


def test_a_worker_that_dies_uses_up_no_attempt(run: dict[str, Any]) -> None:
    desk.retry(take(run))
    assert lose(take(run)) == 1
    assert (run_now(run)["state"], run_now(run)["attempts"]) == ("waiting", 1)
    again = take(run)
    assert again.number == 2
    desk.complete(again)
    assert run_now(run)["attempts"] == 2


def test_a_run_over_which_too_many_workers_die_fails_and_says_so(run: dict[str, Any]) -> None:
    desk.retry(take(run))
    for n in range(transitions.LOST_ATTEMPTS):
        assert run_now(run)["state"] == "waiting", n
        assert lose(take(run)) == 1
    ended = run_now(run)
    assert (ended["state"], ended["error_kind"], ended["error_detail"]) == ("failed", "engine_failure", WORKERS_LOST)
    assert ended["attempts"] == 2
    assert desk.jobs() == []
    assert without_time(events_of()[-1]) == events.failed_event(ended)


def test_releases_do_not_count_as_lost_workers(run: dict[str, Any]) -> None:
    for _ in range(transitions.LOST_ATTEMPTS + 3):
        with statement() as connection:
            operations.release_run(connection, take(run), desk.WORKER)
    assert lose(take(run)) == 1
    assert run_now(run)["state"] == "waiting"


# fences


def late(connection: Connection, attempt: Attempt) -> Any:
    result = {"regime_output": OUTPUT, **HYSTERESIS}
    return operations.settle_completed(connection, attempt, result, desk.WORKER)


def test_a_lost_lease_cannot_complete_nor_fail_nor_retry(run: dict[str, Any]) -> None:
    ghost = take(run)
    lose(ghost)
    before = outputs()
    for act in (lambda: desk.complete(ghost), lambda: desk.fail(ghost), lambda: desk.retry(ghost)):
        with pytest.raises(LeaseLost):
            act()
    assert outputs() == before
    desk.complete(take(run))
    assert run_now(run)["state"] == "completed"


def test_a_ghost_s_decision_is_not_told(hysteresis_run: dict[str, Any]) -> None:
    ghost = take(hysteresis_run)
    lose(ghost)
    live = take(hysteresis_run)
    with pytest.raises(LeaseLost):
        desk.complete(ghost, **HYSTERESIS)
    assert [row["event_type"] for row in outputs()] == ["EngineRunStarted"]
    desk.complete(live, **HYSTERESIS)
    assert len(outputs()) == 3


def test_what_a_ghost_reports_is_kept_as_evidence(run: dict[str, Any]) -> None:
    ghost = take(run)
    lose(ghost)
    with statement() as connection:
        operations.keep_evidence(connection, ghost, {"error_kind": "engine_failure"}, desk.WORKER)
    (kept,) = told("engine_run_late_outcome")
    assert kept["body"]["fence"] == ghost.fence
    assert (kept["reason"], kept["to_state"]) == ("lease_lost", None)
    assert run_now(run)["state"] == "waiting"


def test_the_reaper_and_a_settle_at_once_leave_one_of_both(hysteresis_run: dict[str, Any]) -> None:
    attempt = take(hysteresis_run)
    jobs = held(attempt)

    def settle(connection: Connection) -> Any:
        return late(connection, attempt)

    _, reaped = meanwhile(settle, lambda c: operations.lose_runs(c, jobs))
    assert reaped == 0
    assert run_now(hysteresis_run)["state"] == "completed"
    assert len(outputs()) == 3


def test_a_settle_that_waits_for_the_reaper_is_too_late(hysteresis_run: dict[str, Any]) -> None:
    attempt = take(hysteresis_run)
    jobs = held(attempt)

    def settle(_connection: Connection) -> str:
        try:
            desk.complete(attempt, **HYSTERESIS)
        except LeaseLost:
            return "too late"
        return "settled"

    assert meanwhile(lambda c: operations.lose_runs(c, jobs), settle) == (1, "too late")
    assert run_now(hysteresis_run)["state"] == "waiting"
    assert [row["event_type"] for row in outputs()] == ["EngineRunStarted"]


def test_of_two_workers_who_take_at_once_one_has_it(run: dict[str, Any]) -> None:
    job_id = job_of(run["id"])["id"]
    one, other = meanwhile(
        lambda c: operations.take_run(c, job_id, "one"), lambda c: operations.take_run(c, job_id, "other")
    )
    assert one is not None
    assert other is None
    assert len(outputs()) == 1


def test_two_runs_of_a_symbol_are_never_at_work_together(run: dict[str, Any]) -> None:
    desk.append(trade(), now_ms=START_MS + INTERVAL_MS + 2 * DELAY_MS)
    plan(START_MS + 2 * INTERVAL_MS + DELAY_MS + 1)
    first, second = (r for r in desk.runs() if r["symbol"] == "BTC-USD")
    take(first)
    desk.change("UPDATE jobs SET waits = false WHERE fence IS NULL")
    with pytest.raises(LaneBusy):
        take(second)


def test_a_slow_symbol_holds_up_no_other(database: str) -> None:
    running()
    for n in range(4):
        desk.append(trade(), trade("ETH-USD"), now_ms=START_MS + n * INTERVAL_MS)
    plan(START_MS + 3 * INTERVAL_MS + DELAY_MS + 1)
    slow, fast = ([r for r in desk.runs() if r["symbol"] == symbol] for symbol in desk.SYMBOLS)
    take(slow[0])
    for run in fast:
        desk.complete(take(run))
    assert {run["state"] for run in desk.runs() if run["symbol"] == "ETH-USD"} == {"completed"}
    assert [run["state"] for run in desk.runs() if run["symbol"] == "BTC-USD"] == ["started", *["planned"] * 3]


# reading


def test_runs_are_listed_newest_first_by_filters_and_position(database: str) -> None:
    running()
    for n in range(3):
        desk.append(trade(), trade("ETH-USD"), now_ms=START_MS + n * INTERVAL_MS)
    plan(START_MS + 2 * INTERVAL_MS + DELAY_MS + 1)
    desk.complete(take(desk.runs()[0]))
    with statement() as connection:
        every = [row["number"] for row in list_runs(connection, {}, limit=10)]
        assert every == sorted(every, reverse=True)
        assert [row["number"] for row in list_runs(connection, {}, limit=2, before=every[1])] == every[2:4]
        found = list_runs(connection, {"symbol": "BTC-USD", "state": "completed"}, limit=10)
        assert [row["id"] for row in found] == [desk.runs()[0]["id"]]
        assert len(connection.execute(live_runs()).all()) == len(every) - 1


def test_a_run_that_is_none_is_not_found(database: str) -> None:
    with statement() as connection, pytest.raises(NotFound):
        get_run(connection, "f" * 64)


def test_a_transaction_that_is_rolled_back_tells_nothing(hysteresis_run: dict[str, Any]) -> None:
    attempt = take(hysteresis_run)

    def die() -> None:
        with transaction() as connection:
            late(connection, attempt)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        die()
    assert run_now(hysteresis_run)["state"] == "started"
    assert len(outputs()) == 1
    assert desk.rows("SELECT * FROM engine_states") == []
