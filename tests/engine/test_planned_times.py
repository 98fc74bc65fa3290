"""The time that a run was planned for: timestamp and cut follow from it, and verify holds it against both."""

from __future__ import annotations

from typing import Any

import pytest

from models.engine.cadence import planned_time
from models.engine.divergence import RUN_RECORD, Divergence, verify
from tests.engine import desk
from tests.engine.carried import carry_out, example, exported
from tests.engine.desk import DELAY_MS, INTERVAL_MS, START_MS, inputs, trade
from tests.engine.test_replay import rewritten

BTC = "BTC-USD"
TIMER = {"mode": "timer", "timer_interval_ms": 7000}
BOUNDARY = {"mode": "boundary", "boundary_interval_ms": INTERVAL_MS, "boundary_delay_ms": DELAY_MS}


def day(**scheduler: Any) -> list[bytes]:
    """The export of three ticks, with a record just before, at and just after each of them."""
    scheduler = scheduler or BOUNDARY
    desk.configure(scheduler=scheduler)
    desk.start()
    interval = scheduler.get("timer_interval_ms", INTERVAL_MS)
    first = START_MS + interval + scheduler.get("boundary_delay_ms", 0)
    desk.plan(START_MS)
    for tick in (first + n * interval for n in range(3)):
        of = (tick - scheduler.get("boundary_delay_ms", 0)) // INTERVAL_MS * INTERVAL_MS
        for now in (tick - 1, tick, tick + 1):
            desk.append(trade(), inputs(of), now_ms=now)
        desk.plan(tick + 2)
    carry_out(example())
    return exported()


def found_with(lines: list[bytes], **changes: Any) -> Divergence | None:
    """The divergence of the same export in which the second run's record says something else."""

    def change(body: dict[str, Any]) -> dict[str, Any]:
        if body["kind"] != "run" or body["number"] != 2:
            return body
        return {**body, **{name: body[name] + by if by else None for name, by in changes.items()}}

    return verify(rewritten(lines, change), example())


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("scheduler", [BOUNDARY, TIMER], ids=["boundary", "timer"])
def test_what_the_planner_has_planned_is_right(scheduler: dict[str, Any]) -> None:
    lines = day(**scheduler)
    assert sum(b'"kind":"run"' in line for line in lines) >= 3
    assert verify(lines, example()) is None


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("by", [1, -1, 10**9, None])
@pytest.mark.parametrize("scheduler", [BOUNDARY, TIMER], ids=["boundary", "timer"])
def test_a_planned_time_that_is_another_is_found_by_verify(scheduler: dict[str, Any], by: int | None) -> None:
    """Also where the timestamp says nothing of it: a record that came by then is missing, or one came after it."""
    found = found_with(day(**scheduler), planned_ts_ms=by)
    assert found is not None
    assert (found.event_type, found.field, found.number) == (RUN_RECORD, "/planned_ts_ms", 2)


BODY = {"scheduler": BOUNDARY, "engine": {"alignment_ms": INTERVAL_MS}}
TIMED = {"scheduler": TIMER, "engine": {"alignment_ms": INTERVAL_MS}}
RUN = {"engine_timestamp_ms": 20_000, "planned_ts_ms": 21_000}


@pytest.mark.parametrize(
    ("body", "planned", "last_ts_ms", "right"),
    [
        (BODY, 21_000, 21_000, 21_000),
        (BODY, 21_001, 0, 21_000),
        (BODY, 21_000, 21_001, 21_001),
        (TIMED, 20_000, 0, 20_000),
        (TIMED, 29_999, 25_000, 29_999),
        (TIMED, 30_000, 25_000, 29_999),
        (TIMED, 24_999, 25_000, 25_000),
        (TIMED, None, 25_000, 25_000),
        (BODY, "21000", 0, 21_000),
        ({}, 1, 5, None),
        ({"scheduler": {"mode": "lunar"}}, 1, 5, None),
        ({"scheduler": [], "engine": 1}, 1, 5, None),
    ],
)
def test_the_right_time_is_the_nearest_that_fits_the_timestamp_and_the_cut(
    body: dict[str, Any], planned: Any, last_ts_ms: int, right: int | None
) -> None:
    assert planned_time(body, {**RUN, "planned_ts_ms": planned}, last_ts_ms) == right
