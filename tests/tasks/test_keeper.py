"""The keeper, by a clock that is set by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event

from models.kernel import session
from models.kernel.settings import settings
from orchestrator_tasks import keeper as keeping
from orchestrator_tasks.keeper import GRACE_SECONDS, SHUTDOWN_GRACE_SECONDS, Hold, Keeper
from orchestrator_tasks.tickets.drivers.base import Interrupt
from tests.tasks.conftest import Clock
from tests.tasks.owed import Owed, change, rows

TIMEOUT = 60.0


@pytest.fixture
def keeper(database: str) -> Keeper:
    return Keeper()


@pytest.fixture
def statements(database: str) -> Iterator[list[str]]:
    """Every statement that is sent by itself."""
    sent: list[str] = []
    engine = session.single_statements()

    def note(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        sent.append(sql)

    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


def hold(owed: Owed, time: Clock, timeout: float = TIMEOUT) -> Hold:
    """A job that was just taken, held."""
    attempt = owed().take()
    return Hold(attempt.job_id, attempt.fence, Interrupt(), time() + timeout, renewed_at=time())


def reason(held: Hold) -> str | None:
    assert isinstance(held.interrupt, Interrupt)
    return held.interrupt.wait(0)


def leases() -> list[Any]:
    return [row["lease_until"] for row in rows("SELECT lease_until FROM jobs ORDER BY id")]


def passes(keeper: Keeper, time: Clock, seconds: float, *holds: Hold) -> None:
    time.advance(seconds)
    keeper.interrupt_due(list(holds))
    keeper.renew_due(list(holds))


def test_all_leases_of_the_process_are_renewed_in_one_statement(
    keeper: Keeper, owed: Owed, time: Clock, statements: list[str]
) -> None:
    holds = [hold(owed, time) for _ in range(5)]
    before = leases()
    statements.clear()
    passes(keeper, time, 0, *holds)
    assert len(statements) == 1
    assert all(later > earlier for earlier, later in zip(before, leases(), strict=True))
    assert [reason(held) for held in holds] == [None] * 5


def test_leases_are_renewed_three_times_within_their_length_and_not_more_often(
    keeper: Keeper, owed: Owed, time: Clock, statements: list[str]
) -> None:
    held = hold(owed, time)
    statements.clear()
    for _ in range(30):
        passes(keeper, time, settings().lease_seconds / 30, held)
    assert len(statements) == 3


def test_an_attempt_is_interrupted_when_its_time_is_up_and_not_before(keeper: Keeper, owed: Owed, time: Clock) -> None:
    held = hold(owed, time, timeout=2.0)
    passes(keeper, time, 1.9, held)
    assert reason(held) is None
    passes(keeper, time, 0.1, held)
    assert reason(held) == "timeout"


def test_an_attempt_whose_lease_is_gone_is_interrupted(keeper: Keeper, owed: Owed, time: Clock) -> None:
    lost, kept = hold(owed, time), hold(owed, time)
    change("DELETE FROM jobs WHERE id = :id", id=lost.job_id)
    passes(keeper, time, 0, lost, kept)
    assert (reason(lost), reason(kept)) == ("revoked", None)


def test_an_attempt_whose_job_was_taken_by_another_is_interrupted(keeper: Keeper, owed: Owed, time: Clock) -> None:
    held = hold(owed, time)
    change("UPDATE jobs SET fence = fence + 1000 WHERE id = :id", id=held.job_id)
    passes(keeper, time, 0, held)
    assert reason(held) == "revoked"


def test_at_shutdown_what_runs_has_a_short_grace_and_is_then_interrupted(
    keeper: Keeper, owed: Owed, time: Clock
) -> None:
    held = hold(owed, time)
    keeper.begin_shutdown()
    assert keeper.is_shutting_down()
    passes(keeper, time, SHUTDOWN_GRACE_SECONDS - 0.1, held)
    assert reason(held) is None
    passes(keeper, time, 0.1, held)
    assert reason(held) == "shutdown"


def test_an_attempt_that_does_not_answer_its_interruption_is_renewed_no_more(
    keeper: Keeper, owed: Owed, time: Clock
) -> None:
    held = hold(owed, time, timeout=1.0)
    passes(keeper, time, 1.0, held)
    (within_grace,) = leases()
    passes(keeper, time, settings().lease_seconds / 3, held)
    (still,) = leases()
    assert still > within_grace
    passes(keeper, time, GRACE_SECONDS, held)
    assert leases() == [still]


def test_a_database_that_is_away_for_less_than_the_lease_interrupts_nothing(
    keeper: Keeper, owed: Owed, time: Clock, away: threading.Event
) -> None:
    held = hold(owed, time)
    away.set()
    passes(keeper, time, settings().lease_seconds * 0.9, held)
    assert reason(held) is None
    away.clear()
    passes(keeper, time, settings().lease_seconds * 0.09, held)
    passes(keeper, time, settings().lease_seconds * 0.9, held)
    assert reason(held) is None


def test_a_database_that_is_away_for_longer_than_the_lease_interrupts_as_lease_lost(
    keeper: Keeper, owed: Owed, time: Clock, away: threading.Event
) -> None:
    held = hold(owed, time)
    away.set()
    for _ in range(4):
        passes(keeper, time, settings().lease_seconds / 3, held)
    assert reason(held) == "lease_lost"


def test_the_first_reason_to_interrupt_stays(keeper: Keeper, owed: Owed, time: Clock) -> None:
    held = hold(owed, time, timeout=1.0)
    passes(keeper, time, 1.0, held)
    change("DELETE FROM jobs")
    passes(keeper, time, settings().lease_seconds, held)
    assert reason(held) == "timeout"


def test_holding_keeps_the_lease_for_the_length_of_the_block_and_lets_go_after_it(owed: Owed, keeper: Keeper) -> None:
    attempt = owed().take()
    interrupt = Interrupt()
    with keeper.holding(attempt.job_id, attempt.fence, 0.05, interrupt):
        assert interrupt.wait(20) == "timeout"
    assert keeper.holds == {}


def test_who_begins_while_the_keeper_sleeps_wakes_it_only_to_end_before_it_would_wake(
    owed: Owed, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep, woken = threading.Event(), []
    notify, due_at = keeper.changed.notify_all, keeper.interruption_due_at
    monkeypatch.setattr(keeper.changed, "notify_all", lambda: woken.append(notify()))
    monkeypatch.setattr(keeper, "interruption_due_at", lambda: (due_at(), asleep.set())[0])
    with keeper.holding(*held_by(owed), settings().lease_seconds * 2, Interrupt()):
        assert asleep.wait(20)
    woken.clear()
    with keeper.holding(*held_by(owed), settings().lease_seconds * 2, Interrupt()):
        assert woken == []
    interrupt = Interrupt()
    with keeper.holding(*held_by(owed), 0.05, interrupt):
        assert len(woken) == 1
        assert interrupt.wait(20) == "timeout"


def test_a_lease_that_begins_between_two_renewals_is_renewed_with_the_next(
    keeper: Keeper, owed: Owed, time: Clock, statements: list[str]
) -> None:
    passes(keeper, time, 0)
    time.advance(settings().lease_seconds / 4)
    held = hold(owed, time)
    statements.clear()
    passes(keeper, time, settings().lease_seconds / 12, held)
    assert len(statements) == 1


def held_by(owed: Owed) -> tuple[int, int]:
    attempt = owed().take()
    return attempt.job_id, attempt.fence


def test_a_renewal_that_hangs_keeps_no_attempt_from_being_interrupted_at_its_time(
    owed: Owed, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, over = threading.Event(), threading.Event()

    def hang(*_: Any) -> set[Any]:
        hanging.set()
        assert over.wait(30)
        return set()

    monkeypatch.setattr(keeping, "renew", hang)
    attempt = owed().take()
    interrupt = Interrupt()
    try:
        with keeper.holding(attempt.job_id, attempt.fence, 0.5, interrupt):
            assert hanging.wait(20)
            assert interrupt.wait(5) == "timeout"
    finally:
        over.set()
