"""The runs of one message: taken, looked at and settled together, and none spoilt by another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest

from models.engine.queries import find_state, find_states
from models.kernel.errors import Conflict, Unavailable
from models.kernel.session import statement
from orchestrator_tasks import hints
from orchestrator_tasks.engine import message, tasks, together
from tests.engine import desk
from tests.engine.desk import DELAY_MS, INTERVAL_MS, START_MS, inputs, job_of, plan, running, trade
from tests.engine.test_runs_tasks import FULL, now, types_of, with_engine
from tests.service.waiting import eventually

__all__ = ["with_engine"]

SYMBOLS = ["A-USD", "B-USD", "C-USD", "D-USD"]
HYSTERESIS = {"engine_mode": "hysteresis", "timeout_ms": 2000, "hysteresis": {"update_interval_ms": INTERVAL_MS}}

Runs = list[dict[str, Any]]


def planned_of(symbols: Sequence[str], *ticks: int, events: Sequence[Any] = (), **sections: Any) -> Runs:
    """A run of each symbol for each of these ticks, over these events or inputs that fit, in the order planned."""
    running(
        sources=[{"source_id": "binance", "symbols": list(symbols)}],
        **{"engine": {"timeout_ms": 5000, "memory_mb": 256}, **sections},
    )
    for n in ticks or (0,):
        at = START_MS + n * INTERVAL_MS
        desk.append_of(symbols, *(events or [inputs(at, symbol, **FULL) for symbol in symbols]), now_ms=at)
        plan(at + DELAY_MS + 1)
    return desk.runs()


def carry_out(runs: Runs) -> str:
    """As one message that names them all."""
    first, *others = [(job_of(run["id"])["id"], run["id"], None) for run in runs]
    return str(tasks.run(first[0], first[1], others))


def states(runs: Runs) -> list[str]:
    return [now(run)["state"] for run in runs]


def noting(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """How many each call of this act was for."""
    noted: list[int] = []
    act = getattr(together, name)
    monkeypatch.setattr(together, name, lambda some: noted.append(len(some)) or act(some))
    return noted


def test_the_runs_of_a_message_are_taken_looked_at_and_settled_together(
    with_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = [noting(monkeypatch, name) for name in ("take", "look", "settle")]
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(hints, "ended", lambda *run_ids, queue: told.append((*run_ids, queue)))
    runs = planned_of(SYMBOLS)
    assert carry_out(runs) == "completed 4"
    assert noted == [[4], [4], [4]]
    assert told == [(*(run["id"] for run in runs), "cpu")]
    for run, symbol in zip(runs, SYMBOLS, strict=True):
        ended = now(run)
        assert (ended["state"], ended["symbol"], ended["attempts"]) == ("completed", symbol, 1)
        assert types_of(run) == ["EngineRunStarted", "EngineRunCompleted"]
    assert [now(run)["snapshot_ingest_seq"] for run in runs] == [1, 2, 3, 4]
    assert desk.jobs() == []
    assert not tasks.keeper.holds


def test_each_decision_is_told_before_its_completion_and_each_state_is_kept(with_engine: Any) -> None:
    runs = planned_of(SYMBOLS, engine=HYSTERESIS)
    assert carry_out(runs) == "completed 4"
    for run in runs:
        assert types_of(run) == ["EngineRunStarted", "HysteresisDecisionPublished", "EngineRunCompleted"]
    kept = desk.rows("SELECT * FROM engine_states ORDER BY number")
    assert [(row["run_id"], row["symbol"]) for row in kept] == [(run["id"], run["symbol"]) for run in runs]


def decisions() -> list[dict[str, Any]]:
    told = [orjson.loads(row["event"]) for row in desk.outputs() if row["event_type"] == "HysteresisDecisionPublished"]
    return [event["payload"]["hysteresis_decision"] for event in told]


def test_the_states_before_the_runs_of_a_message_are_each_symbol_s_own(with_engine: Any) -> None:
    runs = planned_of(SYMBOLS, 0, 1, engine=HYSTERESIS)
    assert carry_out(runs[:4]) == "completed 4"
    assert carry_out(runs[4:]) == "completed 4"
    stamps = [orjson.loads(row["state"])["last_timestamp"] for row in desk.rows("SELECT state FROM engine_states")]
    assert sorted(stamps) == [START_MS] * 4 + [START_MS + INTERVAL_MS] * 4
    assert [each["transition"]["reset_due_to_gap"] for each in decisions()] == [False] * 8
    symbols = [each["selected_output"]["symbol"] for each in decisions()]
    assert symbols == SYMBOLS * 2


def test_states_that_are_read_together_are_those_that_are_read_one_by_one(with_engine: Any) -> None:
    runs = planned_of(SYMBOLS[:2], 0, 1, 2, engine=HYSTERESIS)
    for of_tick in (runs[:2], runs[2:4]):
        carry_out(of_tick)
    desk.change("UPDATE engine_runs SET state_epoch = 1 WHERE id = :id", id=runs[5]["id"])
    runs = desk.runs()
    with statement() as connection:
        together_read = find_states(connection, runs)
        alone = {run["id"]: find_state(connection, run["symbol"], run["number"], run["state_epoch"]) for run in runs}
    assert together_read == {run_id: state for run_id, state in alone.items() if state is not None}
    assert [run["id"] in together_read for run in runs] == [False, False, True, True, True, False]


def test_two_runs_of_one_symbol_in_a_message_keep_their_order_and_go_on_from_each_other(with_engine: Any) -> None:
    first, other, second = planned_of(["A-USD", "B-USD"], 0, 1, engine=HYSTERESIS)[:3]
    assert (first["symbol"], second["symbol"]) == ("A-USD", "A-USD")
    assert carry_out([first, other, second]) == "completed 3"
    outputs = [row["run_id"] for row in desk.outputs() if row["symbol"] == "A-USD"]
    assert outputs == [first["id"]] * 3 + [second["id"]] * 3
    kept = desk.rows("SELECT state FROM engine_states WHERE symbol = 'A-USD' ORDER BY number")
    assert [orjson.loads(row["state"])["last_timestamp"] for row in kept] == [START_MS, START_MS + INTERVAL_MS]
    assert not any(each["transition"]["reset_due_to_gap"] for each in decisions())


def test_a_job_that_is_gone_or_named_twice_is_not_taken_and_the_others_are(with_engine: Any) -> None:
    runs = planned_of(SYMBOLS)
    gone, *others = runs
    job_id = job_of(gone["id"])["id"]
    desk.complete(desk.take(gone))
    orders = [(job_of(run["id"])["id"], run["id"], None) for run in others]
    assert tasks.run(job_id, gone["id"], [*orders, orders[0]]) == "not taken 2, completed 3"


def test_one_whose_lane_is_busy_waits_for_it_and_the_others_are_carried_out(with_engine: Any) -> None:
    held, other, waiting = planned_of(["A-USD", "B-USD"], 0, 1)[:3]
    desk.take(held)
    assert carry_out([waiting, other]) == "not taken 1, completed 1"
    assert job_of(waiting["id"])["waits"]


def lose(run: dict[str, Any]) -> None:
    desk.change("UPDATE jobs SET fence = nextval('fence_seq') WHERE subject_id = :id", id=run["id"])


@pytest.mark.parametrize("engine", [HYSTERESIS, {"engine_mode": "truth"}])
def test_a_lease_that_is_lost_in_the_middle_spoils_its_own_run_alone(
    with_engine: Any, monkeypatch: pytest.MonkeyPatch, engine: dict[str, Any]
) -> None:
    runs = planned_of(SYMBOLS, engine=engine)
    settle = together.settle

    def too_late(made: Any) -> Any:
        lose(runs[1])
        return settle(made)

    monkeypatch.setattr(together, "settle", too_late)
    assert carry_out(runs) == "completed 3, lease lost 1"
    assert states(runs) == ["completed", "started", "completed", "completed"]
    assert types_of(runs[1]) == ["EngineRunStarted"]
    (kept,) = desk.rows("SELECT subject_id FROM ledger WHERE topic = 'engine_run_late_outcome'")
    assert kept["subject_id"] == runs[1]["id"]


@pytest.mark.parametrize(
    "error", [Unavailable("away", code="database_unavailable"), Conflict("held", code="locked"), TypeError("no JSON")]
)
@pytest.mark.parametrize("act", ["take", "look", "settle"])
def test_a_statement_that_fails_for_all_is_followed_by_one_for_each(
    with_engine: Any, monkeypatch: pytest.MonkeyPatch, act: str, error: Exception
) -> None:
    def spoilt(_: Any) -> Any:
        raise error

    runs = planned_of(SYMBOLS)
    monkeypatch.setattr(together, act, spoilt)
    assert carry_out(runs) == "completed 4"
    assert [types_of(run) for run in runs] == [["EngineRunStarted", "EngineRunCompleted"]] * 4
    assert not tasks.keeper.holds


def test_an_outcome_that_cannot_be_recorded_keeps_none_of_its_companions_from_it(
    with_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = planned_of(SYMBOLS)
    record = tasks.record

    def refusing(attempt: Any, *more: Any) -> Any:
        if attempt.run_id == runs[1]["id"]:
            raise TypeError("no JSON")
        return record(attempt, *more)

    monkeypatch.setattr(together, "settle", lambda made: [None] * len(made))
    monkeypatch.setattr(tasks, "record", refusing)
    assert carry_out(runs) == "completed 3, not recorded 1"
    assert states(runs) == ["completed", "started", "completed", "completed"]


def test_an_answer_that_has_no_json_fails_its_own_run_alone(with_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = planned_of(SYMBOLS, engine_retry={"max_attempts": 1})
    decide = tasks.decide

    def odd(attempt: Any, *more: Any) -> Any:
        if attempt.run_id == runs[2]["id"]:
            return tasks.Outcome(result={"regime_output": {"confidence": float("inf")}})
        return decide(attempt, *more)

    monkeypatch.setattr(tasks, "decide", odd)
    assert carry_out(runs) == "completed 3, failed 1"
    assert now(runs[2])["error_kind"] == "engine_failure"


def test_a_run_that_raises_lets_those_behind_it_end(with_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = planned_of(SYMBOLS)
    decide = tasks.decide

    def fails(attempt: Any, *more: Any) -> Any:
        if attempt.run_id == runs[1]["id"]:
            raise ZeroDivisionError
        return decide(attempt, *more)

    monkeypatch.setattr(tasks, "decide", fails)
    with pytest.raises(ZeroDivisionError):
        carry_out(runs)
    assert states(runs) == ["completed", "started", "completed", "completed"]
    assert not tasks.keeper.holds  # so that its lease runs out


def test_what_fails_and_what_is_tried_again_are_recorded_beside_what_completes(with_engine: Any) -> None:
    with_engine("tests.engine.wild")
    symbols = ["calm", "raises", "silent"]
    events = [inputs(START_MS, "calm", **FULL), inputs(START_MS, "raises", **FULL), trade("silent")]
    runs = planned_of(symbols, events=events)
    assert carry_out(runs) == "completed 1, waiting 1, failed 1"
    assert [(now(run)["state"], now(run)["attempts"]) for run in runs] == [
        ("completed", 1),
        ("waiting", 1),
        ("failed", 1),
    ]
    assert now(runs[2])["error_kind"] == "missing_snapshot_inputs"


# one that takes long


@pytest.fixture
def in_background(with_engine: Any, gate: Path) -> Iterator[Callable[[Runs], Future[str]]]:
    """Carries runs out in a thread, up to the one that finds its gate shut."""
    with_engine("tests.engine.gated")
    with ThreadPoolExecutor(1) as pool:

        def begin(runs: Runs) -> Future[str]:
            became = pool.submit(carry_out, runs)
            eventually(gate.with_suffix(".began").exists, what="the engine has begun")
            return became

        yield begin
        gate.unlink(missing_ok=True)


def gated(gate: Path, shut: str) -> Runs:
    """A run of each symbol, of which one finds the gate shut."""

    def of(symbol: str) -> Any:
        path = gate if symbol == shut else gate.with_name("open")
        return inputs(START_MS, symbol, market={**FULL["market"], "structure_levels": {"gate": str(path)}})

    return planned_of(SYMBOLS, engine={"timeout_ms": 60_000}, events=[of(symbol) for symbol in SYMBOLS])


def test_behind_one_that_takes_long_nobody_waits_and_no_attempt_is_counted(
    in_background: Any, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[message.Message] = []
    monkeypatch.setattr(tasks, "Message", lambda *given: made.append(message.Message(*given)) or made[-1])
    monkeypatch.setattr(message, "SOON_SECONDS", 60.0)
    runs = gated(gate, shut="B-USD")
    became = in_background(runs)
    assert states(runs) == ["started"] * 4
    made[0].wind_up()  # as the thread beside it does, once it has begun
    assert states(runs) == ["completed", "started", "waiting", "waiting"]
    for run in runs[2:]:
        job = job_of(run["id"])
        assert (now(run)["attempts"], job["attempt"], job["fence"], job["dispatched_at"]) == (0, 0, None, None)
    assert list(tasks.keeper.holds) == [job_of(runs[1]["id"])["fence"]]
    gate.unlink()
    assert became.result(20) == "handed back 2, completed 2"
    assert carry_out(runs[2:]) == "completed 2"
    for run in runs:
        assert now(run)["attempts"] == 1
        assert types_of(run) == ["EngineRunStarted", "EngineRunCompleted"]


def test_what_waits_for_its_turn_keeps_its_lease(
    in_background: Any, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message, "SOON_SECONDS", 60.0)
    runs = gated(gate, shut="B-USD")  # their leases last for a second
    became = in_background(runs)
    before = {job["id"]: job["lease_until"] for job in desk.jobs()}
    assert len(before) == 4  # the first has ended and is not recorded yet

    def are_renewed() -> bool:
        return all(job["lease_until"] > before[job["id"]] for job in desk.jobs())

    eventually(are_renewed, what="all leases are renewed")
    gate.unlink()
    assert became.result(20) == "completed 4"


def test_what_was_not_taken_goes_back_to_the_backlog(
    in_background: Any, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(_: Any) -> Any:
        raise Conflict("held", code="locked")

    monkeypatch.setattr(message, "SOON_SECONDS", 0.3)
    monkeypatch.setattr(together, "take", spoilt)
    runs = gated(gate, shut="A-USD")
    desk.change("UPDATE jobs SET dispatched_at = clock_timestamp(), dispatches = 1")
    became = in_background(runs)
    eventually(
        lambda: [job_of(run["id"])["dispatched_at"] for run in runs[1:]] == [None] * 3, what="the others go back"
    )
    gate.unlink()
    assert became.result(20) == "handed back 3, completed 1"
    assert states(runs) == ["completed", "planned", "planned", "planned"]


def test_a_shutdown_gives_the_whole_message_back(in_background: Any, gate: Path) -> None:
    runs = gated(gate, shut="A-USD")
    became = in_background(runs)
    tasks.keeper.begin_shutdown()
    assert sorted(became.result(20).split(", ")) == ["given back 1", "handed back 3"]
    assert [(now(run)["state"], now(run)["attempts"]) for run in runs] == [("waiting", 0)] * 4
    assert [job["fence"] for job in desk.jobs()] == [None] * 4


def test_a_lease_that_is_lost_while_a_run_waits_for_its_turn_begins_nothing(
    in_background: Any, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message, "SOON_SECONDS", 60.0)
    runs = gated(gate, shut="A-USD")
    became = in_background(runs)
    lost = tasks.keeper.holds[job_of(runs[2]["id"])["fence"]]
    lose(runs[2])
    eventually(lambda: lost.interrupted, what="the keeper finds it out")
    gate.unlink()
    assert became.result(20) == "lease lost 1, completed 3"
    assert types_of(runs[2]) == ["EngineRunStarted"]


def test_what_cannot_be_given_back_is_left_to_the_reaper(
    in_background: Any, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Event()

    def away(_: Any) -> None:
        tried.set()
        raise Unavailable("away", code="database_unavailable")

    monkeypatch.setattr(message, "SOON_SECONDS", 0.3)
    monkeypatch.setattr(together, "give_back", away)
    runs = gated(gate, shut="A-USD")
    became = in_background(runs)
    assert tried.wait(20)
    gate.unlink()
    assert became.result(20) == "handed back 3, completed 1"
    assert states(runs) == ["completed", "started", "started", "started"]
    assert not tasks.keeper.holds
