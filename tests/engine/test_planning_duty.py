"""The planner as a duty of the tick: it stays for what is about to be due, and comes again for what it could not do."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import text

import celeryconfig
from models.engine.planning import Pass
from models.engine.queries import get_now
from models.kernel import clock
from models.kernel.errors import Conflict
from models.kernel.session import statement, transaction
from orchestrator_tasks import hints
from orchestrator_tasks.engine import planner
from orchestrator_tasks.keeper import Keeper
from orchestrator_tasks.schedules import DUTIES
from tests.engine import desk


@pytest.fixture
def sent(database: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The hints that were sent."""
    kept: list[Any] = []
    monkeypatch.setattr(hints, "send", lambda *each: kept.extend(each))
    monkeypatch.setattr(planner, "keeper", Keeper())
    return kept


def database_now() -> int:
    with statement() as connection:
        return get_now(connection)


def due_in(milliseconds: int) -> None:
    """An engine that runs, and whose next tick is due then."""
    desk.configure()
    desk.start()
    desk.append(desk.trade(), now_ms=1)
    desk.change("UPDATE engine_control SET next_tick_ms = :at", at=database_now() + milliseconds)


def test_the_duty_is_one_of_the_tick_s_each_second() -> None:
    assert DUTIES["engine"] is planner.plan
    assert celeryconfig.SCHEDULES["engine"] == 1.0


def test_it_plans_what_is_due_and_reminds_the_dispatcher(sent: list[Any]) -> None:
    due_in(-5)
    planner.plan()
    assert len(desk.runs()) == 1
    assert [channel for channel, _ in sent] == ["orchestrator:work"]


def test_it_stays_for_a_tick_that_is_due_within_the_second_and_plans_it_then(sent: list[Any]) -> None:
    due_in(600)
    planner.plan()
    (run,) = desk.runs()
    assert 0 < desk.engine_row()["lag_ms"] < 500
    assert run["planned_ts_ms"] == desk.engine_row()["last_tick_ms"]


def test_it_does_not_stay_for_a_later_one(sent: list[Any]) -> None:
    due_in(5000)
    began = clock.monotonic()
    planner.plan()
    assert clock.monotonic() - began < planner.WAITS_SECONDS
    assert desk.runs() == []


def test_an_engine_that_does_not_run_costs_a_look(sent: list[Any]) -> None:
    planner.plan()
    assert sent == []
    assert desk.engine_row()["next_tick_ms"] is None


def test_it_makes_up_for_more_than_one_pass_does(sent: list[Any]) -> None:
    due_in(-45 * desk.INTERVAL_MS + 5000)
    planner.plan()
    assert desk.engine_row()["ticks"] == 45


def test_at_a_shutdown_it_plans_nothing_more(sent: list[Any]) -> None:
    due_in(-5)
    planner.keeper.begin_shutdown()
    planner.plan()
    assert desk.runs() == []


def test_a_lock_that_somebody_holds_is_no_failure(
    sent: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    due_in(-5)

    def locked() -> Pass:
        with transaction() as holder, statement() as other:
            holder.execute(text("SELECT 1 FROM engine_control FOR UPDATE"))
            other.exec_driver_sql("SET lock_timeout = 50")
            other.execute(text("SELECT 1 FROM engine_control FOR UPDATE"))
        raise AssertionError("it was not locked")

    with pytest.raises(Conflict):
        locked()
    monkeypatch.setattr(planner, "plan_runs", locked)
    with caplog.at_level(logging.WARNING):
        planner.plan()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_missed_ticks_are_warned_of(sent: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    due_in(-600 * desk.INTERVAL_MS + 5000)
    with caplog.at_level(logging.INFO):
        planner.plan()
    lines = [record for record in caplog.records if record.message == "orchestrator.scheduler"]
    assert lines[0].levelname == "WARNING"
    assert lines[0].missed == 120  # type: ignore[attr-defined]
